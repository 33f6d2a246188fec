"""The equations, as pure functions of tensors.

Letters used throughout the project: P problems, G group size, R rows, L row length, N scored tokens, V vocabulary.
A scored token is one whose probability under the policy enters a loss: hint tokens and response tokens.
"""

import math

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, with_std: bool = True) -> Tensor:
    """GRPO advantages, (P, G) -> (P, G): (reward - group mean) / (group standard deviation + 1e-6); without the
    division where `with_std` is off (Dr. GRPO, arXiv 2503.20783).

    The standard deviation is the unbiased one (divisor G - 1), as in the authors' code. A flat group gets exact zeros.
    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = centred / (rewards.std(dim=1, keepdim=True) + 1e-6) if with_std else centred
    return torch.where(flat_groups(rewards)[:, None], 0.0, advantages)


def length_penalty(lengths: Tensor, longest: int, share: float) -> Tensor:
    """What is added to the rewards of responses of these numbers of tokens, 0 to -1: it falls linearly over the last
    `share` of `longest` tokens.

    Source: DAPO (arXiv 2503.14476), equation 13.
    """
    return -(lengths - longest * (1 - share)).clamp(min=0) / max(longest * share, 1)


def flat_groups(rewards: Tensor) -> Tensor:
    """(P, G) -> (P,) bool: groups whose rewards are all equal and teach nothing."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)


def masked_mean(values: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    """This micro-batch's part of a mean over `num_tokens` tokens of the whole mini-batch: sum of `values` under `mask`.

    (N,), (N,) bool -> scalar. The parts of all micro-batches and ranks add up to the mean, however the work is cut.
    """
    return torch.where(mask, values, 0.0).sum() / max(num_tokens, 1)


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps: float, max_ratio: float = math.inf,
    clip_eps_high: float = 0.0, owners: Tensor | None = None,
) -> Tensor:
    """PPO's clipped surrogate as a loss per token, (N,): -min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A). The upper
    bound has an eps of its own where `clip_eps_high` is not 0 (DAPO, arXiv 2503.14476).

    The ratio is an importance weight, truncated at `max_ratio`: a token that the sampler thought far less likely than
    the policy does counts for no more, and beyond the cap teaches nothing. With `owners`, (N,) numbers of what tokens
    belong to, there is one ratio for all that an owner has, exp of the mean of their log-ratios (GSPO, arXiv
    2507.18071).

    Source: PPO (arXiv 1707.06347), equation 7; truncation as in IMPALA (arXiv 1802.01561), section 4.1, per token.
    """
    log_ratio = logprobs - old_logprobs
    ratio = torch.exp(log_ratio if owners is None else mean_by(log_ratio, owners)).clamp(max=max_ratio)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps)) * advantages)


def teacher_advantages(teacher_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """log p_teacher - log p_policy of each sampled token, (N,), without a gradient. Their mean over samples of the
    policy is minus its divergence from the teacher.

    Source: arXiv 2601.18734.
    """
    return (teacher_logprobs - logprobs).detach()


def mean_by(values: Tensor, owners: Tensor) -> Tensor:
    """(N,) -> (N,): the mean of the values that have the same owner, a number from 0 on."""
    counts = owners.bincount()
    return (values.new_zeros(len(counts)).index_add(0, owners, values) / counts)[owners]


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token, (N,): exp(d) - d - 1 with d = ref_logprob - logprob.

    Never negative, unbiased for tokens sampled from the policy. d is clamped to [-10, 10] as in the authors' code.
    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    d = (ref_logprobs - logprobs).clamp(-10, 10)
    return torch.exp(d) - d - 1


def saturating(logprobs: Tensor, half: float) -> Tensor:
    """p / (p + half) of the probabilities p, (N,): 0 at p = 0, 1 / 2 at p = half. Its derivative by log p is largest
    there, 1 / 4: neither what the policy knows nor what it finds impossible pulls hard.

    Source: arXiv 2504.14945, section 3.3.
    """
    probabilities = logprobs.exp()
    return probabilities / (probabilities + half)


def trusting(logprobs: Tensor, least: float) -> Tensor:
    """p / max(p, least) of the probabilities p, (N,), its denominator without a gradient; its derivative by log p is
    its value, 1 from `least` on and less below. What the policy finds impossible does not pull.

    Source: arXiv 2512.17636.
    """
    probabilities = logprobs.exp()
    return probabilities / probabilities.detach().clamp(min=least)


def uncertainty(logprobs: Tensor) -> Tensor:
    """Weights p (1 - p) of tokens with the probabilities p, (N,), without a gradient: largest at p = 1 / 2.

    Source: arXiv 2508.11408.
    """
    probabilities = logprobs.detach().exp()
    return probabilities * (1 - probabilities)
