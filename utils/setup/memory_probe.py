"""The worst micro-batches that the flags allow, before step 1: what does not fit fails here, not at step 700."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from utils.actor import Actor
from utils.run import distributed
from utils.run.logger import Logger
from utils.setup.memory import GIB
from utils.setup.plan import longest_rows
from utils.types import PREFIX, Engine, MicroBatch


def dry_run(
    actor: Actor, engine: Engine, settings: Mapping[str, Any], device: torch.device, logger: Logger
) -> None:  # fmt: skip
    """Run the largest micro-batches forward and backward as one update that is skipped: its loss is NaN. Weights,
    optimiser states and random numbers are bit for bit what they were. All ranks call together. `settings` are a
    training script's flags; --dry_run auto is always with CUDA and never without.

    Held meanwhile, as in a step: the engine's copy of the weights, and Adam's states where they do not exist yet (stage
    0 in float32). Every token is scored. Not covered: generating, the optimiser's temporaries while it steps,
    checkpoints, and memory that other processes take later.

    Raises:
        torch.OutOfMemoryError, RuntimeError: the memory is not there. The notes of the error name the sizes.
    """
    if settings["dry_run"] == "never" or settings["dry_run"] == "auto" and device.type != "cuda":
        return
    row_length, rows_per_prompt = longest_rows(settings)
    rows = settings["mini_batch_prompts"] * rows_per_prompt // distributed.world_size()
    shapes = worst_shapes(row_length, rows, settings["max_tokens_per_micro_batch"])
    is_cuda = device.type == "cuda"
    engine.sync()
    engine.sleep()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        with torch.random.fork_rng(devices=[device] if is_cuda else []):
            held = missing_states(actor)
            _skipped_update(actor, [_micro_batch(r, length, settings, device) for r, length in shapes], rows)
            del held
    except (RuntimeError, MemoryError) as error:
        error.add_note("micro-batches of " + " and of ".join(f"{r} x {length} tokens" for r, length in shapes))
        raise
    if is_cuda:
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        logger.print(f"dry run: at most {distributed.maximum(peak) / GIB:.2f} of {total / GIB:.2f} GiB were allocated")


def worst_shapes(row_length: int, rows: int, max_tokens: int) -> list[tuple[int, int]]:
    """(R, L) of the micro-batches that may take most: the longest rows, as many as there are or fit; and, where these
    leave tokens unused, one row more, a bit shorter. `rows` is what a mini-batch has on one process."""
    longest = min(rows, max_tokens // row_length)
    shapes = [(longest, row_length)]
    if longest < rows and (longest + 1) * (max_tokens // (longest + 1)) > longest * row_length:
        shapes.append((longest + 1, max_tokens // (longest + 1)))
    return shapes


def missing_states(actor: Actor) -> list[torch.Tensor]:
    """As much memory as Adam will take at its first step: two tensors for each parameter that has no state yet."""
    return [torch.empty_like(parameter) for group in actor.optimizer.param_groups for parameter in group["params"]
            if not actor.optimizer.state.get(parameter) for _ in range(2)]


def _skipped_update(actor: Actor, micro_batches: list[MicroBatch], rows: int) -> None:
    """Every one twice where an update has several micro-batches: the second time gradients are there already."""
    todo = micro_batches * 2 if len(micro_batches[0].input_ids) < rows else micro_batches
    for number, micro_batch in enumerate(todo, start=1):
        logprobs, entropies = actor(micro_batch)
        actor.backward((logprobs.sum() + entropies.sum()) * math.nan, is_last=number == len(todo))
    norm = actor.step(0.0)
    assert norm == math.inf, "an update whose loss is NaN is skipped"


def _micro_batch(rows: int, length: int, settings: Mapping[str, Any], device: torch.device) -> MicroBatch:
    """Rows of one segment each, with the longest prompt and the longest responses (one prefix where nothing is
    sampled), all tokens scored. Position 0 throughout: no model has a limit there."""
    ids = torch.zeros(rows, length, dtype=torch.long, device=device)
    flat, mask = ids.flatten(), torch.ones(rows * length, dtype=torch.bool, device=device)
    owners = torch.zeros(rows, length, dtype=torch.long)
    branches = owners
    if "group_size" in settings:
        beyond = torch.arange(length) - settings["max_prompt_length"]
        branches = (beyond.div(settings["max_response_length"], rounding_mode="floor") + 1).clamp(min=PREFIX) + owners
    return MicroBatch(ids, ids, owners, branches, torch.arange(rows * length, device=device), flat, mask, ~mask,
                      flat.float(), flat.float())
