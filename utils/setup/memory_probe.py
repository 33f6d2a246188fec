"""The worst micro-batches that the flags allow, before step 1: what does not fit fails here, not at step 700."""

import math

import torch

from utils.actor import Actor
from utils.run import distributed, watchdog
from utils.run.logger import Logger
from utils.setup.memory_terms import GIB
from utils.setup.words import Planned
from utils.types import PREFIX, Engine, LongestGroup, MicroBatch


def probe_memory(actor: Actor, engine: Engine, plan: Planned, logger: Logger) -> None:
    """Run the largest micro-batches forward and backward as one update that is skipped: its loss is NaN. Weights,
    optimiser states and random numbers are bit for bit what they were. All ranks call together. --probe_memory auto is
    always with CUDA and never without.

    Held meanwhile, as in a step: the engine's copy of the weights, and Adam's states where they do not exist yet (stage
    0 in float32). Every token is scored. Not covered: generating, the optimiser's temporaries while it steps,
    checkpoints, and memory that other processes take later.

    Raises:
        torch.OutOfMemoryError, RuntimeError: the memory is not there. The notes of the error name the sizes.
    """
    flags, device = plan.flags, actor.device
    is_cuda = device.type == "cuda"
    if flags.probe_memory == "never" or flags.probe_memory == "auto" and not is_cuda:
        return
    rows = flags.mini_batch_prompts * plan.longest.rows // distributed.world_size()
    shapes = worst_shapes(plan.longest.row_length, rows, flags.max_tokens_per_micro_batch)
    engine.sync()
    engine.sleep()
    watchdog.phase("memory probe")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        with torch.random.fork_rng(devices=[device] if is_cuda else []):
            held = missing_states(actor)
            _skipped_update(actor, [_micro_batch(r, length, plan.longest, device) for r, length in shapes], rows)
            del held
    except (RuntimeError, MemoryError) as error:
        error.add_note("micro-batches of " + " and of ".join(f"{r} x {length} tokens" for r, length in shapes))
        raise
    if is_cuda:
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        peak = distributed.maximum(peak) / GIB
        logger.note(f"memory probe: at most {peak:.2f} of {total / GIB:.2f} GiB were allocated")


def worst_shapes(row_length: int, rows: int, max_tokens: int) -> list[tuple[int, int]]:
    """(R, L) of the micro-batches that may take most: the longest rows, as many as there are or fit; and, where these
    leave tokens unused, one row more, a bit shorter. `rows` is what a mini-batch has on one process."""
    longest = min(rows, max_tokens // row_length)
    shapes = [(longest, row_length)]
    if longest < rows and (longest + 1) * (max_tokens // (longest + 1)) > longest * row_length:
        shapes.append((longest + 1, max_tokens // (longest + 1)))
    return shapes


def missing_states(actor: Actor) -> list[torch.Tensor]:
    """As much memory as Adam will take at its first step: two tensors for each parameter that has no state yet. At
    stage 3 DeepSpeed shows the optimiser its parameters only while it steps."""
    optimizer = actor.optimizer
    parameters = optimizer.fp32_partitioned_groups_flat if actor.zero_stage == 3 else [
        parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [torch.empty_like(parameter) for parameter in parameters if not optimizer.state.get(parameter)
            for _ in range(2)]


def _skipped_update(actor: Actor, micro_batches: list[MicroBatch], rows: int) -> None:
    """Every one twice where an update has several micro-batches: the second time gradients are there already."""
    todo = micro_batches * 2 if len(micro_batches[0].input_ids) < rows else micro_batches
    for number, micro_batch in enumerate(todo, start=1):
        logprobs, entropies = actor(micro_batch)
        actor.backward((logprobs.sum() + entropies.sum()) * math.nan, is_last=number == len(todo))
    norm = actor.step(0.0)
    assert norm == math.inf, "an update whose loss is NaN is skipped"


def _micro_batch(rows: int, length: int, longest: LongestGroup, device: torch.device) -> MicroBatch:
    """Rows of one segment each, with the longest prompt and the longest responses (one prefix where nothing is
    sampled), all tokens scored. Position 0 throughout: no model has a limit there."""
    ids = torch.zeros(rows, length, dtype=torch.long, device=device)
    flat, mask = ids.flatten(), torch.ones(rows * length, dtype=torch.bool, device=device)
    segment_ids = torch.zeros(rows, length, dtype=torch.long)
    branch_ids = segment_ids
    if longest.responses:
        beyond = torch.arange(length) - longest.prefix
        last = longest.members_of_row  # longer than others where it is a demonstration
        branch_ids = (beyond.div(longest.response, rounding_mode="floor") + 1).clamp(PREFIX, last) + segment_ids
    return MicroBatch(ids, ids, segment_ids, branch_ids, torch.arange(rows * length, device=device), flat, mask, ~mask,
                      ~mask, flat.float(), flat.float())
