"""What a GPU can do at most, by its maker and as measured here; and shares of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Card:
    """FLOP/s of dense bfloat16 matrix products and bytes/s of memory, as the maker's data sheet has them."""

    flops: float
    bandwidth: float


CARDS = {  # a part of the name that CUDA gives it; the first that fits
    "H200": Card(989e12, 4.8e12),
    "H100 NVL": Card(835e12, 3.9e12),
    "H100 PCIe": Card(756e12, 2.0e12),
    "H100": Card(989e12, 3.35e12),
    "H800": Card(989e12, 3.35e12),
    "GH200": Card(989e12, 4.0e12),
    "B200": Card(2250e12, 8.0e12),
    "A100-SXM4-80GB": Card(312e12, 2.039e12),
    "A100 80GB PCIe": Card(312e12, 1.935e12),
    "A100": Card(312e12, 1.555e12),
    "L40S": Card(362e12, 0.864e12),
    "L4": Card(121e12, 0.3e12),
    "A10G": Card(70e12, 0.6e12),
    "RTX 4090": Card(165e12, 1.008e12),
}


def card_of(name: str) -> Card | None:
    return next((card for part, card in CARDS.items() if part in name), None)


def present_card(device: torch.device) -> tuple[str, Card] | None:
    """The name and what it can do; measured where it is not in CARDS. None on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    measured = Card(matrix_rate(torch.mm, device, torch.bfloat16), memory_rate(device))
    return name, card_of(name) or measured


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


@cache
def matrix_rate(multiply: Callable[[Tensor, Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, measured once."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: multiply(left, right), device) for _ in range(6))


@cache
def memory_rate(device: torch.device) -> float:
    """Bytes/s of a copy, read and written."""
    source = torch.zeros((2**30 if device.type == "cuda" else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source), device) for _ in range(6))
