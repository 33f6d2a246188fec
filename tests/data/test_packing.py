"""Packed rows with shared prefixes against the plain computation: one right-padded row a rollout, all logits."""

import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from tests.helpers.float64 import CLOSE
from tests.helpers.models import (
    CPU,
    EOS,
    group_length,
    group_sizes,
    losses_of_script,
    make_problem,
    make_prompt,
    random_advantages,
    random_groups,
    scorer,
    tiny_model,
    with_noise,
)
from training import adaback, dapo, ghpo, r3, relift, rft, sft, stage, uft, uft_adaptive
from utils import packing
from utils.metrics import count_tokens
from utils.packing import fill_up, filler, pack, pack_mini_batches, with_logprobs
from utils.response_batches import Batches
from utils.types import Prompt, Rollout

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
FLAGS = {"clip_eps": 0.2, "kl_coef": 0.3, "entropy_coef": 0.2, "sft_coef": 0.5, "old_logprobs": "actor"}
SIZES = [(4, 3, [5, 1, 6, 2]), (2, 0, [1, 1, 3]), (6, 2, [2]), (3, 5, [4, 4])]  # as in models.random_groups


@cache
def model_of(kind):
    return tiny_model(kind, seed=1)


# ---- the plain computation ----


def plain_scores(model, groups, temperature=1.0):
    """For every rollout the log-probabilities of the tokens after its first one, and the entropies they come from."""
    rollouts = [rollout for group in groups for rollout in group]
    rows = [rollout.prompt.prompt_ids + rollout.prompt.hint_ids + rollout.response_ids for rollout in rollouts]
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits / temperature
    logprobs = logits.log_softmax(dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
    scored = logprobs[:, :-1].gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    flat = [(scored[r, : len(row) - 1], entropies[r, : len(row) - 1]) for r, row in enumerate(rows)]
    parts = iter(flat)
    return [[next(parts) for _ in group] for group in groups]


def plain_loss(groups, advantages, scores, old_scores, ref_scores):
    """UFT's loss, token by token: hints once a group, responses once a rollout."""
    terms = {"response": [], "hint": []}
    for p, group in enumerate(groups):
        prompt = group[0].prompt
        start = len(prompt.prompt_ids) - 1  # index of the first scored token's log-probability
        hint_end = start + len(prompt.hint_ids)
        terms["hint"] += list(-scores[p][0][0][start:hint_end])
        for g in range(len(group)):
            for n in range(hint_end, len(scores[p][g][0])):
                logprob, entropy = scores[p][g][0][n], scores[p][g][1][n]
                ratio = (logprob - old_scores[p][g][0][n]).exp()
                d = ref_scores[p][g][0][n] - logprob
                gain = torch.minimum(ratio * advantages[p][g], ratio.clamp(0.8, 1.2) * advantages[p][g])
                k3 = d.exp() - d - 1
                terms["response"].append(-gain + FLAGS["kl_coef"] * k3 - FLAGS["entropy_coef"] * entropy)
    hint_loss = torch.stack(terms["hint"]).mean() if terms["hint"] else 0.0
    return torch.stack(terms["response"]).mean() + FLAGS["sft_coef"] * hint_loss


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def packed_loss(script, micro_batches, actor, reference, old):
    """The script's loss over a mini-batch, its normalisers counted as the script counts them."""
    numbers = {"num_response_tokens": count_tokens([micro_batch.response_mask for micro_batch in micro_batches]),
               "num_hint_tokens": count_tokens([micro_batch.hint_mask for micro_batch in micro_batches])}
    return sum(losses_of_script(script, with_logprobs(micro_batch, old, reference), actor, reference, **numbers,
                                **FLAGS)["loss"] for micro_batch in micro_batches)


def context_of(micro_batch, state: int):
    """(ids, positions) that the state at a flat index sees, itself included, in the order of the row."""
    r, column = divmod(state, micro_batch.input_ids.shape[1])
    seen = micro_batch.attention_mask[r, 0, column]
    return tuple(micro_batch.input_ids[r, seen].tolist()), micro_batch.position_ids[r, seen].tolist()


# ---- values and gradients ----


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), seed=st.integers(0, 99))
def test_scores_equal_those_of_plain_rows(kind, share_prefix, sizes, slack, seed):
    groups = random_groups(sizes, seed)
    expected = {}
    with torch.no_grad():
        for group, scores in zip(groups, plain_scores(model_of(kind), groups, temperature=0.7), strict=True):
            for rollout, (logprobs, entropies) in zip(group, scores, strict=True):
                ids = rollout.prompt.prompt_ids + rollout.prompt.hint_ids + rollout.response_ids
                for n in range(1, len(ids)):
                    expected[tuple(ids[:n]), ids[n]] = logprobs[n - 1].item(), entropies[n - 1].item()
        actor = scorer(model_of(kind), temperature=0.7)
        for micro_batch in pack(groups, random_advantages(groups), max(map(group_length, groups)) + slack, CPU,
                                share_prefix):
            keys = [(context_of(micro_batch, state)[0], target)
                    for state, target in zip(micro_batch.predictors.tolist(), micro_batch.targets.tolist(),
                                             strict=True)]
            torch.testing.assert_close(torch.stack(actor(micro_batch), dim=1),
                                       torch.tensor([expected[key] for key in keys]), **CLOSE)


@pytest.mark.parametrize("share_prefix", [True, False])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), seed=st.integers(0, 99), data=st.data())
def test_uft_loss_and_all_gradients_equal_those_of_plain_rows(share_prefix, sizes, slack, seed, data):
    """Whatever the token budget and the order of the groups."""
    groups = random_groups(sizes, seed)
    advantages = random_advantages(groups, seed)
    actor = model_of(Qwen2ForCausalLM)
    old, reference = with_noise(actor, 0.03, seed=2), with_noise(actor, 0.05, seed=3)
    with torch.no_grad():
        old_scores, ref_scores = plain_scores(old, groups), plain_scores(reference, groups)
    expected = plain_loss(groups, advantages, plain_scores(actor, groups), old_scores, ref_scores)

    order = data.draw(st.permutations(range(len(groups))))
    micro_batches = pack([groups[i] for i in order], [advantages[i] for i in order],
                         max(map(group_length, groups)) + slack, CPU, share_prefix)
    actual = packed_loss(uft, micro_batches, scorer(actor), scorer(reference), scorer(old))

    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(gradients(actor, actual), gradients(actor, expected), **CLOSE)


def test_without_hints_rft_and_uft_have_the_same_loss():
    groups = random_groups([(prompt, 0, responses) for prompt, _, responses in SIZES])
    micro_batches = pack(groups, random_advantages(groups), 40, CPU)
    actor, old, reference = (scorer(with_noise(model_of(Qwen2ForCausalLM), 0.03, seed)) for seed in (4, 5, 6))
    assert torch.equal(packed_loss(rft, micro_batches, actor, reference, old),
                       packed_loss(uft, micro_batches, actor, reference, old))


@pytest.mark.parametrize("max_tokens", [14, 25, 200])
def test_sft_is_the_mean_negative_log_likelihood_of_the_demonstrations(max_tokens):
    """An empty response: the demonstration is the hint, nothing else is scored."""
    model = model_of(Qwen2ForCausalLM)
    groups = [[Rollout(group[0].prompt, [], [], "stop")]
              for group in random_groups([(3, 5, [1]), (6, 8, [1]), (1, 1, [1]), (2, 7, [1]), (2, 2, [1])])]
    nll = [-logprob for [[logprobs, _]], [rollout] in zip(plain_scores(model, groups), groups, strict=True)
           for logprob in logprobs[len(rollout.prompt.prompt_ids) - 1 :]]
    expected = torch.stack(nll).mean()
    assert len(nll) == 5 + 8 + 1 + 7 + 2
    micro_batches = pack(groups, [[0.0]] * len(groups), max_tokens, CPU)
    actual = packed_loss(sft, micro_batches, scorer(model), None, None)
    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(gradients(model, actual), gradients(model, expected), **CLOSE)


# ---- every token, once, in its context ----


@pytest.mark.parametrize("share_prefix", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), seed=st.integers(0, 99))
def test_every_token_is_scored_once_after_exactly_what_it_was_sampled_after(share_prefix, sizes, slack, seed):
    """Hints once a group, with the sum of its advantages; response tokens once a rollout, with the advantage and the
    engine's log-probability of that rollout. A state sees the ids before its target, at positions 0, 1, 2, ..., and
    nothing else."""
    groups = random_groups(sizes, seed)
    advantages = random_advantages(groups, seed)
    expected = Counter()
    for group, of_group in zip(groups, advantages, strict=True):
        prompt = group[0].prompt
        before = tuple(prompt.prompt_ids)
        for token in prompt.hint_ids:
            expected[before, token, "hint", round(sum(of_group), 4), 0.0] += 1
            before += (token,)
        for rollout, advantage in zip(group, of_group, strict=True):
            seen = before
            for token, logprob in zip(rollout.response_ids, rollout.logprobs, strict=True):
                expected[seen, token, "response", round(advantage, 4), round(logprob, 4)] += 1
                seen += (token,)

    actual = Counter()
    for micro_batch in pack(groups, advantages, max(map(group_length, groups)) + slack, CPU, share_prefix):
        assert torch.equal(micro_batch.response_mask, ~micro_batch.hint_mask)
        for n, state in enumerate(micro_batch.predictors.tolist()):
            ids, positions = context_of(micro_batch, state)
            assert positions == list(range(len(ids)))
            actual[ids, micro_batch.targets[n].item(), "hint" if micro_batch.hint_mask[n] else "response",
                   round(micro_batch.advantages[n].item(), 4), round(micro_batch.engine_logprobs[n].item(), 4)] += 1
    assert actual == expected


def test_the_eos_that_ended_a_response_is_scored():
    prompt = make_prompt([5, 6], [7])
    group = [Rollout(prompt, [8, EOS], [-1.0, -2.0], "stop"), Rollout(prompt, [EOS], [-3.0], "stop"),
             Rollout(prompt, [9, 8], [-4.0, -5.0], "length")]
    [micro_batch] = pack([group], [[1.0, 2.0, 3.0]], 8, CPU)
    assert micro_batch.input_ids.tolist() == [[5, 6, 7, 8, EOS, EOS, 9, 8]]
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4]]
    assert micro_batch.predictors.tolist() == [1, 2, 3, 2, 2, 6]
    assert micro_batch.targets.tolist() == [7, 8, EOS, EOS, 9, 8]
    assert micro_batch.hint_mask.tolist() == [True, False, False, False, False, False]
    assert micro_batch.advantages.tolist() == [6, 1, 1, 2, 3, 3]
    assert micro_batch.engine_logprobs.tolist() == [0, -1, -2, -3, -4, -5]
    assert (micro_batch.old_logprobs, micro_batch.ref_logprobs) == (None, None)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), share_prefix=st.booleans())
def test_no_micro_batch_is_larger_than_the_budget_padding_included(sizes, slack, share_prefix):
    groups = random_groups(sizes)
    budget = max(map(group_length, groups)) + slack
    micro_batches = pack(groups, random_advantages(groups), budget, CPU, share_prefix)
    assert all(micro_batch.input_ids.numel() <= budget for micro_batch in micro_batches)
    assert all(micro_batch.attention_mask.shape == (r, 1, length, length)
               for micro_batch in micro_batches for r, length in [micro_batch.input_ids.shape])


def test_short_groups_share_rows_and_micro_batches():
    """Groups of 4, 10 and 6 tokens: two full rows of 10 where the budget is 20, else a row of 10 and two of 6."""
    groups = random_groups([(1, 1, [2]), (4, 2, [2, 2]), (2, 0, [2, 2])])
    for budget, shapes in ((20, [(2, 10)]), (19, [(1, 10), (2, 6)]), (11, [(1, 10), (1, 6), (1, 4)])):
        micro_batches = pack(groups, random_advantages(groups), budget, CPU)
        assert [micro_batch.input_ids.shape for micro_batch in micro_batches] == shapes


def test_packing_does_not_write_to_its_arguments():
    groups = random_groups(SIZES)
    advantages = random_advantages(groups)
    before = deepcopy((groups, advantages))
    for share_prefix in (True, False):
        micro_batches = pack(groups, advantages, 40, CPU, share_prefix)
        pack_mini_batches(groups, advantages, 2, 40, CPU, share_prefix)
        tensors = [deepcopy(vars(micro_batch)) for micro_batch in micro_batches]
        packed_loss(uft, micro_batches, *[scorer(model_of(Qwen2ForCausalLM))] * 3)
        for micro_batch, old in zip(micro_batches, tensors, strict=True):
            assert all(value is old[name] or torch.equal(value, old[name]) for name, value in vars(micro_batch).items())
    assert (groups, advantages) == before


# ---- which token gets which loss ----


def losses_and_leaf(seed=0, hint_advantage=0.0, script=uft, **flags):
    """The script's losses of a packed batch, as functions of log-probabilities and entropies that are leaves."""
    groups = random_groups(SIZES)
    [micro_batch] = pack(groups, random_advantages(groups, seed), 300, CPU)
    micro_batch = replace(micro_batch, advantages=micro_batch.advantages + hint_advantage * micro_batch.hint_mask)
    model = scorer(model_of(Qwen2ForCausalLM))
    micro_batch = with_logprobs(micro_batch, model, model)
    noise = torch.randn(2, len(micro_batch.targets), generator=torch.Generator().manual_seed(0))
    leaf = (micro_batch.old_logprobs + 0.05 * noise).requires_grad_()  # few ratios are clipped
    losses = losses_of_script(
        script, micro_batch, lambda _: (leaf[0], leaf[1]), model,
        num_response_tokens=micro_batch.response_mask.sum(), num_hint_tokens=micro_batch.hint_mask.sum(),
        **(FLAGS | flags),
    )
    return losses, leaf, micro_batch


def test_hint_tokens_get_no_policy_gradient_no_kl_and_no_entropy():
    """By the mask alone: the hint tokens have advantages."""
    losses, leaf, micro_batch = losses_and_leaf(hint_advantage=1.0)
    for name in ("pg_loss", "kl_loss", "entropy"):
        [gradient] = torch.autograd.grad(losses[name], leaf, retain_graph=True)
        assert gradient[:, micro_batch.hint_mask].abs().max() == 0, name
        assert gradient[:, micro_batch.response_mask].abs().max() > 0, name


def test_response_tokens_get_no_sft_loss():
    losses, leaf, micro_batch = losses_and_leaf()
    [gradient] = torch.autograd.grad(losses["sft_loss"], leaf)
    num_hint_tokens = 3 + 2 + 5
    assert gradient[1].abs().max() == 0
    torch.testing.assert_close(gradient[0], torch.where(micro_batch.hint_mask, -1 / num_hint_tokens, 0.0), **CLOSE)


def test_advantages_do_not_reach_hint_tokens():
    gradient_of = {}
    for seed in (1, 2):
        losses, leaf, micro_batch = losses_and_leaf(seed)
        [gradient_of[seed]] = torch.autograd.grad(losses["loss"], leaf)
    hint, response = micro_batch.hint_mask, micro_batch.response_mask
    assert torch.equal(gradient_of[1][:, hint], gradient_of[2][:, hint])
    assert not torch.equal(gradient_of[1][:, response], gradient_of[2][:, response])


def test_coefficients_weigh_the_losses():
    losses, *_ = losses_and_leaf()
    expected = losses["pg_loss"] + 0.3 * losses["kl_loss"] - 0.2 * losses["entropy"] + 0.5 * losses["sft_loss"]
    torch.testing.assert_close(losses["loss"], expected, **CLOSE)


def test_scripts_share_their_losses_up_to_the_sft_term():
    """Stage and adaptive UFT have UFT's loss, R3, AdaBack, GHPO, DAPO and ReLIFT's samples RFT's, and without sft_coef
    UFT has RFT's ("RFT (cosine)"), hints or not."""

    def loss_and_gradient(script, **flags):
        losses, leaf, _ = losses_and_leaf(script=script, **flags)
        return losses["loss"].item(), torch.autograd.grad(losses["loss"], leaf)[0].tolist()

    of_uft, of_rft = loss_and_gradient(uft), loss_and_gradient(rft)
    assert loss_and_gradient(stage) == loss_and_gradient(uft_adaptive) == of_uft != of_rft
    assert all(loss_and_gradient(script) == of_rft for script in (r3, adaback, ghpo, dapo, relift))
    assert loss_and_gradient(uft, sft_coef=0.0) == of_rft


@pytest.mark.parametrize("script", [rft, uft])
def test_the_gradient_without_old_logprobs_is_that_of_the_policy_gradient(script):
    """One update a step: the ratio is 1, but its gradient is not 0. Without a reference kl_loss is 0."""
    groups = random_groups(SIZES)
    [micro_batch] = pack(groups, random_advantages(groups), 300, CPU)
    leaf = torch.randn(2, len(micro_batch.targets), generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = losses_of_script(script, micro_batch, lambda _: (leaf[0], leaf[1]), None,
                              num_response_tokens=10, num_hint_tokens=10, **FLAGS)
    [gradient] = torch.autograd.grad(losses["pg_loss"], leaf)
    expected = torch.where(micro_batch.response_mask, -micro_batch.advantages / 10, 0.0)
    torch.testing.assert_close(gradient[0], expected, **CLOSE)
    assert losses["kl_loss"] == 0


# ---- ranks and mini-batches ----


def test_a_filler_adds_exactly_nothing_but_is_attached():
    actor, other = model_of(Qwen2ForCausalLM), scorer(model_of(LlamaForCausalLM))
    for script in (rft, uft, sft):
        loss = packed_loss(script, [filler(CPU)], scorer(actor), other, other)
        assert loss.requires_grad and loss.item() == 0.0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(actor, loss).values())


def test_fillers_follow_until_the_count_is_reached():
    groups = random_groups(SIZES)
    micro_batches = pack(groups, random_advantages(groups), 40, CPU)
    filled = fill_up(micro_batches, len(micro_batches) + 2, CPU)
    assert len(filled) == len(micro_batches) + 2
    assert all(new is old for new, old in zip(filled, micro_batches, strict=False))
    for extra in filled[len(micro_batches) :]:
        assert not (extra.response_mask | extra.hint_mask).any()
    assert fill_up(micro_batches, len(micro_batches), CPU) == micro_batches


@pytest.mark.parametrize("num_updates", [1, 2, 4])
def test_mini_batches_are_equal_parts_of_the_groups_in_order(num_updates):
    groups = random_groups([(2, 1, [1, 2])] * 8)
    parts = pack_mini_batches(groups, [[float(p), float(p)] for p in range(8)], num_updates, 20, CPU)
    assert len(parts) == num_updates
    for number, part in enumerate(parts):
        seen = {int(a) for micro_batch in part for a in micro_batch.advantages[micro_batch.response_mask]}
        size = 8 // num_updates
        assert seen == set(range(number * size, (number + 1) * size))


def test_every_rank_gets_as_many_micro_batches(monkeypatch):
    monkeypatch.setattr(packing.distributed, "maximum", lambda value: value + 3.0)  # another rank has three more
    groups = random_groups(SIZES)
    num_own = [len(pack(groups[i : i + 2], random_advantages(groups)[i : i + 2], 30, CPU)) for i in (0, 2)]
    parts = pack_mini_batches(groups, random_advantages(groups), 2, 30, CPU)
    assert [len(part) for part in parts] == [count + 3 for count in num_own]


def test_old_and_reference_logprobs_are_kept_apart_and_without_a_graph():
    groups = random_groups(SIZES)
    [micro_batch] = pack(groups, random_advantages(groups), 300, CPU)
    actor, reference = scorer(model_of(Qwen2ForCausalLM)), scorer(model_of(LlamaForCausalLM))
    both = with_logprobs(micro_batch, actor, reference)
    assert torch.equal(both.old_logprobs, actor(micro_batch)[0])
    assert torch.equal(both.ref_logprobs, reference(micro_batch)[0])
    assert not both.old_logprobs.requires_grad and not both.ref_logprobs.requires_grad
    neither = with_logprobs(micro_batch, None, None)
    assert (neither.old_logprobs, neither.ref_logprobs) == (None, None)


def test_the_examples_of_the_docstrings_are_right():
    def group(prompt, hint, *responses):
        built = Prompt(make_problem(), prompt, hint, len(hint))
        return [Rollout(built, ids, [0.0] * len(ids), "stop") for ids in responses]

    groups = [group([11, 12], [13], [21, 22], [31]), group([41], [], [51, 52], [61])]
    [micro_batch] = pack(groups, [[0.0, 0.0]] * 2, 12, CPU)
    lines = re.findall(r"^    (\w+_ids|targets|predictors) +([-\d| ]+)", packing.__doc__, re.MULTILINE)
    assert len(lines) == 6
    for name, numbers in lines:
        assert getattr(micro_batch, name).flatten().tolist() == [int(n) for n in numbers.replace("|", "").split()], name
    layout = Batches.of(micro_batch, torch.float)
    shown = dict(re.findall(r"^        (tokens|empty|padding) +([\d. ]+)", Batches.__doc__, re.MULTILINE))
    tokens = shown.pop("tokens").split()
    assert [int(token) for token in tokens if token != "."] == [
        token for slot, token in enumerate(layout.tokens.tolist()) if slot not in layout.empty]
    assert [slot for slot, token in enumerate(tokens) if token == "."] == layout.empty.tolist()
    assert {name: [int(n) for n in numbers.split()] for name, numbers in shown.items()} == {
        "empty": layout.empty.tolist(), "padding": layout.padding.tolist()}
