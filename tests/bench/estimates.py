"""What utils/setup/memory.py foresees, for the checks and benchmarks that measure it: its only callers here."""

from typing import Any

from utils.setup.memory import estimate
from utils.setup.memory_terms import Generation, Run, generation
from utils.setup.shapes import Shape

ON_GPU = {"weight_bytes": 2, "gpu_bytes": 80 * 2**30, "kv_cache_gb": 8.0, "engine": "torch",
          "engine_memory_fraction": 0.0}
PLAIN = ON_GPU | {"processes": 1, "offload": False, "has_reference": False, "free_replica": False, "sleep_level": 0,
                  "test_problems": 1}  # what most checks have in common


def decoding(shape: Shape, prompts: int, samples: int, **flags: Any) -> float:
    """Bytes that the torch engine takes at most, beside the weights."""
    return generation(shape, Generation(**ON_GPU | flags), prompts, samples)


def training(shape: Shape, **flags: Any) -> dict[str, float]:
    """Bytes that PyTorch has allocated on the GPU at the worst moment of each phase of a step, what is always there
    included; without the context and the gaps, which it does not count."""
    run = Run(**PLAIN | flags)
    always, phases, _ = estimate(shape, run)
    return {name: sum(always.values()) - run.overhead + size for name, size in phases.items()}
