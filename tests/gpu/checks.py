"""What a check is, what it needs, and what its figures say."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

OK, FAIL, MISSED, NOTE = "ok", "FAIL", "missed", ""  # of a figure; a goal that is missed is no failure
ERROR = "error"  # of a check that did not come to its end


@dataclass(frozen=True)
class Figure:
    """A number that a check found, the bound that it must keep (in words, "" where none), and whether it does."""

    name: str
    value: Any
    bound: str = ""
    verdict: str = NOTE


def note(name: str, value: Any) -> Figure:
    """A figure that nothing is asked of."""
    return Figure(name, value)


def at_most(name: str, value: float, bound: float | None) -> Figure:
    """NaN is too much. Without a bound it is a note: a CPU's seconds say nothing."""
    return note(name, value) if bound is None else Figure(name, value, f"<= {bound:g}", _verdict(value <= bound))


def at_least(name: str, value: float, bound: float | None) -> Figure:
    return note(name, value) if bound is None else Figure(name, value, f">= {bound:g}", _verdict(value >= bound))


def between(name: str, value: float, low: float, high: float) -> Figure:
    return Figure(name, value, f"{low:g} .. {high:g}", _verdict(low <= value <= high))


def equal(name: str, value: Any, expected: Any) -> Figure:
    return Figure(name, value, f"= {expected}", _verdict(value == expected))


def goal(name: str, value: float, bound: float | None) -> Figure:
    """What we would like to reach at least."""
    if bound is None:
        return note(name, value)
    return Figure(name, value, f"goal {bound:g}", OK if value >= bound else MISSED)


def _verdict(holds: bool) -> str:
    return OK if holds else FAIL


class Box:
    """What a check is given: the device, and a folder that is its own."""

    def __init__(self, folder: Path, has_gpu: bool):
        self.folder, self.has_gpu = folder, has_gpu

    @cached_property
    def device(self) -> torch.device:
        """A GPU as a run takes it, with the settings that a run makes there."""
        return self.join() if self.has_gpu else torch.device("cpu")

    def join(self) -> torch.device:
        """For what needs DeepSpeed's ranks: this process is the only one."""
        from utils.run import processes  # DeepSpeed: seconds to import, which not all checks need

        return processes.join(timeout_minutes=5)

    def pick(self, on_gpu: Any, on_cpu: Any) -> Any:
        return on_gpu if self.has_gpu else on_cpu

    def only_here(self, bound: float) -> float | None:
        """The bound where there is a GPU, which it is about."""
        return bound if self.has_gpu else None


Need = Literal["sm80", "two_gpus", "vllm", "datasets", "deepspeed"]
CpuForm = Literal["", "quick", "named"]  # none; always run; only where the check is asked for by name: it takes long


@dataclass(frozen=True)
class Check:
    """`seconds`: what it should take on a GPU, the start of its process included. `cpu`: whether it has a small form
    for machines without a GPU. `run` yields figures as they come, so that those before a crash are kept."""

    number: int
    name: str
    seconds: int
    needs: tuple[Need, ...]
    cpu: CpuForm
    run: Callable[[Box], Iterator[Figure]]

    @property
    def about(self) -> str:
        """The first sentence of its docstring."""
        return " ".join((self.run.__doc__ or "").split()).split(". ")[0].rstrip(".")


CHECKS: dict[str, Check] = {}


def check(number: int, name: str, *, seconds: int, needs: tuple[Need, ...] = (), cpu: CpuForm = "") -> Callable:
    """Registers the function below."""

    def register(run: Callable[[Box], Iterator[Figure]]) -> Callable[[Box], Iterator[Figure]]:
        assert name not in CHECKS and number not in {other.number for other in CHECKS.values()}, name
        CHECKS[name] = Check(number, name, seconds, needs, cpu, run)
        return run

    return register


def reason_to_skip(one: Check, machine: dict[str, Any], is_named: bool) -> str | None:
    """Why the check cannot run on this machine (machine.py), None where it can. `is_named`: it was asked for."""
    cards, packages = machine["cards"], machine["packages"]
    missing = [need for need in one.needs if need in ("vllm", "datasets", "deepspeed") and not packages.get(need)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if not cards:
        if not one.cpu:
            return "needs a GPU"
        return None if one.cpu == "quick" or is_named else f"its CPU form takes long: python -m tests.gpu {one.name}"
    if "two_gpus" in one.needs and len(cards) < 2:
        return "needs two GPUs"
    if "sm80" in one.needs and tuple(map(int, cards[0]["capability"].split("."))) < (8, 0):
        return f"needs capability 8.0, the card has {cards[0]['capability']}"
    return None


def verdict_of(figures: list[Figure], error: str | None) -> str:
    """Of a check: ERROR, or the worst of its figures."""
    if error is not None:
        return ERROR
    verdicts = {figure.verdict for figure in figures}
    return FAIL if FAIL in verdicts else MISSED if MISSED in verdicts else OK


def shown(value: Any) -> str:
    """For the table, about four digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
