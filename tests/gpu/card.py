"""The card, its driver, and what this PyTorch was built with."""

from collections.abc import Iterator

import torch

from tests.bench.cards import card_of, matrix_rate, memory_rate
from tests.gpu.checks import Box, Figure, at_least, check, note
from tests.gpu.machine import describe

OLDEST = 8.0  # capability that bfloat16, flash attention and vLLM want


@check(0, "card", seconds=5, cpu="quick")
def card(box: Box) -> Iterator[Figure]:
    """Driver, CUDA, cuDNN, NCCL, capability and memory; what the card reaches beside what its maker says."""
    machine = describe()
    for name in ("driver", "torch", "cuda", "cudnn", "nccl", "python", "commit"):
        yield note(name, machine[name])
    for name, version in machine["packages"].items():
        yield note(name, version)
    if not machine["cards"]:
        return
    first = machine["cards"][0]
    yield note("card", first["name"])
    yield note("memory, GiB", first["memory_gib"])
    yield note("cards", len(machine["cards"]))
    yield at_least("capability", float(first["capability"]), OLDEST)
    card = card_of(first["name"])
    yield note("its maker's TFLOP/s, bfloat16", card and card.flops / 1e12)
    yield note("its maker's TB/s", card and card.bandwidth / 1e12)
    yield note("matrix product reaches, TFLOP/s", matrix_rate(torch.mm, box.device, torch.bfloat16) / 1e12)
    yield note("copy reaches, TB/s", memory_rate(box.device) / 1e12)
