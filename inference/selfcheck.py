"""What the torch engine decodes beside the model's own forward pass, a few tokens long."""

import torch
from torch import Tensor

from utils.attention import Layout, tolerance
from utils.layouts import Masked
from utils.types import Problem, Prompt

PREFIXES = 5, 9, 2  # tokens
SAMPLES, RESPONSE = 2, 6  # of each, and their tokens


def compare(engine) -> tuple[float, float]:
    """By how much the log-probabilities of tokens that a TorchEngine samples differ from those with exact attention, on
    average, and by how much they may, going by the model's own forward pass.

    Where the model has a window that rows of the run can leave, one prefix is nearly as long as it is.
    """
    config, lengths = engine.model.config.get_text_config(), list(PREFIXES)
    window = config.to_dict().get("sliding_window")
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
    exact = torch.stack([response_logprobs(engine.model, row, exactly(row)) for row in rows])
    own = torch.stack([response_logprobs(engine.model, row, None) for row in rows])
    noise = (own - exact).abs().mean().item()
    return (sampled - exact).abs().mean().item(), tolerance(engine.model.dtype, noise)


def exactly(row: Tensor) -> Masked:
    """Exact causal attention of a row (1, L)."""
    positions = torch.arange(row.shape[1], device=row.device)
    return Masked((positions[:, None] >= positions)[None, None], positions[None], is_exact=True)


def response_logprobs(model, row: Tensor, layout: Layout | None) -> Tensor:
    """(RESPONSE,) of the last tokens of a row (1, L) by the model's own forward pass, in float32 at least."""
    how = {} if layout is None else {"layout": layout, "attention_mask": row.new_ones(1, 1, 1, 1, dtype=torch.bool)}
    positions = torch.arange(row.shape[1], device=row.device)[None]
    logits = model(input_ids=row, position_ids=positions, use_cache=False, **how).logits[0, -RESPONSE - 1 : -1]
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float)).log_softmax(dim=-1)
    return logprobs.gather(-1, row[0, -RESPONSE:, None]).squeeze(-1)
