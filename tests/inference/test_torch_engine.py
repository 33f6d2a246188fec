"""The in-process decoder against transformers' generate and the trainer's own forward pass."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import (
    Gemma2ForCausalLM,
    GPTJConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from inference import sampling, torch_engine
from inference.decoder import check_supported
from inference.hybrid_engine import eos_ids
from inference.kv_cache import COMPACT_BELOW, SLACK, DecodeState, deal
from inference.sampling import pick
from inference.torch_engine import TorchEngine, _Output
from tests.helpers import models
from tests.helpers.float64 import CLOSE, as_in_a_run
from tests.helpers.models import CPU, VOCABULARY, byte_tokenizer, make_problem, random_prompts, scorer
from utils import cpu_kernels
from utils.packing import pack
from utils.prompts import decode
from utils.rollouts import completion_text
from utils.run.errors import BadInput
from utils.types import Prompt, Rollout, Sampling

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
KINDS = pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM, MistralForCausalLM,
                                         Gemma2ForCausalLM])  # the last by its own forward pass
OWN = {Qwen3ForCausalLM: {"head_dim": 6}, MistralForCausalLM: {"sliding_window": None},
       Gemma2ForCausalLM: {"head_dim": 6, "sliding_window": 5, "attn_logit_softcapping": 2.0}}  # settings of one type
SEED = 35  # with it greedy responses end at many times, whatever the kind
ENDS = (1, 3, 7)
LENGTHS = [(5, 0), (1, 0), (12, 3), (3, 2), (9, 0), (2, 1), (7, 7), (4, 0), (1, 1), (6, 0)]  # of prompts and hints
GB = 1.0  # plenty


def tiny_model(kind=Qwen2ForCausalLM, **flags):
    return models.tiny_model(kind, **(OWN.get(kind, {}) | flags))


def close(logprobs, expected, **tolerance):
    torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), **(CLOSE | tolerance))


def make_engine(kind=Qwen2ForCausalLM, ends=ENDS, kv_cache_gb=GB, **flags) -> TorchEngine:
    return TorchEngine(tiny_model(kind, **flags), ends, kv_cache_gb)


def sample(engine, prompts, group_size=4, max_response_length=40, temperature=0.8, seed=0):
    return engine.generate(prompts, Sampling(group_size, max_response_length, temperature, seed), step=1)


def ids_of(groups) -> list[list[list[int]]]:
    return [[rollout.response_ids for rollout in group] for group in groups]


@pytest.fixture
def compactions(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """Shapes (segments, slots) before and after every compaction of the test."""
    shapes, compact = [], DecodeState.compact

    def recording(state, t):
        before = tuple(state.rows.shape)
        compacted = compact(state, t)
        if compacted:
            shapes.append((before, tuple(state.rows.shape)))
        return compacted

    monkeypatch.setattr(DecodeState, "compact", recording)
    return shapes


# ---- greedy ----


def generated(model, prompt: Prompt, limit: int) -> list[int]:
    """What transformers' generate makes of a prompt."""
    ids = torch.tensor([prompt.prompt_ids + prompt.hint_ids])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit,
                            eos_token_id=list(ENDS), pad_token_id=0)
    return output[0, ids.shape[1] :].tolist()


@KINDS
def test_greedy_is_generate_token_for_token(kind, compactions):
    """Rows end at all times and leave."""
    model = tiny_model(kind, scale=0.5, seed=SEED)
    prompts, limit = random_prompts(LENGTHS), 70
    groups = TorchEngine(model, ENDS, GB).generate(prompts, Sampling(1, limit, temperature=0.0))
    finishes = [rollout.finish for [rollout] in groups]
    for prompt, [rollout] in zip(prompts, groups, strict=True):
        assert rollout.response_ids == generated(model, prompt, limit)
    assert set(finishes) == {"stop", "length"}
    assert len({len(rollout.response_ids) for [rollout] in groups}) > 4  # not all end together
    assert compactions


@pytest.mark.parametrize("rope", [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},  # scales the attention too
], ids=lambda rope: rope["rope_type"])
def test_scaled_rotary_embeddings_are_those_of_generate(rope):
    """As the config.json of Llama 3.2 names them, with numbers that matter at these lengths."""
    model = tiny_model(LlamaForCausalLM, scale=0.5, seed=6, rope_theta=100.0, rope_scaling=rope)
    plain = tiny_model(LlamaForCausalLM, scale=0.5, seed=6, rope_theta=100.0)
    assert model.model.rotary_emb.rope_type == rope["rope_type"]
    prompts, limit = random_prompts(LENGTHS), 70
    groups = ids_of(TorchEngine(model, ENDS, GB).generate(prompts, Sampling(1, limit, temperature=0.0)))
    assert groups == [[generated(model, prompt, limit)] for prompt in prompts]
    assert groups != ids_of(TorchEngine(plain, ENDS, GB).generate(prompts, Sampling(1, limit, temperature=0.0)))


def test_greedy_logprobs_are_those_of_temperature_one():
    engine = make_engine()
    [[rollout]] = engine.generate(random_prompts([(4, 2)]), Sampling(1, 8, temperature=0.0))
    [micro_batch] = pack([[rollout]], [[0.0]], 64, CPU)
    logprobs = scorer(engine.model, temperature=1.0).logprobs(micro_batch)[micro_batch.response_mask]
    torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, **CLOSE)


# ---- sampling ----


@KINDS
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_of_samples_are_those_of_packed_training(kind, temperature, compactions):
    engine = make_engine(kind, ends=ENDS[:1])
    prompts = random_prompts(LENGTHS)
    groups = sample(engine, prompts, group_size=5, max_response_length=70, temperature=temperature)
    actor = scorer(engine.model, temperature)
    num_tokens = 0
    for micro_batch in pack(groups, [[0.0] * 5] * len(groups), 2000, CPU):
        mask = micro_batch.response_mask
        torch.testing.assert_close(actor.logprobs(micro_batch)[mask], micro_batch.engine_logprobs[mask], **CLOSE)
        num_tokens += int(mask.sum())
    assert num_tokens == sum(len(ids) for group in ids_of(groups) for ids in group)
    assert compactions


def test_samples_do_not_depend_on_what_else_is_in_the_batch(compactions):
    prompts = random_prompts(LENGTHS)
    engine = make_engine()
    together = sample(engine, prompts)
    assert any(before[1] > after[1] for before, after in compactions)  # slots of a segment were rearranged too
    alone = [sample(engine, [prompt])[0] for prompt in prompts]
    backwards = sample(engine, prompts[::-1])[::-1]
    fewer = sample(engine, prompts, group_size=2)
    more = sample(engine, prompts, group_size=7)
    assert ids_of(alone) == ids_of(backwards) == ids_of(together)
    assert ids_of(fewer) == [group[:2] for group in ids_of(together)]
    assert [group[:4] for group in ids_of(more)] == ids_of(together)
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            close(a.logprobs, b.logprobs)
            assert (a.finish, a.prompt) == (b.finish, b.prompt)


def test_samples_may_be_asked_for_in_several_calls_and_of_no_prompt():
    """They are numbered: two calls give what one gives, in order; a call without prompts gives nothing."""
    engine, prompts, whole = make_engine(), random_prompts(LENGTHS), Sampling(4, 40, 0.8)
    together = engine.generate(prompts, whole, step=3)
    first, last = whole.split(num_last=1)
    assert (first.group_size, first.first_sample, last.group_size, last.first_sample) == (3, 0, 1, 3)
    parts = engine.generate(prompts, first, step=3), engine.generate(prompts, last, step=3)
    assert ids_of([some + one for some, one in zip(*parts, strict=True)]) == ids_of(together)
    assert ids_of(engine.generate(prompts, replace(whole, first_sample=4), step=3)) != ids_of(together)
    assert [part.first_sample for part in replace(whole, first_sample=4).split(num_last=2)] == [4, 6]
    assert engine.generate([], whole, step=3) == []


def test_a_small_cache_makes_several_batches_of_the_same_samples(monkeypatch):
    prompts, limit = random_prompts(LENGTHS), 40
    together = sample(make_engine(), prompts)
    token_bytes = 2 * 2 * 2 * 4 * 8  # keys and values, layers, key-value heads, head size, float64
    longest = token_bytes * (15 + 4 * limit)
    three = token_bytes * (15 + 3 * limit)  # of a group's 4 samples
    for kv_cache_bytes, num_batches in ((longest * 3.5, 4), (longest, 10), (three, 20), (1, 40), (longest * 30, 1)):
        engine = make_engine(kv_cache_gb=kv_cache_bytes / 2**30)
        batches = []
        monkeypatch.setattr(engine, "_decode", lambda *given, batches=batches, engine=engine:
                            batches.append((len(given[0]), given[1])) or TorchEngine._decode(engine, *given))
        groups = sample(engine, prompts)
        assert ids_of(groups) == ids_of(together)
        for one, other in zip(sum(groups, []), sum(together, []), strict=True):
            close(one.logprobs, other.logprobs)
            assert (one.prompt, one.finish) == (other.prompt, other.finish)
        assert sum(chosen * samples for chosen, samples in batches) == 4 * len(prompts)
        assert len(batches) <= num_batches  # shorter prompts may leave room for more
        assert len(batches) >= num_batches - 1
        assert max(chosen * samples * limit for chosen, samples in batches) * token_bytes \
            <= max(kv_cache_bytes, token_bytes * limit)


@pytest.mark.parametrize(("tokens", "parts"), [(1, [1] * 10), (30, [2] * 5), (50, [3, 3, 3, 1]), (1000, [10])])
def test_prefill_in_parts_changes_nothing(tokens, parts, monkeypatch):
    """The longest prompt has 15 tokens; the others of its part are padded to it, those of another part to their own."""
    engine, whole, sizes = make_engine(), make_engine(), []
    engine.prefill_tokens, whole.prefill_tokens = tokens, 10_000
    rows = engine.decoder.prefill_rows
    monkeypatch.setattr(engine.decoder, "prefill_rows", lambda prefixes, caches: sizes.append(len(prefixes))
                        or rows(prefixes, caches))
    groups, expected = (sample(one, random_prompts(LENGTHS)) for one in (engine, whole))
    assert sizes == parts and ids_of(groups) == ids_of(expected)
    for one, other in zip(sum(groups, []), sum(expected, []), strict=True):
        close(one.logprobs, other.logprobs)


def test_samples_follow_their_uniforms():
    engine, prompts = make_engine(ends=[EOS_NEVER]), random_prompts([(4, 0)])
    first = ids_of(sample(engine, prompts, max_response_length=20, seed=0))
    assert first == ids_of(sample(engine, prompts, max_response_length=20, seed=0))
    assert first != ids_of(sample(engine, prompts, max_response_length=20, seed=1))
    assert len({tuple(ids) for ids in first[0]}) == 4  # samples of a group differ


EOS_NEVER = VOCABULARY + 1


def test_the_first_token_has_the_models_distribution(monkeypatch):
    """Over an even grid of noise every token is chosen as often as its probability says, to one count."""
    engine, [prompt] = make_engine(), random_prompts([(4, 2)])
    grid = (np.arange(5000) + 0.5) / 5000
    monkeypatch.setattr(torch_engine, "sampling_uniforms", lambda *_: [grid[:, None]])
    groups = engine.generate([prompt], Sampling(5000, 1, 0.5))
    counts = np.bincount([ids[0] for ids in ids_of(groups)[0]], minlength=VOCABULARY)
    ids = torch.tensor([prompt.prompt_ids + prompt.hint_ids])
    with torch.no_grad():
        probabilities = (engine.model(input_ids=ids).logits[0, -1] / 0.5).softmax(-1).numpy()
    np.testing.assert_allclose(counts, 5000 * probabilities, atol=1.01)


# ---- where a response ends ----


def test_a_response_ends_at_any_id_of_the_set_and_keeps_it():
    groups = sample(make_engine(), random_prompts(LENGTHS), group_size=8, temperature=2.0)
    rollouts = [rollout for group in groups for rollout in group]
    for rollout in rollouts:
        *before, last = rollout.response_ids
        assert not set(before) & set(ENDS)
        assert rollout.finish == ("stop" if last in ENDS else "length")
        assert len(rollout.response_ids) == 40 or rollout.finish == "stop"
        assert len(rollout.logprobs) == len(rollout.response_ids)
    assert {rollout.response_ids[-1] for rollout in rollouts if rollout.finish == "stop"} == set(ENDS)
    assert any(len(rollout.response_ids) == 1 for rollout in rollouts)


def test_at_the_limit_a_response_is_cut_and_says_so():
    [group] = sample(make_engine(ends=[EOS_NEVER]), random_prompts([(3, 0)]), max_response_length=33)
    assert [(len(rollout.response_ids), rollout.finish) for rollout in group] == [(33, "length")] * 4


def test_a_response_of_one_token():
    """Its only token may be the end: that is no truncation."""
    longer = sample(make_engine(), random_prompts(LENGTHS), group_size=16, max_response_length=5, temperature=2.0)
    groups = sample(make_engine(), random_prompts(LENGTHS), group_size=16, max_response_length=1, temperature=2.0)
    rollouts = [rollout for group in groups for rollout in group]
    assert [rollout.response_ids for rollout in rollouts] == [ids[:1] for group in ids_of(longer) for ids in group]
    assert {(rollout.response_ids[0] in ENDS, rollout.finish) for rollout in rollouts} == {
        (True, "stop"), (False, "length")}


def test_a_limit_that_the_end_meets_exactly_is_no_truncation():
    prompts = random_prompts(LENGTHS)
    for group in sample(make_engine(), prompts):
        for number, rollout in enumerate(group):
            if rollout.finish == "stop":
                length = len(rollout.response_ids)
                again = sample(make_engine(), [rollout.prompt], max_response_length=length)[0][number]
                assert (again.response_ids, again.finish) == (rollout.response_ids, "stop")
                return
    raise AssertionError("no response ended")


def test_rollouts_come_back_in_the_order_of_the_prompts():
    prompts = random_prompts(LENGTHS)
    groups = sample(make_engine(), prompts)
    assert all(rollout.prompt is prompt for prompt, group in zip(prompts, groups, strict=True) for rollout in group)
    assert [len(group) for group in groups] == [4] * len(prompts)


# ---- weights ----


@KINDS
def test_sync_copies_the_actors_weights_into_the_replica(kind):
    actor, replica = tiny_model(kind, seed=1), tiny_model(kind, seed=2)
    named = {name: parameter.detach() for name, parameter in actor.named_parameters()}
    buckets = [dict(list(named.items())[:5]), dict(list(named.items())[5:])]
    engine = TorchEngine(replica, ENDS, GB, weights=lambda: buckets)
    prompts = random_prompts(LENGTHS)
    expected = ids_of(sample(TorchEngine(actor, ENDS, GB), prompts))
    assert ids_of(sample(engine, prompts)) != expected
    engine.sync()
    assert ids_of(sample(engine, prompts)) == expected
    named["model.norm.weight"].add_(1.0)  # the replica holds copies
    assert ids_of(sample(engine, prompts)) == expected


def test_without_a_replica_the_actors_weights_are_used_as_they_change():
    engine, prompts = make_engine(), random_prompts(LENGTHS)
    before = ids_of(sample(engine, prompts))
    with torch.no_grad():
        engine.model.model.norm.weight.add_(1.0)
    engine.sync()
    assert ids_of(sample(engine, prompts)) != before


@pytest.mark.parametrize(("config", "reason"), [
    (GPTJConfig(), "a model of type gptj, whose attention is its own or no causal language model's"),
    (Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), "a model with layers of type conv"),
    (LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
     "a model with rotary embeddings of type dynamic"),
])
def test_a_model_that_the_engine_cannot_run_is_refused(config, reason):
    with pytest.raises(BadInput) as caught:
        check_supported(config)
    assert str(caught.value) == f"flag --engine torch: cannot run {reason}; take --engine vllm or deepspeed"


def test_the_engine_itself_refuses_a_model_it_cannot_run():
    with pytest.raises(BadInput, match="type dynamic"):
        make_engine(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})


@KINDS
def test_a_model_that_the_engine_can_run_is_not_refused(kind):
    check_supported(kind.config_class(**OWN.get(kind, {})))


# ---- pick ----


@pytest.mark.parametrize("noise", [0.0, 2**-30, 2**-24, 0.5, 1 - 2**-24, 1 - 2**-25])
@pytest.mark.parametrize("seed", range(5))
@as_in_a_run()
def test_a_token_of_probability_zero_is_never_chosen(noise, seed):
    """Neither at the ends of the vocabulary nor inside it; the last noise rounds to 1 in float32."""
    logits = 3 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
    logits[:, :10] = logits[:, -10:] = logits[:, 1000:2000] = -torch.inf
    chosen, logprobs = pick(logits, 1.0, torch.tensor([noise], dtype=torch.float))
    assert logits[0, chosen[0]] > -torch.inf and torch.isfinite(logprobs).all()
    assert noise > 0.4 or chosen[0] < 30
    assert noise < 0.6 or chosen[0] > 2900


def test_choices_on_a_grid_of_noise_follow_the_distribution():
    probabilities = torch.tensor([0.1, 0.0, 0.25, 0.05, 0.6])
    grid = (torch.arange(2000) + 0.5) / 2000
    chosen, logprobs = pick(probabilities.log().expand(2000, -1), 1.0, grid)
    counts = torch.bincount(chosen, minlength=5).tolist()
    assert all(abs(count - 2000 * p) <= 1 for count, p in zip(counts, probabilities.tolist(), strict=True))
    torch.testing.assert_close(logprobs, probabilities[chosen].log(), **CLOSE)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("vocab_size", [1, 5, 64, 271, 5000])
@as_in_a_run()
def test_the_kernel_draws_what_float64_says(vocab_size, temperature):
    random = torch.Generator().manual_seed(vocab_size)
    logits, noise = 3 * torch.randn(400, vocab_size, generator=random) - 50, torch.rand(400, generator=random)
    logits[torch.rand(logits.shape, generator=random) < 0.1] = -torch.inf
    logits[:, 0] = -50.0
    if not cpu_kernels.take(logits, noise):
        pytest.skip("no compiler here")
    chosen, logprobs = pick(logits, temperature, noise)
    exact = (logits.double() / temperature).log_softmax(dim=1)
    ends = exact.exp().cumsum(dim=1)
    rows = torch.arange(400)
    before = torch.where(chosen > 0, ends[rows, chosen - 1], 0.0)
    assert (before < noise + 1e-6).all() and (noise < ends[rows, chosen] + 1e-6).all()
    torch.testing.assert_close(logprobs.double(), exact[rows, chosen], rtol=1e-6, atol=2e-6)
    assert pick(torch.tensor([[-40.0, 0.0, 0.0]]), temperature, torch.zeros(1))[0].tolist() == [1]  # 0 counts as 2^-24


@pytest.mark.parametrize("vocab_size", [1025, 1536, 5000])
def test_adding_up_in_blocks_changes_no_choice(vocab_size, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "take", lambda *operands: False)
    random = torch.Generator().manual_seed(vocab_size)
    logits, noise = 3 * torch.randn(400, vocab_size, generator=random), torch.rand(400, generator=random)
    in_blocks = pick(logits, 0.7, noise)
    monkeypatch.setattr(sampling, "BLOCK", vocab_size)
    one_by_one = pick(logits, 0.7, noise)
    assert torch.equal(in_blocks[0], one_by_one[0]) and len(in_blocks[0].unique()) > 100
    assert torch.equal(in_blocks[1], one_by_one[1])


def test_pick_by_hand():
    logits = torch.tensor([1.0, 4.0, 4.0]).log()  # at temperature 1/2 the weights are 1, 16, 16
    for temperature, noise, index, probability in ((1.0, 0.1, 0, 1 / 9), (1.0, 0.12, 1, 4 / 9), (1.0, 0.6, 2, 4 / 9),
                                                   (0.5, 0.02, 0, 1 / 33), (0.5, 0.1, 1, 16 / 33)):
        chosen, logprob = pick(logits[None], temperature, torch.tensor([noise]))
        assert chosen.tolist() == [index]
        torch.testing.assert_close(logprob.exp(), torch.tensor([probability]), **CLOSE)


def test_greedy_takes_the_most_probable_and_its_logprob_at_temperature_one():
    chosen, logprobs = pick(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]).log(), 0.0, None)
    assert chosen.tolist() == [2, 0]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.7, 0.5]), **CLOSE)


# ---- compaction ----


def make_state(num_segments: int, num_slots: int, capacity: int = 4) -> DecodeState:
    """Random caches of two layers behind prefixes of three tokens."""
    random = torch.Generator().manual_seed(0)

    def caches(*shape):
        return [torch.randn(num_segments, 2, *shape, generator=random) for _ in range(2)]

    return DecodeState(
        caches(3, 5), caches(3, 5), torch.randn(num_segments, 1, 1, 3, generator=random),
        torch.randint(1, 100, (num_segments,), generator=random),
        caches(num_slots, capacity, 5), caches(num_slots, capacity, 5),
        torch.randperm(num_segments * num_slots, generator=random).view(num_segments, num_slots),
        torch.ones(num_segments, num_slots, dtype=torch.bool),
        torch.randint(1, 100, (num_segments, num_slots), generator=random), torch.tensor([0]), capacity,
    )


def by_row(state: DecodeState, t: int) -> dict[int, list[torch.Tensor]]:
    """For every live row all that belongs to it: its own suffix up to t, and its segment's prefix."""
    rows = {}
    for segment, slot in state.alive.nonzero().tolist():
        row = state.rows[segment, slot].item()
        assert row not in rows
        rows[row] = [cache[segment, :, slot, :t] for cache in state.suffix_keys + state.suffix_values]
        rows[row] += [cache[segment] for cache in (*state.prefix_keys, *state.prefix_values, state.prefix_mask,
                                                   state.prefix_lengths)]
        rows[row].append(state.chosen[segment, slot])
    return rows


def num_tokens(num_segments: int, num_slots: int, prefix: int, capacity: int) -> int:
    return num_segments * (prefix + num_slots * capacity)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.data())
def test_compaction_keeps_every_live_row_with_its_prefix_and_suffix(num_segments, num_slots, t, data):
    state = make_state(num_segments, num_slots)
    for _ in range(2):  # the second time from what the first one left
        flags = st.lists(st.booleans(), min_size=state.alive.numel(), max_size=state.alive.numel())
        drawn = torch.tensor(data.draw(flags)).view_as(state.alive)
        if not (drawn & state.alive).any():
            drawn = torch.ones_like(state.alive)
        state.alive = drawn & state.alive
        before, slots = by_row(state, t), state.rows.numel()
        compacted = state.compact(t)
        after = by_row(state, t)
        assert after.keys() == before.keys()
        for row, tensors in before.items():
            assert all(torch.equal(old, new) for old, new in zip(tensors, after[row], strict=True))
        assert state.suffix_keys[0].shape[3] == 4
        assert state.rows.numel() <= (SLACK * COMPACT_BELOW if compacted else 1) * slots


alive_slots = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.lists(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0],
                           max_size=shape[0])).map(np.array).filter(np.any)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(alive_slots, st.integers(1, 60), st.integers(1, 20))
def test_live_rows_are_dealt_to_few_slots_in_no_more_memory(alive, prefix, capacity):
    counts = alive.sum(axis=1).tolist()
    possible = {}  # slots by width
    for width in range(1, max(counts) + 1):
        num_segments = sum(-(-count // width) for count in counts)
        if num_tokens(num_segments, width, prefix, capacity) <= num_tokens(*alive.shape, prefix, capacity):
            possible[width] = num_segments * width
    dealt = deal(alive, prefix, capacity)
    allowed = {width for width, slots in possible.items() if slots <= SLACK * min(possible.values())}
    if dealt is None:
        assert possible[max(allowed)] > SLACK * COMPACT_BELOW * alive.size
        return
    parent, slot = dealt
    assert slot.shape[1] == max(allowed) and slot.size == possible[max(allowed)]
    assert slot.size <= SLACK * COMPACT_BELOW * alive.size
    assert num_tokens(*slot.shape, prefix, capacity) <= num_tokens(*alive.shape, prefix, capacity)
    assert {(segment, some) for segment, slots in zip(parent, slot, strict=True) for some in slots} == set(
        zip(*alive.nonzero(), strict=True))


def test_prefixes_are_not_copied_where_there_is_no_room():
    """Three groups with one live row and seven with three: single slots waste none, but make 24 prefixes of ten."""
    alive = np.array([[1, 0, 0, 0]] * 3 + [[0, 1, 1, 1]] * 7).astype(bool)
    for prefix, shape in ((10, (24, 1)), (1000, (10, 3))):
        _, slot = deal(alive, prefix, capacity=100)
        assert slot.shape == shape
    alive[3:-1] = [[1, 0, 0, 0]] * 6
    alive[-1] = True
    assert deal(alive, 10_000, capacity=100) is None  # in ten segments no slot would go


def test_compaction_by_hand():
    """Three segments of four slots with 4, 2 and 0 live rows: two slots a segment, no dead one."""
    state = make_state(3, 4)
    state.alive = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    rows, lengths = state.rows.flatten(), state.prefix_lengths
    assert state.compact(1)
    assert torch.equal(state.rows.flatten(), rows[[0, 1, 2, 3, 5, 7]])
    assert state.rows.shape == (3, 2) and state.alive.all()
    assert torch.equal(state.prefix_lengths, lengths[[0, 0, 1]])


@pytest.mark.parametrize("first_capacity", [5, 32, 1000])
@pytest.mark.parametrize(("prompt_length", "group_size"), [(5, 4), (120, 6), (120, 1)])
def test_caches_stay_within_the_budget(prompt_length, group_size, first_capacity, compactions, monkeypatch):
    """From the first token to the last, however the suffixes grow and the rows are dealt anew."""
    monkeypatch.setattr(torch_engine, "FIRST_CAPACITY", first_capacity)
    limit, budget, sizes = 40, 1_000_000, []
    step = TorchEngine._step

    def measured(engine, state, output, width):
        caches = state.prefix_keys + state.prefix_values + state.suffix_keys + state.suffix_values
        sizes.append(sum(cache.nbytes for cache in caches))
        step(engine, state, output, width)

    monkeypatch.setattr(TorchEngine, "_step", measured)
    prompts = random_prompts([(prompt_length, 0)] * 25)
    sample(make_engine(kv_cache_gb=budget / 2**30), prompts, group_size, limit)
    assert max(sizes) <= budget and len(compactions) > 3
    assert first_capacity < 1000 or max(sizes) > 0.8 * budget


@pytest.mark.parametrize("captured", [None, lambda step: step], ids=["usual", "fixed"])
def test_suffixes_grow_to_the_longest_response_and_no_further(captured, monkeypatch):
    monkeypatch.setattr(torch_engine, "SPAN", 16)
    capacities, grow = [], DecodeState.grow

    def recording(state, needed, t):
        before = [cache[..., :t, :].clone() for cache in state.suffix_keys + state.suffix_values]
        grow(state, needed, t)
        after = [cache[..., :t, :] for cache in state.suffix_keys + state.suffix_values]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        capacities.append(state.suffix_keys[0].shape[3])

    monkeypatch.setattr(DecodeState, "grow", recording)
    engine = make_engine(ends=[EOS_NEVER])
    engine.captured = captured
    sample(engine, random_prompts(LENGTHS), max_response_length=100)
    assert capacities == [64, 99]


@pytest.mark.parametrize("lengths", [(3, 40), (60, 10)])
@pytest.mark.parametrize("live", [1, 5])
def test_a_compaction_holds_one_layer_twice(lengths, live):
    """Counted by PyTorch's profiler. With long prefixes the new segments hold more of them than the old ones."""
    prefix, capacity = lengths
    layers, segments, slots = 6, 8, 8
    rows = torch.arange(segments * slots).view(segments, slots)
    alive = torch.zeros_like(rows).bool()
    alive[:, 0], alive[: segments // 2, :live] = True, True
    mask = torch.zeros(segments, 1, 1, prefix)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        shapes = 2 * [(segments, 2, prefix, 50)] + 2 * [(segments, 2, slots, capacity, 50)]
        keys, values, *suffixes = ([torch.empty(shape) for _ in range(layers)] for shape in shapes)
        state = DecodeState(keys, values, mask, torch.ones(segments), *suffixes, rows, alive, rows, torch.tensor([0]),
                       capacity)
        before = sum(cache.nbytes for cache in sum([keys, values, *suffixes], []))
        assert state.compact(capacity)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert 1.01 < held.max() / before <= 1 + 1 / layers
    assert held[-1] < 1.01 * before


# ---- fixed shapes, as a CUDA graph wants them ----


def fixed(engine: TorchEngine) -> TorchEngine:
    """The engine with the steps that are captured on a GPU, here run as they are."""
    engine.captured = lambda step: step
    return engine


@KINDS
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize(("span", "look_every", "limit"), [(128, 16, 70), (16, 4, 70), (1, 1, 20), (7, 3, 2)])
def test_fixed_shapes_change_nothing(kind, temperature, group_size, span, look_every, limit, compactions, monkeypatch):
    """Prompts of several lengths, rows that end at all times, compactions, one or several widths of the suffix."""
    monkeypatch.setattr(torch_engine, "SPAN", span)
    monkeypatch.setattr(torch_engine, "LOOK_EVERY", look_every)
    model, prompts = tiny_model(kind, scale=0.5 - 0.2 * (temperature > 0), seed=SEED), random_prompts(LENGTHS)
    usual = sample(TorchEngine(model, ENDS, GB), prompts, group_size, limit, temperature)
    compactions.clear()
    other = sample(fixed(TorchEngine(model, ENDS, GB)), prompts, group_size, limit, temperature)
    assert ids_of(usual) == ids_of(other)
    for one, another in zip(sum(usual, []), sum(other, []), strict=True):
        close(one.logprobs, another.logprobs)
        assert one.finish == another.finish
    assert compactions or limit < 70 or (group_size == 1 and temperature > 0)  # of ten rows few are left at a look


@KINDS
@pytest.mark.parametrize("captured", [None, lambda step: step], ids=["usual", "fixed"])
@as_in_a_run()
def test_bfloat16_is_float32_rounded(kind, captured):
    """Log-probabilities of the same ids: those of the trainer's forward pass in float32, as far as bfloat16 goes."""
    model = tiny_model(kind, scale=0.2)
    engine = TorchEngine(tiny_model(kind, scale=0.2).to(torch.bfloat16), ENDS, GB)
    engine.captured = captured
    groups = sample(engine, random_prompts(LENGTHS))
    [micro_batch] = pack(groups, [[0.0] * 4] * len(groups), 4000, CPU)
    mask = micro_batch.response_mask
    away = (scorer(model, 0.8).logprobs(micro_batch) - micro_batch.engine_logprobs)[mask].abs()
    assert away.mean() < 0.02 and away.max() < 0.15


@pytest.mark.parametrize("is_like_llama", [True, False])
@as_in_a_run()
def test_scores_far_below_zero_keep_their_digits_in_bfloat16(is_like_llama, monkeypatch):
    """Biases like those of Qwen2.5's queries and keys: near -300 a score in bfloat16 has steps of 2. With such scores
    the engine was .16 nats from training, which keeps them in float32, and without the biases .04."""
    monkeypatch.setattr(torch_engine, "is_like_llama", lambda config: is_like_llama)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.15)).eval()
    size = (300 * 32**0.5) ** 0.5
    attention = model.model.layers[1].self_attn
    with torch.no_grad():  # of each head's last pair, which rotates by next to nothing
        for project, sign in ((attention.q_proj, 1), (attention.k_proj, -1)):
            project.bias.copy_(torch.randn(project.bias.shape)).view(-1, 32)[:, 31] += sign * size
    model.bfloat16()
    random = np.random.default_rng(0)
    prompts = [models.make_prompt(random.integers(2, 512, 40).tolist(), index=index) for index in range(6)]
    groups = TorchEngine(model, ENDS, GB).generate(prompts, Sampling(4, 60, 1.0))
    actor = scorer(model)
    differences = [(actor.logprobs(micro_batch) - micro_batch.engine_logprobs).abs()
                   for micro_batch in pack(groups, [[0.0] * 4] * 6, 2000, CPU)]
    assert 0.01 < torch.cat(differences).mean() < 0.07


def test_a_dead_slot_writes_nothing_down():
    """A spare slot has the row of a live one, and may come to differ from it by rounding."""
    engine, live, dead = make_engine(), torch.tensor([5.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 5.0])
    for number, logits in enumerate([[live, dead], [dead, live]]):
        output = _Output(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1), None, 0.0)
        state = make_state(1, 2)
        state.rows, state.position = torch.zeros(1, 2, dtype=torch.long), torch.tensor([-1])
        state.alive = torch.arange(2)[None] == number
        engine._choose(state, output, torch.stack(logits))
        assert output.ids[0] == 0
        torch.testing.assert_close(output.logprobs[0], live.log_softmax(0)[:1], **CLOSE)


def test_what_was_in_the_cache_before_does_not_matter(monkeypatch):
    """Memory is not cleared: columns that no token has been written to may hold anything."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args: empty(*args).fill_(torch.nan))
    monkeypatch.setattr(torch_engine, "SPAN", 16)
    engine = fixed(make_engine())
    engine.prefill_tokens = 30  # prefixes of many widths
    groups = sample(engine, random_prompts(LENGTHS))
    assert all(np.isfinite(rollout.logprobs).all() for group in groups for rollout in group)
    assert ids_of(groups) == ids_of(sample(make_engine(), random_prompts(LENGTHS)))


class Recorder(TorchDispatchMode):
    """All operations: their names, the shapes and types of tensors, and every other argument."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **kwargs or {})
        self.operations.append((str(operation), tree_map(
            lambda thing: (thing.shape, thing.dtype) if isinstance(thing, torch.Tensor) else thing,
            (args, kwargs, output))))
        return output


def test_a_step_of_fixed_shapes_can_be_captured(monkeypatch, compactions):
    """It does the same each time, on the same buffers, and nothing that needs a value on the host or has a shape that
    depends on one."""
    monkeypatch.setattr(torch_engine, "SPAN", 16)
    monkeypatch.setattr(torch_engine, "LOOK_EVERY", 8)
    calls = []  # of each step

    def recorded(step):
        state, records = step.args[0], []
        calls.append(records)

        def run():
            with Recorder() as recorder:
                step()
            tensors = [leaf for leaf in tree_leaves(vars(state)) if isinstance(leaf, torch.Tensor)]
            records.append((recorder.operations, [tensor.data_ptr() for tensor in tensors]))

        return run

    engine = make_engine()
    engine.captured = recorded
    sample(engine, random_prompts(LENGTHS))
    assert len(compactions) > 1 and len(calls) > 3
    assert max(map(len, calls)) >= 8
    for records in calls:
        operations, addresses = records[0]
        assert all(record == (operations, addresses) for record in records)
        for name, arguments in operations:
            assert not name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"))
            assert "index" not in name or torch.bool not in tree_leaves(arguments), "a mask as an index"


def test_the_host_looks_at_the_rows_every_few_tokens(monkeypatch):
    looks, compact = [], DecodeState.compact

    def recording(state, t):
        looks.append((t, int(state.position)))
        return compact(state, t)

    monkeypatch.setattr(DecodeState, "compact", recording)
    sample(fixed(make_engine()), random_prompts(LENGTHS))
    assert looks and all(t == position and t % torch_engine.LOOK_EVERY == 0 for t, position in looks)


# ---- on a GPU ----


def on_gpu(dtype=torch.float32, **flags) -> TorchEngine:
    return TorchEngine(tiny_model().to("cuda", dtype), ENDS, GB, **flags)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@as_in_a_run()
def test_a_captured_step_is_the_step(dtype, group_size, temperature, compactions, monkeypatch):
    monkeypatch.setattr(torch_engine, "SPAN", 32)
    prompts = random_prompts(LENGTHS)
    captured, uncaptured = (sample(engine, prompts, group_size, 100, temperature)
                            for engine in (on_gpu(dtype), fixed(on_gpu(dtype))))
    assert ids_of(captured) == ids_of(uncaptured)
    for one, another in zip(sum(captured, []), sum(uncaptured, []), strict=True):
        close(one.logprobs, another.logprobs)
    assert compactions


@pytest.mark.gpu
@as_in_a_run()
def test_a_gpu_says_what_the_cpu_says():
    prompts = random_prompts(LENGTHS)
    on_cpu, there = sample(make_engine(), prompts), sample(on_gpu(), prompts)
    assert ids_of(on_cpu) == ids_of(there)
    for one, another in zip(sum(on_cpu, []), sum(there, []), strict=True):
        close(one.logprobs, another.logprobs, atol=1e-4)


@pytest.mark.gpu
@as_in_a_run()
def test_captured_steps_see_new_weights_in_place_and_in_a_replica_that_slept():
    prompts, actor = random_prompts(LENGTHS), tiny_model(seed=1).to("cuda")
    engine = on_gpu(weights=lambda: [{name: weight.detach() for name, weight in actor.named_parameters()}],
                    free_replica=True)
    for _ in range(2):
        engine.sync()
        expected = ids_of(sample(TorchEngine(actor, ENDS, GB), prompts))
        assert ids_of(sample(engine, prompts)) == expected
        engine.sleep()
        with torch.no_grad():
            actor.model.norm.weight.add_(1.0)
        assert ids_of(sample(TorchEngine(actor, ENDS, GB), prompts)) != expected


# ---- text ----


def test_completion_is_hint_and_response_without_the_end():
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token

    def text(hint: str, response: str, finish: str) -> str:
        hint_ids, ids = tokenizer([hint, response], add_special_tokens=False)["input_ids"]
        return completion_text(Rollout(Prompt(make_problem(), [5, 6], hint_ids, 1), ids, [], finish), tokenizer)

    assert text("hi", f"-there{end}", "stop") == "hi-there"
    assert text("", f"there{end}", "stop") == "there"
    assert text("hi", end, "stop") == "hi"
    assert text("hi", "-there!", "stop") == "hi-there"  # whatever id ended it
    assert text("hi", "-there", "length") == "hi-there"
    assert text("", f"a{end}b", "length") == f"a{end}b"  # special tokens are not hidden


def test_a_character_may_be_spread_over_hint_and_response():
    tokenizer = byte_tokenizer()
    ids = tokenizer("5 ö", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    rollout = Rollout(Prompt(make_problem(), [5], ids[:3], 1), ids[3:], [0.0], "length")
    assert completion_text(rollout, tokenizer) == "5 ö"
    assert decode([*ids, tokenizer.eos_token_id], tokenizer) == f"5 ö{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("declared", "expected"), [(None, {2}), (2, {2}), (5, {2, 5}), (0, {0, 2}), ([5, 2, 7], {2, 5, 7}), ([], {2})]
)
def test_eos_ids_are_the_tokenizers_and_the_generation_configs(declared, expected):
    assert eos_ids(SimpleNamespace(eos_token_id=2), declared) == expected
