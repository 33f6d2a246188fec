"""Attention by response against attention under a mask, on rows of every kind."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    Gemma2Config,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from tests.helpers.attention import plain_varlen
from tests.helpers.float64 import CLOSE
from tests.helpers.models import CPU, group_length, group_sizes, random_advantages, random_groups, scorer, tiny_model
from utils import attention, layouts, response_batches
from utils.attention import Scores, fused, written_out
from utils.layouts import Masked, Repeat, Runs, kinds_of_layouts
from utils.packing import filler, pack, trial
from utils.response_batches import BATCHES, Batches, _mask
from utils.types import PADDING, PREFIX

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
KINDS = Qwen2ForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM, MistralForCausalLM


@cache
def model_of(kind):
    return tiny_model(kind, seed=1)


def rows_of(segment_ids: list[list[int]], branch_ids: list[list[int]]):
    """All of a micro-batch that a layout looks at."""
    segment_ids = torch.tensor(segment_ids)
    return SimpleNamespace(input_ids=segment_ids, segment_ids=segment_ids, branch_ids=torch.tensor(branch_ids))


@pytest.fixture
def varlen(monkeypatch):
    monkeypatch.setattr(layouts, "varlen_attn", plain_varlen)


def scores_and_gradients(model, micro_batch, kind):
    actor = scorer(model)
    actor.layout_of = kind.of
    logprobs, entropies = actor(micro_batch)
    loss = (logprobs * torch.linspace(-1, 1, len(logprobs)) + entropies).mean()
    return logprobs.detach(), entropies.detach(), *torch.autograd.grad(loss, list(model.parameters()))


# ---- against the mask ----


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), seed=st.integers(0, 99), share_prefix=st.booleans())
def test_values_and_gradients_are_those_under_the_mask(kind, sizes, slack, seed, share_prefix):
    groups = random_groups(sizes, seed)
    budget = max(map(group_length, groups)) + slack
    for micro_batch in pack(groups, random_advantages(groups), budget, CPU, share_prefix):
        expected = scores_and_gradients(model_of(kind), micro_batch, Masked)
        torch.testing.assert_close(scores_and_gradients(model_of(kind), micro_batch, Batches), expected, **CLOSE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layouts, "varlen_attn", plain_varlen)
            torch.testing.assert_close(scores_and_gradients(model_of(kind), micro_batch, Runs), expected, **CLOSE)


def test_the_scale_of_the_scores_is_the_models(varlen):
    micro_batch, random = trial(31, CPU), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 15, 6, generator=random) for heads in (4, 2, 2))
    expected = F.scaled_dot_product_attention(query, key, value, micro_batch.attention_mask, scale=0.9, enable_gqa=True)
    real = micro_batch.branch_ids != PADDING
    for kind in (Batches, Runs, Masked):
        layout = kind.of(micro_batch, torch.double)
        actual, _ = attention.attend(None, query, key, value, None, scaling=0.9, layout=layout)
        torch.testing.assert_close(actual[real], expected.transpose(1, 2)[real], **CLOSE)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("kind", [Masked, Batches, Runs])
def test_a_window_goes_by_positions(varlen, kind, window):
    """Each token of a response against all that it sees, written out one by one."""
    groups = random_groups([(6, 2, [7, 2]), (3, 0, [4, 1]), (5, 0, [1])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*micro_batch.input_ids.shape, heads, 6, generator=random).transpose(1, 2)
                         for heads in (4, 2, 2))
    actual = kind.of(micro_batch, torch.double).mix(None, query, key, value, Scores(0.7, window))
    segments, branches, positions = micro_batch.segment_ids, micro_batch.branch_ids, micro_batch.position_ids
    for r, i in (branches != PADDING).nonzero().tolist():
        seen = [j for j in range(i + 1) if segments[r, j] == segments[r, i]
                and branches[r, j] in (PREFIX, branches[r, i]) and positions[r, i] - positions[r, j] < window]
        weights = (0.7 * query[r, 3, i] @ key[r, 1, seen].T).softmax(-1)
        torch.testing.assert_close(actual[r, i, 3], weights @ value[r, 1, seen], **CLOSE)


@pytest.mark.parametrize("kind", [Masked, Batches])
@pytest.mark.parametrize("scores", [Scores(0.7, soft_cap=2.0), Scores(0.7, 3, 2.0), Scores(0.7, sinks=torch.tensor(
    [0, 1, -1, 2]).double())], ids=["soft cap", "with a window", "sinks"])
def test_soft_caps_and_sinks(kind, scores):
    micro_batch, random = trial(31, CPU), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 15, 6, generator=random) for heads in (4, 2, 2))
    actual = kind.of(micro_batch, torch.double).mix(None, query, key, value, scores)
    mask = micro_batch.attention_mask[:, 0]
    if scores.window is not None:
        positions = micro_batch.position_ids
        mask = mask & (positions[:, :, None] - positions[:, None] < scores.window)
    real = micro_batch.branch_ids != PADDING
    for head in range(4):
        raw = query[:, head] @ key[:, head // 2].transpose(1, 2) * scores.scale
        if scores.soft_cap is not None:
            raw = scores.soft_cap * torch.tanh(raw / scores.soft_cap)
        shares = raw.exp() * mask
        total = shares.sum(-1, keepdim=True) + (0 if scores.sinks is None else scores.sinks[head].exp())
        torch.testing.assert_close(actual[:, :, head][real], (shares / total @ value[:, head // 2])[real], **CLOSE)


@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_written_out_is_what_kernels_compute(mask):
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 6, generator=random) for heads in (6, 2, 2))
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    masks = {None: None, "bool": allowed, "added": torch.zeros(5, 5).masked_fill(~allowed, -torch.inf)}
    expected = written_out(query, key, value, allowed if mask is None else masks[mask], Scores(0.3))
    torch.testing.assert_close(fused(query, key, value, masks[mask], Scores(0.3)), expected, **CLOSE)


def test_exact_attention_has_more_digits_than_the_model():
    """bfloat16 keeps 8 bits of a score of -120: what one kernel rounds away, `written_out` in bfloat16 would too."""
    micro_batch, random = trial(31, CPU), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 15, 6, generator=random) for heads in (4, 2, 2))
    query, key = query + 8, key - 2  # scores near -100
    args = [some.bfloat16() for some in (query, key, value)]
    expected = Masked.of(micro_batch, torch.double).mix(None, *(some.double() for some in args), Scores(1.0))
    exact = Masked.of(micro_batch, torch.bfloat16, is_exact=True).mix(None, *args, Scores(1.0))
    assert torch.equal(exact, expected.bfloat16())


def test_padding_gets_no_gradient():
    """Its embedding is token 0's, which appears nowhere else."""
    groups = random_groups([(4, 0, [6, 2]), (3, 0, [2])])
    groups[0][0].prompt.prompt_ids[0] = 3  # the rest is drawn from 1 on
    [micro_batch] = pack(groups, random_advantages(groups), 24, CPU)
    assert (micro_batch.branch_ids == PADDING).sum() > 0
    model = tiny_model(LlamaForCausalLM)
    actor = scorer(model)
    assert actor.layout_of == Batches.of
    actor(micro_batch)[0].sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[0].abs().max() == 0 and gradient[3].abs().max() > 0


def test_a_prompt_of_one_token_without_responses():
    logprobs, _ = scorer(model_of(Qwen2ForCausalLM))(filler(CPU))
    assert torch.isfinite(logprobs).all()


# ---- the layout ----


def test_a_layout_written_out():
    """Row 0: a prefix of 2 with responses of 1 and 2; row 1: a prefix of 3, one without responses, padding."""
    layout = Batches.of(rows_of([[0, 0, 0, 0, 0], [0, 0, 0, 1, -1]],
                                [[0, 0, 1, 2, 2], [0, 0, 0, 0, PADDING]]), torch.double)
    assert len(layout.prefixes.parents) == 3 and layout.sizes == [9, 2, 1]
    assert layout.tokens.tolist() == [0, 1, 0, 5, 6, 7, 8, 0, 0, 3, 4, 2]
    assert layout.empty.tolist() == [2, 7, 8] and layout.padding.tolist() == [9]
    assert layout.slots.tolist() == [0, 1, 11, 9, 10, 3, 4, 5, 6, 0]
    longer, shorter = layout.responses
    assert longer.parents.tolist() == shorter.parents.tolist() == [0]
    assert (longer.mask(torch.double, None) == 0)[0, 0].int().tolist() == [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert (longer.mask(torch.double, 2) == 0)[0, 0].int().tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert (shorter.mask(torch.double, None) == 0)[0, 0].int().tolist() == [[1, 1, 0, 1]]
    values = torch.cat([batch.mask(torch.double, None).flatten() for batch in layout.responses])
    assert set(values.tolist()) == {0.0, -torch.inf}


def test_runs_written_out():
    """The same rows: five sequences with their own keys, two of them after those of a prefix, and one of padding."""
    runs = Runs.of(rows_of([[0, 0, 0, 0, 0], [0, 0, 0, 1, -1]], [[0, 0, 1, 2, 2], [0, 0, 0, 0, PADDING]]), torch.double)
    assert runs.query_starts.tolist() == [0, 2, 3, 5, 8, 9, 10]
    assert runs.key_starts.tolist() == [0, 2, 5, 9, 12, 13, 14]
    assert runs.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert runs.longest == (3, 4) and runs.query_starts.dtype == runs.key_starts.dtype == torch.int32


def test_responses_of_like_lengths_are_computed_together():
    groups = random_groups([(3, 0, [9, 1, 5, 3]), (2, 0, [2, 8, 6, 4])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    layout = Batches.of(micro_batch, torch.double)
    assert [batch.mask(torch.double, None).shape for batch in layout.responses] == [
        (2, 1, t, 3 + t) for t in (9, 6, 4, 2)]
    assert len(layout.responses) == BATCHES


@settings(max_examples=50, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60))
def test_every_token_has_one_slot(sizes, slack):
    groups = random_groups(sizes)
    for micro_batch in pack(groups, random_advantages(groups), 200 + slack, CPU):
        layout = Batches.of(micro_batch, torch.double)
        real = micro_batch.branch_ids.flatten() >= PREFIX
        numbers = torch.arange(len(real))
        assert torch.equal(layout.tokens[layout.slots][real], numbers[real])
        assert torch.equal(layout.padding, numbers[~real])
        assert len(layout.tokens) - len(layout.empty) == real.sum() and sum(layout.sizes) == len(layout.tokens)


# ---- where it is not right ----


def test_a_model_whose_attention_it_changes_falls_back_aloud(monkeypatch, capsys):
    """Here one that weighs some tokens more than others."""
    assert scorer(model_of(Qwen2ForCausalLM)).layout_of == Batches.of
    plain = _mask
    monkeypatch.setattr(response_batches, "_mask", lambda *about: plain(*about) + 0.5 * (plain(*about) == 0).tril())
    groups = random_groups([(4, 2, [5, 2]), (3, 1, [2])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    actor = scorer(model_of(Qwen2ForCausalLM))
    assert actor.layout_of == Masked.of
    assert "by Batches (utils/layouts.py) changes the log-probabilities of this model by" in capsys.readouterr().err
    monkeypatch.undo()
    torch.testing.assert_close(actor(micro_batch), scorer(model_of(Qwen2ForCausalLM))(micro_batch), **CLOSE)


def test_not_a_number_is_too_large_a_difference(monkeypatch, capsys):
    monkeypatch.setattr(response_batches, "_mask", lambda *about: _mask(*about) * torch.nan)
    assert scorer(model_of(Qwen2ForCausalLM)).layout_of == Masked.of
    assert "of this model by nan" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(("factor", "is_taken"), [(2, True), (9, False)])
def test_another_way_may_be_as_far_from_the_exact_as_the_mask_is_but_not_much_further(monkeypatch, factor, is_taken):
    """Kernels of low precision differ by more than the fixed limit; what counts is the noise that is there anyway."""
    def noisy(size):
        return lambda query, *others: fused(query * (1 + size), *others)

    monkeypatch.setattr(layouts, "fused", noisy(1e-4))
    monkeypatch.setattr(response_batches, "fused", noisy(factor * 1e-4))
    assert scorer(model_of(Qwen2ForCausalLM)).layout_of == (Batches.of if is_taken else Masked.of)


# ---- on a GPU ----


def test_where_variable_length_attention_is_tried(monkeypatch):
    config, gpu = Qwen2Config(hidden_size=64, num_attention_heads=4), torch.device("cuda", 0)
    capability = {"value": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability["value"])
    assert kinds_of_layouts(gpu, torch.bfloat16, config) == [Runs, Batches]
    assert kinds_of_layouts(gpu, torch.float32, config) == kinds_of_layouts(CPU, torch.bfloat16, config) == [Batches]
    sizes = (Qwen2Config(hidden_size=4 * elements, num_attention_heads=4) for elements in (15, 264))
    for config in (*sizes, Gemma2Config()):  # whose scores have a soft cap
        assert kinds_of_layouts(gpu, torch.bfloat16, config) == [Batches]
    capability["value"] = (7, 5)
    assert kinds_of_layouts(gpu, torch.bfloat16, Qwen2Config()) == [Batches]


def test_pytorchs_attention_takes_what_runs_give_it():
    """Its shapes and types, on tensors that hold nothing; gradients where this PyTorch can."""
    micro_batch = trial(31, CPU)
    runs = Runs.of(micro_batch, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key, value = (torch.empty(3, heads, 15, 64, dtype=torch.bfloat16, requires_grad=True)
                             for heads in (4, 2, 2))
        mixed = runs.mix(None, query, key, value, Scores(0.7, 4))
        mixed.sum().backward()
    assert mixed.shape == (3, 15, 4, 64) and mixed.dtype == torch.bfloat16
    assert key.grad.shape == key.shape and query.grad.shape == query.shape


def test_gradients_of_a_shared_prefix_are_added_in_float32():
    """A thousand responses to it: in bfloat16 the sum would stop at 256."""
    rows = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    Repeat.apply(rows, torch.tensor([0] * 1000 + [1])).sum().backward()
    assert rows.grad.tolist() == [[1000.0] * 3, [1.0] * 3]


def test_cudnn_is_not_asked():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_rows_it_is_tried_on_are_of_all_kinds():
    micro_batch = trial(31, CPU)
    layout = Batches.of(micro_batch, torch.double)
    assert micro_batch.input_ids.shape == (3, 15) and micro_batch.input_ids.max() < 31
    assert len(layout.padding) > 0 and len(layout.empty) > 0 and len(layout.responses) == BATCHES
    assert len(layout.prefixes.parents) == 4 and (micro_batch.segment_ids == 1).any()


def test_without_a_layout_it_is_the_attention_of_transformers():
    """What generates with the same model passes masks of two dimensions."""
    ids = torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    model, plain = tiny_model(), tiny_model()
    scorer(model)
    assert (model.config._attn_implementation, plain.config._attn_implementation) == (attention.NAME, "sdpa")
    ours, theirs = (some(input_ids=ids, attention_mask=mask).logits for some in (model, plain))
    assert torch.equal(ours, theirs)
