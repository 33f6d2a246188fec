"""Student's t: intervals over a few seeds, and which of many differences stand."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, stdev


def probability_within(t: float, df: int) -> float:
    """P(-t <= T <= t), t >= 0, of Student's t with `df` degrees of freedom: Abramowitz and Stegun, Handbook of
    Mathematical Functions (1964), 26.7.3 (odd) and 26.7.4 (even). Exact: the sums are finite."""
    theta, odd = math.atan(t / math.sqrt(df)), df % 2
    term, total = math.cos(theta) if odd else 1.0, 0.0
    for power in range(odd, df, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(theta) ** 2
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


@cache
def quantile_95(df: int) -> float:
    """The t that 95 % lie within: 12.706 for one degree of freedom, 4.303, 3.182, ... towards 1.960."""
    low, high = 1.0, 13.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if probability_within(middle, df) < 0.95 else (low, middle)
    return high


def interval_over_seeds(values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """95 % interval of the mean that many seeds would have, no wider than `least` to `most`: mean -+ t s / sqrt(n)."""
    if len(values) < 2:
        raise ValueError(f"interval_over_seeds: {len(values)} values; must be two or more")
    half_width = quantile_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return max(least, fmean(values) - half_width), min(most, fmean(values) + half_width)


def shown_interval(accuracies: Sequence[float]) -> str:
    """For a table: of accuracies from 0 to 1, one a seed."""
    if len(accuracies) < 2:
        return "one seed"
    low, high = interval_over_seeds(accuracies, 0.0, 1.0)
    return f"{low:.1%} to {high:.1%}" if len(set(accuracies)) > 1 else "all alike"


def p_value(differences: Sequence[float]) -> float:
    """How probable a mean at least as far from 0 is where the true one is 0: two-sided t test of values that differ."""
    t = abs(fmean(differences)) / (stdev(differences) / math.sqrt(len(differences)))
    return 1 - probability_within(t, len(differences) - 1)


def stand_together(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of the hypotheses that these belong to Holm (1979) rejects, so that one true one among them all is rejected
    with probability `level` at most: the smallest is held against level / n, the next against level / (n - 1), ...
    until one fails."""
    rejected = [False] * len(p_values)
    for tried, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] > level / (len(p_values) - tried):
            break
        rejected[place] = True
    return rejected
