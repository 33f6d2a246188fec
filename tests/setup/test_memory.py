"""The memory estimate against transformers' parameter counts, autograd's saved tensors, and hand-worked numbers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.helpers.models import random_advantages, random_groups
from utils.attention import by_layout
from utils.packing import pack
from utils.policy import Policy
from utils.response_batches import Batches
from utils.setup.memory import estimate, evaluation_facts, memory_facts, peak
from utils.setup.memory_terms import (
    BUCKET,
    GIB,
    GPU_OVERHEAD,
    LIVE,
    Generation,
    Run,
    activations,
    cache_need,
    communication,
    generation,
    head,
    key_copies,
    layer_activations,
    masks,
    stepping,
    training_states,
)
from utils.setup.shapes import SHAPES, Shape, shape_of

TOTALS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
}
SMALL = Shape(vocab_size=10, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2)
RUN = Run(weight_bytes=2, processes=2, zero_stage=3, offload=False, gradient_checkpointing=False, has_reference=True,
          prompts_per_step=16, mini_batch_prompts=8, group_size=4, row_length=30, rows_per_prompt=1,
          max_tokens_per_micro_batch=100, max_prompt_length=10, max_response_length=5, kv_cache_gb=1.0, test_problems=6,
          gpu_bytes=0, engine="torch", engine_memory_fraction=0.5, free_replica=False, sleep_level=0)


def model_of(config, dtype=torch.float32, device="meta"):
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def small_config(kind=Qwen2Config, **changes):
    return kind(**{"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256} | changes)


# ----- parameters -----


@pytest.mark.parametrize("name", TOTALS)
def test_the_models_of_the_paper_have_their_published_number_of_parameters(name):
    assert SHAPES[name].parameters == TOTALS[name]
    assert set(SHAPES) == set(TOTALS)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([Qwen2Config, LlamaConfig, Qwen3Config, MistralConfig]), vocab_size=st.integers(3, 40),
    heads=st.sampled_from([1, 2, 4]), hidden=st.sampled_from([8, 16]), intermediate_size=st.integers(1, 30),
    layers=st.integers(1, 3), tied=st.booleans(), biases=st.tuples(st.booleans(), st.booleans()),
    head_dim=st.sampled_from([None, 6]),
)
def test_parameters_are_those_of_the_model_transformers_builds(
    kind, vocab_size, heads, hidden, intermediate_size, layers, tied, biases, head_dim
):
    of_kind = {LlamaConfig: {"attention_bias": biases[0], "mlp_bias": biases[1]},
               Qwen3Config: {"attention_bias": biases[0]}}.get(kind, {})
    config = small_config(
        kind, vocab_size=vocab_size, hidden_size=hidden, intermediate_size=intermediate_size, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), tie_word_embeddings=tied,
        **({"head_dim": head_dim} if head_dim else {}), **of_kind,
    )
    assert shape_of(config).parameters == sum(parameter.numel() for parameter in model_of(config).parameters())


def test_a_model_of_another_type_has_no_shape():
    assert shape_of(GPT2Config()) is None


# ----- what training keeps -----


@pytest.mark.parametrize(("changes", "states", "on_cpu"), [
    ({"zero_stage": 0}, (2, 2, 12), 0),  # bfloat16, n = 1, W = 2: weights, gradients, float32 copy and two moments
    ({"zero_stage": 1}, (2, 4, 6), 0),  # gradients are summed in float32
    ({"zero_stage": 2}, (2, 2, 6), 0),
    ({"zero_stage": 3}, (1, 2, 6), 0),
    ({"zero_stage": 0, "weight_bytes": 4}, (4, 4, 8), 0),
    ({"zero_stage": 2, "weight_bytes": 4}, (4, 2, 6), 0),  # stages 1 to 3 copy float32 weights too
    ({"zero_stage": 3, "weight_bytes": 4}, (2, 2, 6), 0),
    ({"zero_stage": 0, "offload": True}, (2, 2, 12), 0),  # offloads nothing
    ({"zero_stage": 1, "offload": True}, (2, 2, 0), 6 + 3),  # in bfloat16, here
    ({"zero_stage": 2, "offload": True}, (2, 0, 0), 6 + 3),
    ({"zero_stage": 3, "offload": True}, (0, 0, 0), 6 + 4 + 1),
    ({"zero_stage": 2, "num_adapted": 4}, (10, 8, 24), 0),  # 4 learn beside 1
    ({"zero_stage": 3, "num_adapted": 4}, (5, 8, 24), 0),
])
def test_states_of_one_parameter_on_two_processes(changes, states, on_cpu):
    assert training_states(1, replace(RUN, **changes)) == (
        dict(zip(("weights", "gradients", "optimiser"), states, strict=True)), on_cpu)


def saved_bytes(config, dtype, micro_batch):
    """Bytes of all storages that autograd keeps of the trunk's forward pass, weights apart."""
    policy = Policy(model_of(config, dtype, "cpu").train())
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    states = torch.randn(*micro_batch.input_ids.shape, config.hidden_size, dtype=dtype, requires_grad=True)
    layout = Batches.of(micro_batch, dtype)
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too: its address stays taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = policy.model.model(inputs_embeds=states, **by_layout(micro_batch.input_ids, layout),
                                    use_cache=False, position_ids=micro_batch.position_ids).last_hidden_state
    assert output.requires_grad
    return sum(nbytes for nbytes, _ in storages.values())


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, Qwen3Config, MistralConfig])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_saves_what_the_formula_says(kind, dtype):
    """The difference of two depths: what is there once for all layers drops out. As many heads for keys as for queries:
    on a CPU keys are not repeated for the queries' heads."""
    groups = random_groups([(24, 0, [18] * 4)] * 2)  # rows of 96 tokens
    [micro_batch] = pack(groups, random_advantages(groups), 192, torch.device("cpu"))
    copies = key_copies(replace(RUN, row_length=96, max_prompt_length=24, max_response_length=18))
    assert copies == 4 * (24 + 18) / 96
    deep, flat = (small_config(kind, num_hidden_layers=layers, hidden_size=64, intermediate_size=160,
                               num_key_value_heads=4) for layers in (3, 1))
    a_layer = (saved_bytes(deep, dtype, micro_batch) - saved_bytes(flat, dtype, micro_batch)) / 2
    predicted = micro_batch.input_ids.numel() * layer_activations(shape_of(deep), copies, dtype.itemsize)
    assert a_layer == pytest.approx(predicted, rel=0.03)


def test_activations_of_a_small_model():
    # Norms 2 * (4 + 4) * 8, attention (3 * 4 + 4) * 4 and keys 8 * (2 + 2 * 4), MLP 8 * 12: 368 bytes a token, layer.
    assert layer_activations(SMALL, 2, 2) == 128 + 64 + 80 + 96
    once = 8 * 8 + 6 * 12  # the last norm; three gradients of the MLP
    assert activations(SMALL, 100, 2, 2, gradient_checkpointing=False) == 100 * (3 * 368 + once)
    assert activations(SMALL, 100, 2, 2, gradient_checkpointing=True) == 100 * (368 + 3 * 2 * 8 + once)


def test_the_head_holds_a_part_of_the_logits_however_many_tokens_are_scored():
    assert head(SMALL, 100, 2, 0) == 100 * 6 * 8 + 14 * 100 * 10 + 4 * 100 * 10 + 2 * 2 * 10 * 8  # all are kept
    large = replace(SMALL, vocab_size=2**20)
    for gpu_bytes, words in ((0, 1_024), (24e9, 16_384), (80e9, 32_768)):  # of a part, with 2^13 tokens
        assert head(large, 2**13, 2, gpu_bytes) == 2**13 * (6 * 8 + 14 * words) + 2 * 2 * 2**20 * 8


@pytest.mark.parametrize(("changes", "travelling", "stepping_takes"), [
    # bfloat16, n = 1576, two processes, a vocabulary of 10 times 8
    ({"zero_stage": 0}, 0, 8 * 1576),
    ({"zero_stage": 1}, 4 * 80, 2 * 1576),  # the copy that is reduced, 2 n; Adam's temporary is as large, 4 n / 2
    ({"zero_stage": 1, "processes": 1}, 4 * 80, 4 * 1576),
    ({"zero_stage": 2}, 2 * BUCKET, 4 * 1576 / 2),
    ({"zero_stage": 2, "gpu_bytes": 80e9}, 2 * 2 * BUCKET, 4 * 1576 / 2),  # reductions overlap
    ({"zero_stage": 3}, 2 * 1576 + (2 + 4 / 2) * 1576, 8 * 1576 / 2),  # gathered; the bucket's copy, its float32 half
    ({"zero_stage": 3, "weight_bytes": 4}, 4 * 1576 + (4 + 4 / 2) * 1576, 8 * 1576 / 2),
    ({"zero_stage": 1, "weight_bytes": 4}, 4 * BUCKET, 8 * 1576 / 2),
    ({"zero_stage": 0, "weight_bytes": 4}, 0, 4 * 1576),
    ({"zero_stage": 3, "offload": True}, 2 * 1576 + (2 + 4 / 2) * 1576, 0),
    ({"zero_stage": 1, "offload": True}, 2 * BUCKET, 0),
])
def test_what_travels_and_what_a_step_of_the_optimiser_takes(changes, travelling, stepping_takes):
    run = replace(RUN, **changes)
    assert communication(SMALL, run) == travelling and stepping(SMALL.parameters, run) == stepping_takes


def test_of_a_large_model_no_more_than_buckets_travel():
    shape = SHAPES["Qwen/Qwen2.5-3B"]
    assert shape.parameters > LIVE > BUCKET
    assert communication(shape, replace(RUN, processes=4)) == 2 * LIVE + (2 + 4 / 4) * BUCKET


def test_the_masks_are_those_of_the_largest_micro_batch():
    assert masks(RUN) == 2 * 3 * 4 * 5 * 15  # bfloat16; 3 rows of 30 fit into 100 tokens
    groups = random_groups([(10, 0, [5, 5, 5, 5])] * 4)  # every row full
    largest = pack(groups, random_advantages(groups), 100, torch.device("cpu"))[0]
    shapes = [(batch.mask(torch.bfloat16, None).nbytes, *batch.mask(torch.bfloat16, None).shape)
              for batch in Batches.of(largest, torch.bfloat16).responses]
    assert sum(nbytes for nbytes, *_ in shapes) == masks(RUN)
    assert sum(responses * width for _, responses, _, _, width in shapes) == 90 * key_copies(RUN)
    demonstrated = replace(RUN, row_length=37, max_demonstration_length=7)  # 2 rows of 37
    assert masks(demonstrated) == 2 * 2 * (4 * 5 * 15 + 7 * 17)
    assert 74 * key_copies(demonstrated) == 2 * (4 * 15 + 17)
    apart = replace(demonstrated, row_length=17, rows_per_prompt=5)  # the demonstration's rows are the longest
    assert masks(apart) == 2 * 5 * 7 * 17 and key_copies(apart) == 1
    assert masks(replace(RUN, group_size=0)) == key_copies(replace(RUN, group_size=0)) == 0  # demonstrations


# ----- generation -----


def test_the_cache_of_the_3b_model_takes_36_kib_a_token():
    shape = SHAPES["Qwen/Qwen2.5-3B"]
    assert 2 * shape.cache_elements == 36_864
    run = replace(RUN, max_prompt_length=256, max_response_length=1024)
    assert cache_need(shape, run, prompts=64, samples=4) == 64 * 4352 * 36_864


def test_generation_holds_the_prompts_that_the_cache_lets_in():
    long = replace(RUN, max_prompt_length=1, max_response_length=1024)  # 3 layers * 2 heads * 2 * 2 = 24 elements
    per_group = 48 * (1 + 4 * 1024)
    logits = 4 * 10 * 14
    of_one = 4 / 3 * 48 * 1025 + 2 * logits / 4

    def peak(kv_bytes, prompts=8):
        return generation(SMALL, replace(long, kv_cache_gb=kv_bytes / GIB), prompts, 4)

    assert peak(10 * per_group, prompts=1) == pytest.approx(4 / 3 * per_group + 2 * logits)
    assert peak(3.5 * per_group) == pytest.approx(3 * (4 / 3 * per_group + 2 * logits))
    assert peak(48 * (1 + 3 * 1024)) == pytest.approx(4 / 3 * 48 * (1 + 3 * 1024) + 2 * logits * 3 / 4)  # of a group
    assert peak(1) == peak(48 * (1 + 2 * 1024) - 1) == pytest.approx(of_one)  # one response at least


def test_prefill_counts_where_prompts_are_long():
    long = replace(RUN, max_prompt_length=100_000, max_response_length=2, kv_cache_gb=1.0)
    assert generation(replace(SMALL, intermediate_size=1000), long, 1, 1) == 100_000 * (48 + 2 * (32 + 3000))
    some = replace(long, max_prompt_length=5_000, kv_cache_gb=1e-3)  # 4 fit, 3 are computed at once
    assert generation(replace(SMALL, intermediate_size=1000), some, 20, 1) \
        == 5_000 * (4 * 48 + 3 * 2 * (32 + 3000))


# ----- the sum -----


def test_what_is_always_there_under_stage_3_and_below():
    n = SMALL.parameters
    always, phases, on_cpu = estimate(SMALL, RUN)
    assert n == 80 + 3 * (8 * 2 * 12 + 3 * 8 * 12 + 16) + 8 == 1576
    assert always == {"weights": n, "gradients": 2 * n, "optimiser": 6 * n, "reference": n,
                      "replica for generating": 2 * n, "gradient bucket": 2 * BUCKET, "context, NCCL, gaps": 0}
    assert phases["backward pass"] == (activations(SMALL, 100, key_copies(RUN), 2, False) + head(SMALL, 100, 2, 0)
                                       + masks(RUN) + communication(SMALL, RUN))
    assert phases["optimiser step"] == stepping(n, RUN) and on_cpu == 0
    assert phases["sync"] == 2 * n  # a bucket, of all weights
    assert phases["rollout or evaluation"] == max(generation(SMALL, RUN, 8, 4), generation(SMALL, RUN, 3, 1))
    assert peak(SMALL, RUN) == sum(always.values()) + max(phases.values())
    always, phases, _ = estimate(SMALL, replace(RUN, zero_stage=0, has_reference=False))
    assert (always["reference"], always["replica for generating"], always["weights"]) == (0, 0, 2 * n)
    assert always["gradient bucket"] == phases["sync"] == 0
    assert phases["backward pass"] == (activations(SMALL, 100, key_copies(RUN), 2, False) + head(SMALL, 100, 2, 0)
                                       + masks(RUN))


def test_a_gpu_has_a_context_and_a_sync_a_bucket_of_no_more_than_the_embedding_beyond_its_size():
    shape, run = SHAPES["Qwen/Qwen2.5-3B"], replace(RUN, gpu_bytes=80e9)
    always, phases, _ = estimate(shape, run)
    assert always["context, NCCL, gaps"] == GPU_OVERHEAD == 3 * GIB
    assert phases["sync"] == 2 * (2**28 + 151_936 * 2_048)


def test_an_engine_gives_back_what_it_holds_where_the_flags_say_so():
    n = SMALL.parameters
    run = replace(RUN, gpu_bytes=1000 * n)

    def parts(name, **changes):
        always, phases, on_cpu = estimate(SMALL, replace(run, **changes))
        learning = always[name] + sum(phases[phase] for phase in ("backward pass", "optimiser step"))
        return always[name], learning, always[name] + phases["rollout or evaluation"], phases["sync"], on_cpu

    held, learning, generating, sync, _ = parts("replica for generating")
    given = parts("replica for generating", free_replica=True)
    assert held == 2 * n and given == (0, learning - 2 * n, generating, sync + 2 * n, 0)
    assert parts("replica for generating", sleep_level=2) == parts("replica for generating")  # that is vLLM's
    vllm = {"engine": "vllm", "engine_memory_fraction": 0.25}
    held, learning, generating, sync, on_cpu = parts("vLLM", **vllm, free_replica=True)
    assert held == generating == 250 * n and on_cpu == 0  # its weights and cache, instead of a replica's
    assert parts("vLLM", **vllm, sleep_level=2) == (0, learning - 250 * n, 250 * n, sync + 250 * n, 0)
    assert parts("vLLM", **vllm, sleep_level=1)[-1] == 2 * n  # its weights wait in CPU memory
    assert "vLLM" not in estimate(SMALL, replace(run, **vllm, gpu_bytes=0))[0]  # on a CPU as the torch engine


def test_offloading_moves_the_reference_too_under_stage_3():
    always, phases, on_cpu = estimate(SMALL, replace(RUN, offload=True))
    n = SMALL.parameters
    assert always["reference"] == always["optimiser"] == always["weights"] == phases["optimiser step"] == 0
    assert always["replica for generating"] == 2 * n
    assert on_cpu == n / 2 * (12 + 8 + 2 + 2)


def test_more_processes_and_higher_stages_never_need_more():
    def peak(**changes):
        always, _, _ = estimate(SHAPES["Qwen/Qwen2.5-3B"], replace(RUN, **changes))
        return sum(always.values()) - always["replica for generating"] - always["gradient bucket"]

    stages = [peak(zero_stage=stage) for stage in range(4)]
    assert stages == sorted(stages, reverse=True) and len(set(stages)) == 4
    assert peak(processes=4) < peak(processes=2)


def test_facts_name_the_peak_and_its_parts():
    facts = memory_facts(SHAPES["Qwen/Qwen2.5-3B"], replace(RUN, weight_bytes=2, processes=4, mini_batch_prompts=16))
    assert facts["parameters"] == "3,085,938,688"
    assert facts["  weights"] == "1.44 GiB" and facts["  optimiser"] == "8.62 GiB"  # 2 n / 4 and 12 n / 4
    always, phases, _ = estimate(SHAPES["Qwen/Qwen2.5-3B"], replace(RUN, processes=4, mini_batch_prompts=16))
    peak = (sum(always.values()) + max(phases.values())) / GIB
    assert facts["memory per GPU"].startswith(f"about {peak:.2f} GiB at most, in the ")


def test_an_unknown_model_has_no_estimate():
    assert "needs the config" in memory_facts(None, RUN)["memory"]


def test_an_evaluation_is_told_with_its_engine():
    shape = SHAPES["Qwen/Qwen2.5-0.5B"]
    run = Generation(weight_bytes=2, gpu_bytes=0, max_prompt_length=10, max_response_length=10, kv_cache_gb=1.0,
                     engine="torch", engine_memory_fraction=0.5)
    weights, on_top = 2 * shape.parameters / GIB, generation(shape, run, 8, 1) / GIB
    for changes, total, parts in (
        ({}, weights + on_top, f"weights {weights:.2f} GiB, generating {on_top:.2f} GiB"),
        ({"gpu_bytes": 10 * GIB}, weights + on_top + 3,
         f"weights {weights:.2f} GiB, generating {on_top:.2f} GiB, context and gaps 3.00 GiB"),
        ({"gpu_bytes": 10 * GIB, "engine": "vllm"}, 8, "vLLM 5.00 GiB, context and gaps 3.00 GiB"),
    ):
        facts = evaluation_facts(shape, replace(run, **changes), 8, 1)
        assert facts["memory per GPU"] == f"about {total:.2f} GiB at most: {parts}"
