"""Attention by response against attention under a mask, on rows of every kind."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from tests.helpers.float64 import CLOSE
from tests.helpers.models import CPU, group_length, group_sizes, random_advantages, random_groups, scorer, tiny_model
from utils import attention
from utils.attention import BATCHES, make_layout
from utils.packing import filler, pack, trial
from utils.types import PADDING, PREFIX

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
KINDS = Qwen2ForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM, MistralForCausalLM


@cache
def model_of(kind):
    return tiny_model(kind, seed=1)


def layout_of(segment_ids: list[list[int]], branch_ids: list[list[int]]):
    return make_layout(torch.tensor(segment_ids), torch.tensor(branch_ids), CPU, torch.double)


def scores_and_gradients(model, micro_batch, by_response: bool):
    actor = scorer(model)
    actor.by_response = by_response
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
        torch.testing.assert_close(scores_and_gradients(model_of(kind), micro_batch, by_response=True),
                                   scores_and_gradients(model_of(kind), micro_batch, by_response=False),
                                   **CLOSE)


def test_the_scale_of_the_scores_is_the_models():
    micro_batch, random = trial(31, CPU), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 15, 6, generator=random) for heads in (4, 2, 2))
    layout = make_layout(micro_batch.segment_ids, micro_batch.branch_ids, CPU, torch.double)
    expected = F.scaled_dot_product_attention(query, key, value, micro_batch.attention_mask, scale=0.9, enable_gqa=True)
    actual, _ = attention.attend(None, query, key, value, None, scaling=0.9, layout=layout)
    real = micro_batch.branch_ids != PADDING
    torch.testing.assert_close(actual[real], expected.transpose(1, 2)[real], **CLOSE)


def test_padding_gets_no_gradient():
    """Its embedding is token 0's, which appears nowhere else."""
    groups = random_groups([(4, 0, [6, 2]), (3, 0, [2])])
    groups[0][0].prompt.prompt_ids[0] = 3  # the rest is drawn from 1 on
    [micro_batch] = pack(groups, random_advantages(groups), 24, CPU)
    assert (micro_batch.branch_ids == PADDING).sum() > 0
    model = tiny_model(LlamaForCausalLM)
    actor = scorer(model)
    assert actor.by_response
    actor(micro_batch)[0].sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[0].abs().max() == 0 and gradient[3].abs().max() > 0


def test_a_prompt_of_one_token_without_responses():
    logprobs, _ = scorer(model_of(Qwen2ForCausalLM))(filler(CPU))
    assert torch.isfinite(logprobs).all()


# ---- the layout ----


def test_a_layout_written_out():
    """Row 0: a prefix of 2 with responses of 1 and 2; row 1: a prefix of 3, one without responses, padding."""
    layout = layout_of([[0, 0, 0, 0, 0], [0, 0, 0, 1, -1]],
                       [[0, 0, 1, 2, 2], [0, 0, 0, 0, PADDING]])
    assert layout.num_prefixes == 3 and layout.sizes == [9, 2, 1]
    assert layout.tokens.tolist() == [0, 1, 0, 5, 6, 7, 8, 0, 0, 3, 4, 2]
    assert layout.empty.tolist() == [2, 7, 8] and layout.padding.tolist() == [9]
    assert layout.slots.tolist() == [0, 1, 11, 9, 10, 3, 4, 5, 6, 0]
    longer, shorter = layout.batches
    assert longer.parents.tolist() == shorter.parents.tolist() == [0]
    assert (longer.mask == 0)[0, 0].int().tolist() == [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert (shorter.mask == 0)[0, 0].int().tolist() == [[1, 1, 0, 1]]
    assert set(torch.cat([batch.mask.flatten() for batch in layout.batches]).tolist()) == {0.0, -torch.inf}


def test_responses_of_like_lengths_are_computed_together():
    groups = random_groups([(3, 0, [9, 1, 5, 3]), (2, 0, [2, 8, 6, 4])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    layout = make_layout(micro_batch.segment_ids, micro_batch.branch_ids, CPU, torch.double)
    assert [batch.mask.shape for batch in layout.batches] == [(2, 1, t, 3 + t) for t in (9, 6, 4, 2)]
    assert len(layout.batches) == BATCHES


@settings(max_examples=50, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60))
def test_every_token_has_one_slot(sizes, slack):
    groups = random_groups(sizes)
    for micro_batch in pack(groups, random_advantages(groups), 200 + slack, CPU):
        layout = make_layout(micro_batch.segment_ids, micro_batch.branch_ids, CPU, torch.double)
        real = micro_batch.branch_ids.flatten() >= PREFIX
        numbers = torch.arange(len(real))
        assert torch.equal(layout.tokens[layout.slots][real], numbers[real])
        assert torch.equal(layout.padding, numbers[~real])
        assert len(layout.tokens) - len(layout.empty) == real.sum() and sum(layout.sizes) == len(layout.tokens)


# ---- where it is not right ----


def test_a_model_whose_attention_it_changes_falls_back_aloud(monkeypatch, capsys):
    """Here one that weighs some tokens more than others."""
    assert scorer(model_of(Qwen2ForCausalLM)).by_response
    plain = attention._mask
    monkeypatch.setattr(attention, "_mask", lambda *about: plain(*about) + 0.5 * (plain(*about) == 0).tril())
    groups = random_groups([(4, 2, [5, 2]), (3, 1, [2])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    actor = scorer(model_of(Qwen2ForCausalLM))
    assert not actor.by_response
    assert "changes the log-probabilities of this model by" in capsys.readouterr().err
    monkeypatch.undo()
    torch.testing.assert_close(actor(micro_batch), scorer(model_of(Qwen2ForCausalLM))(micro_batch), **CLOSE)


def test_not_a_number_is_too_large_a_difference(monkeypatch, capsys):
    plain = attention._mask
    monkeypatch.setattr(attention, "_mask", lambda *about: plain(*about) * torch.nan)
    assert not scorer(model_of(Qwen2ForCausalLM)).by_response
    assert "of this model by nan" in capsys.readouterr().err.replace("\n", " ")


def test_the_rows_it_is_tried_on_are_of_all_kinds():
    micro_batch = trial(31, CPU)
    layout = make_layout(micro_batch.segment_ids, micro_batch.branch_ids, CPU, torch.double)
    assert micro_batch.input_ids.shape == (3, 15) and micro_batch.input_ids.max() < 31
    assert len(layout.padding) > 0 and len(layout.empty) > 0 and len(layout.batches) == BATCHES
    assert layout.num_prefixes == 4 and (micro_batch.segment_ids == 1).any()


def test_without_a_layout_it_is_the_attention_of_transformers():
    """What generates with the same model passes masks of two dimensions."""
    ids = torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    model, plain = tiny_model(), tiny_model()
    scorer(model)
    assert (model.config._attn_implementation, plain.config._attn_implementation) == (attention.NAME, "sdpa")
    ours, theirs = (some(input_ids=ids, attention_mask=mask).logits for some in (model, plain))
    assert torch.equal(ours, theirs)
