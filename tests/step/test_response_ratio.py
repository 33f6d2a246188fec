"""GSPO: one ratio for each response, and responses that weigh the same whatever their length. By hand, and against
plain PyTorch on padded rows; the loss is the lines of the scripts as they stand."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from tests.helpers.float64 import CLOSE
from tests.helpers.models import (
    CPU,
    counted_by_script,
    group_length,
    losses_of_script,
    make_prompt,
    random_groups,
    scorer,
    tiny_model,
    with_noise,
)
from training import hpt, rft, uft
from utils.losses import clipped_surrogate, mean_by
from utils.packing import filler, pack, with_logprobs
from utils.responses import by_response, owners_of
from utils.types import Rollout

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
GSPO = {"clip_eps": 3e-4, "clip_eps_high": 4e-4}
FLAGS = GSPO | {"kl_coef": 0.0, "entropy_coef": 0.0, "sft_coef": 0.0, "old_logprobs": "actor"}


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **(CLOSE | tolerance))


def by_script(script, micro_batches, actor, **flags):
    """The sum of the script's losses of these micro-batches, which are a mini-batch, with --ratio response."""
    mini_batch = by_response(micro_batches)
    numbers = counted_by_script(script, mini_batch)
    return sum(losses_of_script(script, one, actor, numbers=numbers, **(FLAGS | flags))["loss"] for one in mini_batch)


# ----- by hand -----


@pytest.mark.parametrize(("advantage", "loss", "gradient"), [(1.0, -1.0004, 0.0), (-1.0, 1.02020, 0.51010)])
def test_one_ratio_by_hand(advantage, loss, gradient):
    """Log-ratios .01 and .03: exp(.02)."""
    log_ratios = torch.tensor([0.01, 0.03], requires_grad=True)
    surrogate = clipped_surrogate(log_ratios, torch.zeros(2), torch.full((2,), advantage), **GSPO,
                                  owners=torch.zeros(2, dtype=torch.long))
    close(surrogate.detach(), [loss] * 2, atol=1e-5, rtol=0)
    surrogate.mean().backward()
    close(log_ratios.grad, [gradient] * 2, atol=1e-5, rtol=0)


def test_a_ratio_is_of_its_own_response_and_truncated_as_one():
    log_ratios, owners = torch.tensor([0.0, 2.0, -1.0, 5.0]), torch.tensor([0, 0, 1, 2])
    close(mean_by(log_ratios, owners), [1.0, 1.0, -1.0, 5.0])
    close(clipped_surrogate(log_ratios, torch.zeros(4), -torch.ones(4), 1e9, max_ratio=3.0, owners=owners),
          [math.e, math.e, math.exp(-1), 3.0])


def test_responses_weigh_alike_by_hand():
    """Two of 1 and 3 tokens at ratio 1, advantages .75 and -.25: a mean over responses, not tokens (which gives 0)."""
    prompt = make_prompt([2, 3])
    group = [Rollout(prompt, [7] * length, [0.0] * length, "stop") for length in (1, 3)]
    micro_batches = pack([group], [[0.75, -0.25]], 20, CPU)
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    loss = by_script(rft, micro_batches, lambda _: (logprobs, torch.zeros(4)))
    close(loss.detach(), -0.25)
    loss.backward()
    close(logprobs.grad, [-0.375, 1 / 24, 1 / 24, 1 / 24])


# ----- which token belongs to which response -----


SIZES = [(4, 3, [5, 1, 6]), (3, 0, [2, 1]), (2, 2, [1, 3, 3]), (6, 0, [4])]


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("budget", [21, 30, 200])
def test_owners_are_responses_however_they_are_packed(share_prefix, budget):
    groups = random_groups(SIZES)
    groups[1][-1] = replace(groups[1][-1], demonstration=True)
    found, num_hints = [], 0
    for one in [*pack(groups, [[1.0] * len(group) for group in groups], budget, CPU, share_prefix), filler(CPU)]:
        owners = owners_of(one)
        for owner in owners.unique():
            mine = owners == owner
            kinds = torch.stack([one.response_mask, one.hint_mask, one.demonstration_mask])[:, mine]
            assert (kinds == kinds[:, :1]).all()
            num_hints += int(kinds[1].any()) * int(mine.sum() == 1)
            found += [one.targets[mine].tolist()] * bool(kinds[[0, 2]].any())
    assert sorted(found) == sorted(member.response_ids for group in groups for member in group)
    assert num_hints == 5


# ----- against plain rows -----


def plain_gspo(model, old, groups, advantages):
    """The formula of the paper on right-padded rows."""
    members = [(one, advantage) for group, of_group in zip(groups, advantages, strict=True)
               for one, advantage in zip(group, of_group, strict=True) if not one.demonstration]
    rows = [one.prompt.prompt_ids + one.prompt.hint_ids + one.response_ids for one, _ in members]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    is_response, attended = torch.zeros(2, *ids.shape, dtype=torch.bool)
    for r, ((one, _), row) in enumerate(zip(members, rows, strict=True)):
        ids[r, : len(row)], attended[r, : len(row)] = torch.tensor(row), True
        is_response[r, len(row) - len(one.response_ids) : len(row)] = True
    new, before = (some(input_ids=ids, attention_mask=attended.long()).logits[:, :-1].log_softmax(-1)
                   .gather(-1, ids[:, 1:, None])[..., 0] for some in (model, old))
    mask = is_response[:, 1:]
    log_ratios = torch.where(mask, new - before.detach(), 0.0).sum(1) / mask.sum(1)
    ratio, advantage = log_ratios.exp(), torch.tensor([advantage for _, advantage in members])
    losses = -torch.minimum(ratio * advantage, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantage)
    clipped = (losses != -ratio * advantage).sum()
    assert 0 < clipped < len(losses)
    return losses.mean()


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("slack", [0, 20, 200])
@pytest.mark.parametrize("script", [rft, uft, hpt], ids=lambda script: script.__name__)
def test_loss_and_all_gradients_equal_those_of_padded_rows(script, slack, share_prefix):
    """Also behind hints, and beside a demonstration: there tokens of both kinds share a normaliser."""
    groups = random_groups(SIZES)
    if script is hpt:
        groups[1] = [*groups[1], replace(groups[1][0], demonstration=True)]
    random = torch.Generator().manual_seed(5)
    advantages = [torch.randn(len(group), generator=random).tolist() for group in groups]
    model = tiny_model(Qwen2ForCausalLM, seed=1)
    old = with_noise(model, 0.003, seed=2)
    expected = plain_gspo(model, old, groups, advantages)
    if script is hpt:
        expected = expected * 26 / 28
    actor, sampler = scorer(model), scorer(old)
    packed = pack(groups, advantages, max(map(group_length, groups)) + slack, CPU, share_prefix)
    actual = by_script(script, [*(with_logprobs(one, sampler, None) for one in packed), with_logprobs(
        filler(CPU), sampler, None)], actor)
    torch.testing.assert_close(actual, expected, **CLOSE)
    for one, other in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in (actual, expected)),
                          strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_hints_and_demonstrations_keep_their_advantages_and_a_hint_token_its_own_ratio():
    groups = random_groups(SIZES)
    groups[1][-1] = replace(groups[1][-1], demonstration=True)
    [before] = pack(groups, [[float(n + 2) for n in range(len(group))] for group in groups], 200, CPU)
    [after] = by_response([before])
    others = ~before.response_mask
    assert others.sum() == 6 and torch.equal(after.advantages[others], before.advantages[others])
    log_ratios = torch.randn(len(others), generator=torch.Generator().manual_seed(1))
    close(mean_by(log_ratios, after.owners)[before.hint_mask], log_ratios[before.hint_mask])
    weights = (after.advantages / before.advantages)[before.response_mask]
    close(weights.sum(), float(before.response_mask.sum()))


def test_a_mini_batch_without_responses_has_no_weights():
    [one] = by_response([filler(CPU)])
    assert one.advantages.tolist() == [0.0]
