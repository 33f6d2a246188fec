"""The torch engine's draws: what is random in them, and which token they pick."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils import seeding
from utils.types import Prompt


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
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().cumsum(dim=-1)
        # Neither end may pick a token of probability 0: not the first at noise 0, nor one beyond the rounded-up total.
        target = noise[:, None].clamp_min(2**-24) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target).squeeze(1)
    return chosen, logprobs.gather(-1, chosen[:, None]).squeeze(1)
