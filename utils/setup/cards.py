"""Which flags fill a GPU: the largest micro-batch that fits, by the arithmetic of memory.py."""

import math
from collections.abc import Iterator
from dataclasses import replace

from utils.setup.memory import peak
from utils.setup.memory_terms import GIB, Run, cache_need, gib
from utils.setup.shapes import Shape

CARDS = {80: 79, 40: 39, 24: 22}  # GB on the box -> GiB that PyTorch finds, at least
FILLED = 0.95  # of these, at most: nothing was measured on a GPU
STEP = 1_024  # tokens by which a micro-batch grows
MOST_TOKENS = 16_384  # that larger micro-batches are not faster is assumed
CACHES = (24, 16, 8, 4, 2)  # GiB of keys and values
VLLM_WORKS = 2 * GIB  # assumed: its activations and CUDA graphs


def on_card(run: Run, gigabytes: int) -> Run:
    return replace(run, gpu_bytes=CARDS[gigabytes] * GIB)


def fits(shape: Shape, run: Run) -> bool:
    return peak(shape, run) <= FILLED * run.gpu_bytes


def best(shape: Shape, run: Run) -> Run | None:
    """The run with the flags that fit its GPU and should be fastest; None where none fit. Without gradient
    checkpointing if one group fits so, else with it; if that is not enough, what the optimiser needs waits in CPU
    memory. The engine gives back what it holds while the actor learns."""
    run = replace(run, sleep_level=2, free_replica=True)
    for recomputes, offload in ((False, False), (True, False), (True, True)):
        for with_cache in caches(shape, replace(run, gradient_checkpointing=recomputes, offload=offload)):
            largest = None
            for tokens in micro_batches(run):
                candidate = replace(with_cache, max_tokens_per_micro_batch=tokens)
                if not fits(shape, candidate):
                    break
                largest = candidate
            if largest is not None:
                return largest
    return None


def micro_batches(run: Run) -> range:
    """Tokens from one group to all of a mini-batch that a process has."""
    rows = run.row_length * run.rows_per_prompt
    group = run.row_length if len(run.members_of_row) > 1 else rows  # what stands alone may be in another one
    most = min(MOST_TOKENS, run.mini_batch_prompts // run.processes * rows)
    return range(-(-group // STEP) * STEP, max(most, -(-group // STEP) * STEP) + 1, STEP)


def caches(shape: Shape, run: Run) -> Iterator[Run]:
    """The run with a cache for all responses of a step, and with smaller ones: as --kv_cache_gb, and as the part of
    --engine_memory_fraction that is beside vLLM's weights."""
    prompts = -(-(run.prompts_per_step if run.group_size else run.test_problems) // run.processes)
    needed = math.ceil(cache_need(shape, run, prompts, run.group_size or 1) / GIB)
    for cache in sorted({min(size, needed) for size in CACHES}, reverse=True):
        vllm = run.weight_bytes * shape.parameters + VLLM_WORKS + cache * GIB
        fraction = math.ceil(20 * vllm / run.gpu_bytes) / 20
        if fraction <= FILLED:
            yield replace(run, kv_cache_gb=cache, engine_memory_fraction=fraction)


def flags_of(run: Run) -> str:
    """Those that `best` chooses, as words of a command line."""
    words = [f"--{name}" for name in ("gradient_checkpointing", "offload") if getattr(run, name)]
    words.append(f"--max_tokens_per_micro_batch {run.max_tokens_per_micro_batch}")
    if run.engine == "vllm":
        words.append(f"--engine_memory_fraction {run.engine_memory_fraction:g} --sleep_level {run.sleep_level}")
    else:
        words.append(f"--kv_cache_gb {run.kv_cache_gb:g}" + " --free_replica" * (run.zero_stage == 3))
    return " ".join(words)


def card_facts(shape: Shape | None, run: Run) -> dict[str, str]:
    """For the plan of --check: what the run takes of GPUs, and the flags that would use each best."""
    facts = {}
    for gigabytes in CARDS if shape is not None else ():
        here = on_card(run, gigabytes)
        chosen = best(shape, here)
        advice = "no flags make it fit: take more of them" if chosen is None else (
            f"best {flags_of(chosen)}, {gib(peak(shape, chosen))}")
        facts[f"  on GPUs of {gigabytes} GB"] = f"these flags {gib(peak(shape, here))}; {advice}"
    return facts
