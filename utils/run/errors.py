"""Bad input is found before any model loads, and told in one line: the flag, the value, the rule."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

LARGEST = 1e9  # no flag means more, and products of what is larger overflow


class BadInput(Exception):
    """What the user gave cannot work. The message names the flag, the value and the rule."""


class RunStopped(Exception):
    """The run must not go on. The message says why, and what to look at; the first rank that raises it tells.
    A folder `remove` is removed once no rank can be writing into it."""

    def __init__(self, message: str, remove: Path | None = None) -> None:
        super().__init__(message)
        self.remove = remove


def require(condition: bool, flag: str, value: object, rule: str) -> None:
    """Raises BadInput(`flag --name value: rule`) unless the condition holds."""
    if not condition:
        raise BadInput(f"flag {flag} {value}: {rule}")


def require_divides(flag: str, value: int, whole_flag: str, whole: int) -> None:
    """Raises BadInput unless `value` is positive and divides `whole`."""
    if value <= 0 or whole <= 0 or whole % value:
        raise BadInput(f"flag {flag} {value} must divide {whole_flag} {whole}")


def check_numbers(
    settings: object,
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    fractions: Sequence[str] = (),
    below_one: Sequence[str] = (),
    minutes: Sequence[str] = (),
) -> None:
    """Raises BadInput for the first named field of `settings` that is out of its range: above 0, at least 0, within
    [0, 1], within [0, 1), or long enough to wait for. Not-a-number is out of every range, as are infinities."""
    ranges: list[tuple[Sequence[str], Callable[[float], bool], str]] = [
        (positive, lambda value: 0 < value <= LARGEST, f"must be greater than 0, and at most {LARGEST:g}"),
        (not_negative, lambda value: 0 <= value < math.inf, "must not be negative, and finite"),
        (fractions, lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
        (below_one, lambda value: 0 <= value < 1, "must be at least 0 and less than 1"),
        (minutes, lambda value: 0.1 <= value <= LARGEST, f"must be at least 0.1, and at most {LARGEST:g}"),
    ]
    for names, holds, rule in ranges:
        for name in names:
            value = vars(settings)[name]
            require(holds(value), f"--{name}", value, rule)
