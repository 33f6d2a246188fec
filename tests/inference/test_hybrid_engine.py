"""Which engine is taken, the guard between engine and actor, and the engine's log-probabilities in the loss."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from inference import hybrid_engine
from inference.hybrid_engine import check_engine, choose_engine
from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import evaluation_lines, launch, start, start_in_turn, succeed, training_lines
from tests.helpers.models import CPU, random_groups, scorer, tiny_model
from utils import guards
from utils.guards import engine_mismatch
from utils.losses import clipped_surrogate
from utils.metrics import LossSums
from utils.packing import pack
from utils.run.errors import BadInput, RunStopped

# ----- which engine -----


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=..., vllm=..., processes=..., capability=...): what the machine has."""

    def has(*, cuda: bool, vllm: bool, processes: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: processes if cuda else 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(hybrid_engine, "find_spec", lambda name: SimpleNamespace() if vllm else None)
        monkeypatch.setenv("WORLD_SIZE", str(processes))

    return has


@pytest.mark.parametrize(("cuda", "vllm", "name", "reason"), [
    (True, True, "vllm", "CUDA and vLLM are here"),
    (True, False, "torch", "no vLLM here"),
    (False, True, "torch", "no CUDA here"),
    (False, False, "torch", "no CUDA and no vLLM here"),
])
def test_auto_takes_vllm_where_cuda_and_vllm_are_and_says_why(machine, cuda, vllm, name, reason):
    machine(cuda=cuda, vllm=vllm)
    assert choose_engine("auto") == (name, reason)
    assert choose_engine("torch") == ("torch", "as --engine says")


def test_vllm_is_not_taken_by_a_gpu_before_ampere(machine):
    reason = "vLLM needs compute capability 8.0, and a GPU here has 7.5"
    machine(cuda=True, vllm=True, capability=(7, 5))
    assert choose_engine("auto") == ("torch", reason)
    with pytest.raises(BadInput, match=f"^flag --engine vllm: {reason}; give --engine torch$"):
        choose_engine("vllm")
    machine(cuda=True, vllm=True, capability=(8, 0))
    assert choose_engine("auto")[0] == choose_engine("vllm")[0] == "vllm"


def test_what_auto_does_not_take_has_nothing_to_give_back(machine):
    for cuda, vllm in ((False, False), (False, True), (True, False)):
        machine(cuda=cuda, vllm=vllm)
        assert choose_engine("auto", sleep_level=2)[0] == "torch"
    machine(cuda=True, vllm=True)
    assert choose_engine("auto", sleep_level=2)[0] == "vllm"


def test_a_missing_vllm_names_the_command_that_installs_it(machine):
    machine(cuda=True, vllm=False)
    with pytest.raises(BadInput, match="^flag --engine vllm: vLLM is not installed; pip install -r requirements.txt"):
        choose_engine("vllm")


@pytest.mark.parametrize(("name", "flags", "message"), [
    ("torch", {"tp_size": 2}, "flag --tp_size 2: is for vLLM, and the engine is torch"),
    ("deepspeed", {"sleep_level": 1}, "flag --sleep_level 1: is for vLLM, and the engine is deepspeed"),
    ("vllm", {"tp_size": 3}, "flag --tp_size 3: must divide the number of processes, 4"),
    ("vllm", {"tp_size": 0}, "flag --tp_size 0: must divide the number of processes, 4"),
    ("vllm", {"sleep_level": 2}, "flag --sleep_level 2: needs a GPU: vLLM cannot sleep on a CPU"),
    ("vllm", {"temperature": 2.5}, "flag --temperature 2.5: must be at most 2 with --engine vllm"),
])
def test_flags_that_do_not_fit_the_engine_are_refused(machine, name, flags, message):
    machine(cuda=False, vllm=True, processes=4)
    with pytest.raises(BadInput) as error:
        choose_engine(name, **flags)
    assert str(error.value).startswith(message)


def test_flags_of_vllm_that_fit_pass(machine):
    machine(cuda=True, vllm=True, processes=4)
    assert choose_engine("vllm", tp_size=2, sleep_level=2, temperature=2.0)[0] == "vllm"


def test_heads_must_be_divisible_by_the_processes_of_an_engine():
    config = Qwen2Config(num_attention_heads=6)
    check_engine("vllm", config, tp_size=3)
    with pytest.raises(BadInput, match="^flag --tp_size 4: must divide the 6 attention heads"):
        check_engine("vllm", config, tp_size=4)


# ----- the guard -----


def groups_sampled_from(model, offset: float = 0.0):
    """Groups whose engine log-probabilities are the model's, `offset` added to those of group 0's first response."""
    groups = random_groups([(5, 0, (4, 9, 2)), (3, 2, (6, 1, 7)), (8, 1, (5, 5, 5))])
    for number, group in enumerate(groups):
        for sample, rollout in enumerate(group):
            [micro_batch] = pack([[rollout]], [[0.0]], 100, CPU)
            logprobs = scorer(model).logprobs(micro_batch)[micro_batch.response_mask]
            rollout.logprobs[:] = (logprobs + offset * (number == sample == 0)).tolist()
    return groups


@pytest.mark.float64
@pytest.mark.numerics
def test_mismatch_is_the_mean_and_the_maximum_over_a_few_sampled_tokens():
    model = tiny_model()
    actor = scorer(model)
    numbers = engine_mismatch(groups_sampled_from(model), actor, CPU, limit=1e-4, max_tokens=99)
    assert 0 <= numbers["logprob_mismatch"] <= numbers["logprob_mismatch_max"] < CLOSE["atol"]
    numbers = engine_mismatch(groups_sampled_from(model, offset=-0.3), actor, CPU, limit=0.2, max_tokens=99)
    assert numbers["logprob_mismatch_max"] == pytest.approx(0.3, abs=CLOSE["atol"])
    assert numbers["logprob_mismatch"] == pytest.approx(0.3 * 4 / (4 + 6 + 5), abs=CLOSE["atol"])  # first responses


def test_only_a_few_tokens_are_scored(monkeypatch):
    model, seen = tiny_model(), []
    monkeypatch.setattr(guards, "GUARD_TOKENS", 9)

    def logprobs(micro_batch):
        seen.append(int(micro_batch.response_mask.sum()))
        return scorer(model).logprobs(micro_batch)

    engine_mismatch(groups_sampled_from(model), SimpleNamespace(logprobs=logprobs), CPU, limit=1.0, max_tokens=99)
    assert seen == [10]  # 4 are too few, 4 + 6 enough


@pytest.mark.parametrize(("max_tokens", "num_scored"), [(1, 4), (21, 4), (22, 10), (41, 10), (42, 15)])
def test_prompts_and_padding_of_the_scored_tokens_stay_within_a_micro_batch(max_tokens, num_scored):
    """First responses of 9, 11 and 14 tokens with their prompts, 4, 6 and 5 without."""
    model, shapes = tiny_model(), []

    def logprobs(micro_batch):
        shapes.append((int(micro_batch.response_mask.sum()), micro_batch.input_ids.numel()))
        return scorer(model).logprobs(micro_batch)

    engine_mismatch(groups_sampled_from(model), SimpleNamespace(logprobs=logprobs), CPU, 1.0, max_tokens)
    [(num_responses, num_tokens)] = shapes
    assert num_responses == num_scored and num_tokens <= max(max_tokens, 9)


@pytest.mark.parametrize("offset", [0.3, -0.3, math.nan, math.inf])
def test_the_run_stops_over_the_limit_and_says_what_to_look_at(offset):
    model = tiny_model()
    with pytest.raises(RunStopped, match=r"over --max_logprob_mismatch 0.05.*stale weights.*temperature"):
        engine_mismatch(groups_sampled_from(model, offset), scorer(model), CPU, limit=0.05, max_tokens=99)


@pytest.fixture(scope="module")
def flags(base_model, countdown_data):
    return {
        "model": base_model, "data": countdown_data, "seed": 1, "total_steps": 2, "eval_every": 2, "eval_problems": 8,
        "save_every": 9, "prompts_per_step": 16, "group_size": 4, "mini_batch_prompts": 8, "max_prompt_length": 64,
        "max_response_length": 48, "max_tokens_per_micro_batch": 320, "lr": 1e-3, "kl_coef": 0,
    }


@pytest.mark.slow
def test_a_sync_that_is_left_out_stops_the_run(tmp_path, flags):
    own = {"engine": "torch", "zero_stage": 3, "max_logprob_mismatch": 1e-3, "output_dir": tmp_path / "run"}
    result = launch("tests/workers/stale_sync.py", flags | own, num_processes=2)
    assert result.returncode != 0
    assert result.stderr.count("stopped: the engine's log-probabilities differ") == 1
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1]


@pytest.mark.slow
def test_a_sync_that_is_left_out_stops_sft_too(tmp_path, flags):
    """Which samples nothing, but would evaluate the old weights. One process: what two do then is tested above."""
    own = {flag: value for flag, value in flags.items() if flag not in ("group_size", "kl_coef")} | {
        "max_length": 96, "engine": "torch", "zero_stage": 3, "max_logprob_mismatch": 1e-3, "eval_every": 1,
        "output_dir": tmp_path / "run"}
    result = start("tests/workers/stale_sync.py", own)
    assert result.returncode != 0
    assert result.stderr.count("stopped: the engine's log-probabilities differ") == 1
    lines = evaluation_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1] and all(0 < line["logprob_mismatch"] < 1e-4 for line in lines)


# ----- the engine's log-probabilities in the loss -----


@pytest.mark.slow
@pytest.mark.numerics
def test_engine_logprobs_give_the_losses_of_recomputed_ones(tmp_path, flags, exact_base_model):
    """In float64, with a cap that cuts nothing."""
    own = {"model": exact_base_model, "max_engine_ratio": 100, "zero_stage": 0}
    runs = [flags | own | {"old_logprobs": old, "output_dir": tmp_path / old} for old in ("actor", "engine")]
    succeed(start_in_turn([("training/rft.py", run) for run in runs], **IN_FLOAT64))
    lines = {old: training_lines(tmp_path / old) for old in ("actor", "engine")}
    for actors, engines in zip(lines["actor"], lines["engine"], strict=True):
        for name in ("loss", "pg_loss", "entropy", "grad_norm", "accuracy", "response_tokens"):
            assert engines[name] == pytest.approx(actors[name], rel=CLOSE["rtol"], abs=CLOSE["atol"]), name
        assert "engine_ratio" not in actors
        assert 0.9 < engines["engine_ratio"] < 1.1 < engines["engine_ratio_max"] and engines["engine_ratio_capped"] == 0


@pytest.mark.float64
@pytest.mark.numerics
def test_importance_weights_are_truncated_per_token():
    ratios = torch.tensor([0.5, 1.5, 3.0, 8.0])
    logprobs = ratios.log().requires_grad_()
    for advantage, losses, slopes in ((1.0, [-0.5, -1.2, -1.2, -1.2], [-0.5, 0, 0, 0]),
                                      (-1.0, [0.8, 1.5, 3.0, 4.0], [0, 1.5, 3.0, 0])):
        loss = clipped_surrogate(logprobs, torch.zeros(4), torch.full((4,), advantage), 0.2, max_ratio=4.0)
        torch.testing.assert_close(loss, torch.tensor(losses), **CLOSE)
        [slope] = torch.autograd.grad(loss.sum(), logprobs)
        torch.testing.assert_close(slope, torch.tensor(slopes), **CLOSE)


@pytest.mark.float64
@pytest.mark.numerics
def test_ratios_are_logged_as_mean_maximum_and_share_over_the_cap():
    losses = LossSums()
    mask = torch.tensor([True, True, False])
    losses.add_ratios(torch.tensor([1.0, 3.0, 9.0]).log(), torch.zeros(3), mask, num_tokens=4, cap=2.0)
    losses.add_ratios(torch.tensor([0.5, 2.5, 9.0]).log(), torch.zeros(3), mask, num_tokens=4, cap=2.0)
    expected = {"engine_ratio": 7 / 4, "engine_ratio_capped": 2 / 4, "engine_ratio_max": 3.0}
    means = losses.means([[]])  # of one update
    assert {name: means[name] for name in expected} == pytest.approx(expected, rel=CLOSE["rtol"])


# ----- the replica -----


ROPES = {"default": {}, "linear": {"rope_type": "linear", "factor": 2.0}, "yarn": {"rope_type": "yarn", "factor": 4.0},
         "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64}}


@pytest.mark.parametrize("kind", [LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replica_is_the_actor_after_a_sync(kind, rope, dtype):
    """Its weights, and all else: tied weights stay tied, buffers are equal. Nothing is drawn for it."""
    others = {"sliding_window": None} if kind is MistralForCausalLM else {}
    model = tiny_model(kind, rope_parameters={"rope_theta": 1e4, "rope_type": "default"} | ROPES[rope], **others)
    for parameter in model.parameters():  # as DeepSpeed does: no run rounds the rotary frequencies
        parameter.data = parameter.data.to(dtype)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    actor = SimpleNamespace(model=model, device=CPU, zero_stage=3, whole_weights=lambda: iter([weights]))
    before = torch.random.get_rng_state()
    engine = hybrid_engine.build_engine(
        "torch", actor, SimpleNamespace(eos_token_id=1), max_length=16, kv_cache_gb=1.0, free_replica=False, tp_size=1,
        memory_fraction=0.3, sleep_level=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    for parameter in engine.model.parameters():
        parameter.data.fill_(math.nan)
    engine.sync()
    for named in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(one, named)(remove_duplicate=False)) for one in (engine.model, model))
        assert list(ours) == list(theirs) and ours
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
            assert tensor.data_ptr() != theirs[name].data_ptr()
    assert not engine.model.training
    tied = engine.model.lm_head.weight is engine.model.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings == (kind is Qwen2ForCausalLM)
