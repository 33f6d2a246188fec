"""When memory is missing: one line that says while doing what, how much was asked for, and which flag to change."""

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils import ROOT
from utils.run import distributed

GIB = 2**30
ONEDNN = "could not (create|execute) a primitive"  # all it says when there is no memory for its code or its buffers
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|std::bad_alloc|Cannot allocate memory|"
                       + ONEDNN)
ASKED_FOR = re.compile(r"[Tt]ried to allocate (?:(\d+) bytes|([\d.]+ [KMG]iB))")
UPDATE = ("max_tokens_per_micro_batch", "gradient_checkpointing", "offload", "zero_stage", "engine")
WEIGHTS = ("offload", "zero_stage", "engine")
GENERATION = ("kv_cache_gb", "zero_stage", "engine")
PHASES = {  # function of ours on the way to the error, the first counts -> what was going on, and what it depends on
    "load_model": ("loading the model", WEIGHTS),
    "load_reference": ("setting up the reference", WEIGHTS),
    "Actor.__init__": ("setting up the actor", WEIGHTS),
    "load": ("loading a checkpoint", WEIGHTS),
    "build_engine": ("setting up the engine", GENERATION),
    "probe_memory": ("the probe of the largest micro-batch", UPDATE),
    "evaluate": ("evaluation", GENERATION),
    "generate": ("the rollout", GENERATION),
    "sync": ("handing the weights to the engine", WEIGHTS),
    "save": ("saving a checkpoint", WEIGHTS),
    "Actor.step": ("the optimiser step", WEIGHTS),
}
ELSEWHERE = ("an update", UPDATE)  # packing, log-probabilities, forward, backward
ADVICE = {
    "max_tokens_per_micro_batch": "lower --max_tokens_per_micro_batch {} (it must hold the longest group: then "
                                  "--max_response_length or --group_size too)",
    "gradient_checkpointing": "give --gradient_checkpointing",
    "offload": "give --offload",
    "zero_stage": "give --zero_stage 3 (is {})",
    "kv_cache_gb": "lower --kv_cache_gb {}",
    "engine_memory_fraction": "lower --engine_memory_fraction {}",
}


def describe(error: BaseException, settings: Mapping[str, Any]) -> str | None:
    """The line for an error that says that memory is missing; None for any other."""
    if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(str(error))):
        return None
    phase, flags = phase_of(error)
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
    return (f"out of memory in {phase}, process {os.environ.get('RANK', '0')}{''.join(f'; {size}' for size in sizes)}. "
            f"What helps: {'; '.join(advice(flags, settings)) or 'a smaller model, or more memory'}")


def phase_of(error: BaseException) -> tuple[str, tuple[str, ...]]:
    """What the run was doing when it was raised, and the flags that the memory for this depends on."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_qualname
        if Path(frame.f_code.co_filename).is_relative_to(ROOT):
            for known in (name, name.rsplit(".", 1)[-1]):
                if known in PHASES:
                    return PHASES[known]
    return ELSEWHERE


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
