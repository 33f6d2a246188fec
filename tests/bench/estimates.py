"""What utils/setup/memory.py foresees, for the checks and benchmarks that measure it: its only callers here."""

from typing import Any

from utils.setup.memory import Generation, Run, Shape, estimate, generation

PLAIN = {  # what most checks have in common
    "weight_bytes": 2, "processes": 1, "offload": False, "has_reference": False, "kv_cache_gb": 8.0, "test_problems": 1,
}


def decoding(shape: Shape, prompts: int, samples: int, **flags: Any) -> float:
    """Bytes that the torch engine takes at most, beside the weights."""
    return generation(shape, Generation(**flags), prompts, samples)


def training(shape: Shape, **flags: Any) -> dict[str, float]:
    """Bytes on the GPU at the worst moment of each phase of a step, what is always there included."""
    always, phases, _ = estimate(shape, Run(**PLAIN | flags))
    return {name: sum(always.values()) + size for name, size in phases.items()}
