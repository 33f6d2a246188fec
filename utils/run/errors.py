"""Errors that end a run with one line, and the ranges of flags. Bad input is found before any model loads, and told as
the flag, the value, the rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

LARGEST = 1e9  # no flag means more, and products of what is larger overflow


class BadInput(Exception):
    """What the user gave cannot work. The message names the flag, the value and the rule."""


class BadMachine(BadInput):
    """What a machine has cannot work. Of several machines only some may be so: the first process of each tells."""


class RunStopped(Exception):
    """The run must not go on. The message says why, and what to look at; the first rank that raises it tells.
    A folder `remove` is removed once no rank can be writing into it."""

    def __init__(self, message: str, remove: Path | None = None) -> None:
        super().__init__(message)
        self.remove = remove


class Interrupted(Exception):
    """The run ends here, on all ranks, because it was asked to. `finish` saves, and says so."""

    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__()
        self.finish = finish


def require(condition: bool, flag: str, value: object, rule: str) -> None:
    """Raises BadInput(`flag --name value: rule`) unless the condition holds."""
    if not condition:
        raise BadInput(f"flag {flag} {value}: {rule}")


def require_divides(flag: str, value: int, whole_flag: str, whole: int) -> None:
    """Raises BadInput unless `value` is positive and divides `whole`."""
    if value <= 0 or whole <= 0 or whole % value:
        raise BadInput(f"flag {flag} {value} must divide {whole_flag} {whole}")


@dataclass(frozen=True)
class Range:
    """What a flag's number must be; the annotation of a field of Args. Not-a-number and infinities are in no range."""

    holds: Callable[[float], bool]
    rule: str


T = TypeVar("T", int, float)
Positive = Annotated[T, Range(lambda value: 0 < value <= LARGEST, f"must be greater than 0, and at most {LARGEST:g}")]
NotNegative = Annotated[T, Range(lambda value: 0 <= value < math.inf, "must not be negative, and finite")]
Several = Annotated[T, Range(lambda value: 2 <= value <= LARGEST, f"must be at least 2, and at most {LARGEST:g}")]
Minutes = Annotated[T, Range(lambda value: 0.1 <= value <= LARGEST, f"must be at least 0.1, and at most {LARGEST:g}")]
Fraction = Annotated[float, Range(lambda value: 0 <= value <= 1, "must lie between 0 and 1")]
BelowOne = Annotated[float, Range(lambda value: 0 <= value < 1, "must be at least 0 and less than 1")]


def check_ranges(flags: object) -> None:
    """Raises BadInput for the first field of the dataclass `flags` that is out of the range of its type."""
    for name, hint in get_type_hints(type(flags), include_extras=True).items():
        for its_range in getattr(hint, "__metadata__", ()):
            if isinstance(its_range, Range):
                value = getattr(flags, name)
                require(its_range.holds(value), f"--{name}", value, its_range.rule)
