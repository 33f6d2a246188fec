"""What the torch engine decodes beside the model's own forward pass, a few tokens long."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from utils.attention import Layout, causal_mask, tolerance, window_of
from utils.layouts import Masked
from utils.policy import own_logprobs
from utils.types import Problem, Prompt

PREFIXES = 5, 9, 2  # tokens
SAMPLES, RESPONSE = 2, 6  # of each, and their tokens


def compare(engine) -> tuple[float, float]:
    """By how much the log-probabilities of tokens that a TorchEngine samples differ from those with exact attention, on
    average, and by how much they may, going by the model's own forward pass.

    Where the model has a window that rows of the run can leave, one prefix is nearly as long as it is.
    """
    config, lengths = engine.model.config.get_text_config(), list(PREFIXES)
    window = window_of(config)
    if window and engine.max_length is not None and window < engine.max_length:
        lengths.append(max(1, window - RESPONSE // 2))
    random = torch.Generator().manual_seed(0)
    problem = Problem(0, "", "", (), "", {})
    prompts = [Prompt(problem, torch.randint(config.vocab_size, (length,), generator=random).tolist(), [], 0)
               for length in lengths]
    uniforms = torch.rand(SAMPLES * len(prompts), RESPONSE, generator=random, dtype=torch.float).to(engine.device)
    ends, engine.eos_ids = engine.eos_ids, engine.eos_ids[:0]  # nothing ends
    ids, logprobs, _ = engine._decode(prompts, SAMPLES, RESPONSE, 1.0, uniforms)
    engine.eos_ids = ends
    sampled = torch.tensor(logprobs[: len(uniforms)], device=engine.device)
    rows = [torch.tensor([prompts[row // SAMPLES].prompt_ids + ids[row]], device=engine.device)
            for row in range(len(uniforms))]
    exact = torch.stack([of_response(engine.model, row, exactly(row)) for row in rows])
    own = torch.stack([of_response(engine.model, row, None) for row in rows])
    noise = (own - exact).abs().mean().item()
    return (sampled - exact).abs().mean().item(), tolerance(engine.model.dtype, noise)


def exactly(row: Tensor) -> Masked:
    """Exact causal attention of a row (1, L)."""
    length = row.shape[1]
    positions = torch.arange(length, device=row.device)[None]
    return Masked(causal_mask(length, length, row.device)[None, None], positions, is_exact=True)


def of_response(model: PreTrainedModel, row: Tensor, layout: Layout | None) -> Tensor:
    """(RESPONSE,) log-probabilities of the last tokens of a row (1, L) by the model's own forward pass."""
    predictors = torch.arange(row.shape[1] - RESPONSE - 1, row.shape[1] - 1, device=row.device)
    return own_logprobs(model, row, predictors, row[0, predictors + 1], layout=layout)
