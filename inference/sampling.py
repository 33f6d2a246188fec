"""The torch engine's draws: what is random in them, and which token they pick."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils import cpu_kernels, seeding
from utils.types import Prompt

BLOCK = 512  # entries of a vocabulary that are added up at once


def sampling_uniforms(
    prompts: Sequence[Prompt], samples: Sequence[int], max_response_length: int, seed: int, step: int
) -> list[np.ndarray]:
    """The randomness of these samples of a step's groups: for each prompt an array (samples, max_response_length) in
    [0, 1).

    A function of (seed, step, problem, sample) alone.
    """
    return [
        np.stack([
            seeding.generator("sample", seed, step, prompt.problem.index, sample).random(max_response_length)
            for sample in samples
        ])
        for prompt in prompts
    ]


def pick(logits: Tensor, temperature: float, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next ids and their log-probabilities, (B,), (B,), from logits (B, V).

    Greedy at temperature 0 (log-probabilities at temperature 1); else the inverse of the cumulative distribution at
    `noise` (B,), uniform in [0, 1).
    """
    logits = logits.float()
    if temperature == 0:
        best, chosen = logits.max(dim=-1)
        return chosen, best - logits.logsumexp(dim=-1)
    if cpu_kernels.take(logits, noise):
        return torch.ops.cpu_kernels.draw(logits, noise, temperature)
    probabilities = (logits if temperature == 1 else logits / temperature).softmax(dim=-1)
    chosen = invert_cumulative(probabilities, noise[:, None])
    return chosen.squeeze(1), probabilities.gather(-1, chosen).squeeze(1).log()


def invert_cumulative(probabilities: Tensor, noise: Tensor) -> Tensor:
    """(B, V), (B, 1) -> (B, 1): the first entry whose cumulative sum reaches the share `noise` of the total.

    Entries are added up in blocks, and one by one only within the block that is hit: a large vocabulary is read once
    more instead of written and read. Neither end may hit an entry of 0: not the first at noise 0, nor one beyond the
    last by rounding.
    """
    if probabilities.shape[1] <= 2 * BLOCK:
        cumulative = probabilities.cumsum(dim=-1)
        return torch.searchsorted(cumulative, noise.clamp_min(2**-24) * cumulative[:, -1:])
    num_whole = probabilities.shape[1] // BLOCK
    blocks = probabilities[:, : num_whole * BLOCK].unflatten(1, (num_whole, BLOCK)).sum(dim=-1)
    rest = probabilities[:, num_whole * BLOCK :]
    ends = torch.cat([blocks, rest.sum(dim=-1, keepdim=True)], dim=-1).cumsum(dim=-1)
    target = noise.clamp_min(2**-24) * ends[:, -1:]
    block = torch.searchsorted(ends, target)
    before = torch.where(block == 0, 0.0, ends.gather(1, (block - 1).clamp_min(0)))
    entries = block * BLOCK + torch.arange(BLOCK, device=probabilities.device)  # (B, BLOCK)
    within = probabilities.gather(1, entries.clamp_max(probabilities.shape[1] - 1))
    within = within.masked_fill(entries >= probabilities.shape[1], 0).cumsum(dim=-1)
    return block * BLOCK + torch.searchsorted(within, torch.minimum(target - before, within[:, -1:]))
