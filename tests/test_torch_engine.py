"""The in-process decoder against transformers' generate and the trainer's own forward pass."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from inference import torch_engine
from inference.hybrid_engine import Rollout, completion_text, decode, eos_ids
from inference.torch_engine import SLACK, TorchEngine, _State, compact, pick
from tests.models import CPU, VOCABULARY, byte_tokenizer, make_problem, random_prompts, scorer, tiny_model
from utils.checks import BadInput
from utils.hints import Prompt
from utils.packing import pack

KINDS = pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM])
ENDS = (1, 3, 7)
LENGTHS = [(5, 0), (1, 0), (12, 3), (3, 2), (9, 0), (2, 1), (7, 7), (4, 0), (1, 1), (6, 0)]  # of prompts and hints
GB = 1.0  # plenty


def make_engine(kind=Qwen2ForCausalLM, ends=ENDS, kv_cache_gb=GB, **flags) -> TorchEngine:
    return TorchEngine(tiny_model(kind, **flags), ends, kv_cache_gb)


def sample(engine, prompts, group_size=4, max_response_length=40, temperature=0.8, seed=0):
    return engine.generate(prompts, group_size, max_response_length, temperature, seed, step=1)


def ids_of(groups) -> list[list[list[int]]]:
    return [[rollout.response_ids for rollout in group] for group in groups]


@pytest.fixture
def compactions(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """Shapes (segments, slots) before and after every compaction of the test."""
    shapes = []

    def recording(state, t):
        new_state, kept = compact(state, t)
        shapes.append((tuple(state.rows.shape), tuple(new_state.rows.shape)))
        return new_state, kept

    monkeypatch.setattr(torch_engine, "compact", recording)
    return shapes


# ---- greedy ----


@KINDS
def test_greedy_is_generate_token_for_token(kind, compactions):
    """Past the first capacity of the suffix cache and its first doubling; rows end at all times and leave."""
    model = tiny_model(kind, scale=0.5, seed=6)
    prompts, limit = random_prompts(LENGTHS), 2 * torch_engine.FIRST_CAPACITY + 6
    groups = TorchEngine(model, ENDS, GB).generate(prompts, 1, limit, temperature=0.0)
    finishes = [rollout.finish for [rollout] in groups]
    for prompt, [rollout] in zip(prompts, groups, strict=True):
        ids = torch.tensor([prompt.prompt_ids + prompt.hint_ids])
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                  max_new_tokens=limit, eos_token_id=list(ENDS), pad_token_id=0)
        assert rollout.response_ids == expected[0, ids.shape[1] :].tolist()
    assert set(finishes) == {"stop", "length"}
    assert len({len(rollout.response_ids) for [rollout] in groups}) > 4  # not all end together
    assert compactions


def test_greedy_logprobs_are_those_of_temperature_one():
    engine = make_engine()
    [[rollout]] = engine.generate(random_prompts([(4, 2)]), 1, 8, temperature=0.0)
    [micro_batch] = pack([[rollout]], [[0.0]], 64, CPU)
    logprobs = scorer(engine.model, temperature=1.0).logprobs(micro_batch)[micro_batch.response_mask]
    torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, atol=1e-5, rtol=0)


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
        torch.testing.assert_close(actor.logprobs(micro_batch)[mask], micro_batch.engine_logprobs[mask], atol=1e-5,
                                   rtol=0)
        num_tokens += int(mask.sum())
    assert num_tokens == sum(len(ids) for group in ids_of(groups) for ids in group)
    assert max(len(ids) for group in ids_of(groups) for ids in group) > torch_engine.FIRST_CAPACITY
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
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            assert (a.finish, a.prompt) == (b.finish, b.prompt)


def test_a_small_cache_makes_several_batches_of_the_same_samples(monkeypatch):
    prompts, limit = random_prompts(LENGTHS), 40
    together = sample(make_engine(), prompts)
    token_bytes = 2 * 2 * 2 * 4 * 4  # keys and values, layers, key-value heads, head size, float32
    longest = token_bytes * (15 + 4 * limit)
    for kv_cache_bytes, num_batches in ((longest * 3.5, 4), (longest, 10), (1, 10), (longest * 30, 1)):
        engine = make_engine(kv_cache_gb=kv_cache_bytes / 2**30)
        batches = []
        monkeypatch.setattr(engine, "_decode", lambda chosen, *rest, batches=batches, engine=engine:
                            batches.append(len(chosen)) or TorchEngine._decode(engine, chosen, *rest))
        assert ids_of(sample(engine, prompts)) == ids_of(together)
        assert sum(batches) == len(prompts)
        assert len(batches) <= num_batches  # shorter prompts may leave room for more
        assert len(batches) >= num_batches - 1
        assert max(batches) * token_bytes * 4 * limit <= max(kv_cache_bytes, longest)


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
    groups = engine.generate([prompt], 5000, 1, 0.5)
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


@pytest.mark.parametrize(
    "model",
    [lambda: GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=16)),
     lambda: Qwen2ForCausalLM(Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                          num_attention_heads=2, num_key_value_heads=1, use_sliding_window=True))],
    ids=["another architecture", "sliding window"],
)  # fmt: skip
def test_a_model_that_the_engine_cannot_run_is_refused(model):
    with pytest.raises(BadInput, match="^flag --engine torch: cannot run "):
        TorchEngine(model(), ENDS, GB)


# ---- pick ----


@pytest.mark.parametrize("noise", [0.0, 2**-30, 2**-24, 0.5, 1 - 2**-24, 1 - 2**-25])
@pytest.mark.parametrize("seed", range(5))
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
    torch.testing.assert_close(logprobs, probabilities[chosen].log())


def test_pick_by_hand():
    logits = torch.tensor([1.0, 4.0, 4.0]).log()  # at temperature 1/2 the weights are 1, 16, 16
    for temperature, noise, index, probability in ((1.0, 0.1, 0, 1 / 9), (1.0, 0.12, 1, 4 / 9), (1.0, 0.6, 2, 4 / 9),
                                                   (0.5, 0.02, 0, 1 / 33), (0.5, 0.1, 1, 16 / 33)):
        chosen, logprob = pick(logits[None], temperature, torch.tensor([noise]))
        assert chosen.tolist() == [index]
        torch.testing.assert_close(logprob.exp(), torch.tensor([probability]))


def test_greedy_takes_the_most_probable_and_its_logprob_at_temperature_one():
    chosen, logprobs = pick(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]).log(), 0.0, None)
    assert chosen.tolist() == [2, 0]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.7, 0.5]))


# ---- compaction ----


def make_state(num_segments: int, num_slots: int, capacity: int = 4) -> _State:
    """Every number of the caches tells where it stands: segment number in prefixes, row in suffixes."""
    random = torch.Generator().manual_seed(0)

    def caches(*shape):
        return [torch.randn(num_segments, 2, *shape, generator=random) for _ in range(2)]

    return _State(
        caches(3, 5), caches(3, 5), torch.randn(num_segments, 1, 1, 3, generator=random),
        torch.randint(1, 100, (num_segments,), generator=random),
        caches(num_slots, capacity, 5), caches(num_slots, capacity, 5),
        torch.randperm(num_segments * num_slots, generator=random).view(num_segments, num_slots),
        torch.ones(num_segments, num_slots, dtype=torch.bool),
    )  # fmt: skip


def by_row(state: _State, t: int) -> dict[int, list[torch.Tensor]]:
    """For every live row all that belongs to it: its own suffix up to t, and its segment's prefix."""
    rows = {}
    for segment, slot in state.alive.nonzero().tolist():
        row = state.rows[segment, slot].item()
        assert row not in rows
        rows[row] = [cache[segment, :, slot, :t] for cache in state.suffix_keys + state.suffix_values]
        rows[row] += [cache[segment] for cache in (*state.prefix_keys, *state.prefix_values, state.prefix_mask,
                                                   state.prefix_lengths)]
    return rows


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
        before, num_alive = by_row(state, t), int(state.alive.sum())
        new_state, kept = compact(state, t)

        after = by_row(new_state, t)
        assert after.keys() == before.keys()
        for row, tensors in before.items():
            assert all(torch.equal(old, new) for old, new in zip(tensors, after[row], strict=True))
        assert torch.equal(state.rows.flatten()[kept], new_state.rows.flatten())
        assert new_state.suffix_keys[0].shape[3] == state.suffix_keys[0].shape[3]

        width = new_state.rows.shape[1]
        live = state.alive.sum(dim=1).tolist()
        assert new_state.rows.numel() <= SLACK * num_alive
        for wider in range(width + 1, max(live) + 1):  # would have cost too much
            assert wider * sum(-(-count // wider) for count in live) > SLACK * num_alive
        state = new_state


def test_compaction_by_hand():
    """Three segments of four slots with 4, 2 and 0 live rows: two slots a segment, no dead one."""
    state = make_state(3, 4)
    state.alive = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    new_state, kept = compact(state, 1)
    assert kept.tolist() == [0, 1, 2, 3, 5, 7]
    assert new_state.rows.shape == (3, 2) and new_state.alive.all()
    assert torch.equal(new_state.prefix_lengths, state.prefix_lengths[[0, 0, 1]])


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
