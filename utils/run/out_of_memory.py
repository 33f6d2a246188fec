"""Out of memory: one line that names the phase, the size asked for, and the flags to change."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from utils.run import distributed

GIB = 2**30
ONEDNN = "could not (create|execute) a primitive"  # all it says when there is no memory for its code or its buffers
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|std::bad_alloc|Cannot allocate memory|"
                       + ONEDNN)
ASKED_FOR = re.compile(r"[Tt]ried to allocate (?:(\d+) bytes|([\d.]+ [KMG]iB))")
UPDATE = ("max_tokens_per_micro_batch", "gradient_checkpointing", "offload", "zero_stage", "engine")
WEIGHTS = ("offload", "zero_stage", "engine")
GENERATION = ("kv_cache_gb", "zero_stage", "engine")
PHASES = {  # phase of the watchdog -> what its memory depends on; all others are parts of an update
    "start-up": WEIGHTS,
    "loading the model": WEIGHTS,
    "setting up the actor": WEIGHTS,
    "setting up the reference": WEIGHTS,
    "setting up the engine": GENERATION,
    "loading a checkpoint": WEIGHTS,
    "sync": WEIGHTS,
    "rollout": GENERATION,
    "evaluation": GENERATION,
    "checkpoint": WEIGHTS,
}
ADVICE = {
    "max_tokens_per_micro_batch": "lower --max_tokens_per_micro_batch {} (it must hold the longest group: then "
                                  "--max_response_length or --group_size too)",
    "gradient_checkpointing": "give --gradient_checkpointing",
    "offload": "give --offload",
    "zero_stage": "give --zero_stage 3 (is {})",
    "kv_cache_gb": "lower --kv_cache_gb {}",
    "engine_memory_fraction": "lower --engine_memory_fraction {}",
}


def describe(error: BaseException, phase: str, settings: Mapping[str, Any]) -> str | None:
    """The line for an error that says that memory is missing in `phase`, the watchdog's; None for any other."""
    if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(str(error))):
        return None
    asked = ASKED_FOR.search(str(error))
    sizes = [f"{int(asked[1]) / GIB:.2f} GiB more were asked for" if asked[1] else f"{asked[2]} more were asked for"
             ] if asked else []
    if re.search(ONEDNN, str(error)):
        sizes.append("oneDNN does not say how much was asked for")
    sizes += getattr(error, "__notes__", [])
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        sizes.append(f"of {total / GIB:.2f} GiB this process had allocated {torch.cuda.memory_allocated() / GIB:.2f}, "
                     f"free are {free / GIB:.2f}")
    helps = "; ".join(advice(PHASES.get(phase, UPDATE), settings)) or "a smaller model, or more memory"
    sizes_in_words = "".join(f"; {size}" for size in sizes)
    return f"out of memory in {phase}, process {distributed.rank()}{sizes_in_words}. What helps: {helps}"


def advice(flags: tuple[str, ...], settings: Mapping[str, Any]) -> list[str]:
    """What to change, of the flags that the script has and that are not changed yet."""
    is_cuda, of_vllm = torch.cuda.is_available(), settings.get("engine") in ("vllm", "auto")
    helps = {
        "max_tokens_per_micro_batch": True,
        "gradient_checkpointing": settings.get("gradient_checkpointing") is False,
        "offload": is_cuda and settings.get("offload") is False,
        "zero_stage": distributed.world_size() > 1 and settings.get("zero_stage", 3) < 3,
        "kv_cache_gb": True,
        "engine_memory_fraction": is_cuda and of_vllm,
    }
    named = [name if name != "engine" else "engine_memory_fraction" for name in flags]
    return [ADVICE[name].format(settings[name]) for name in named if name in settings and helps[name]]
