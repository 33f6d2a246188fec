"""Constant answers to Countdown: what a model scores that writes the same pattern of its numbers under every problem.

With few small numbers that is a lot ("a + b + c" on 21.5 % of 3 numbers 1..9, target 10..50), and a model that has
learned only this looks as if it could aim. Every small-model table shows the best pattern's score.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import numpy as np

from rewards.countdown import whole

POSITIONS = "abcde"  # names of a problem's numbers, in their order


def pattern_hits(numbers: np.ndarray, targets: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every pattern over the positions a, b, c, ... with the problems that it solves.

    numbers (P, n), targets (P,) -> (pattern text, bool (P,)) for each way to join n positions with + - * / (for n = 4:
    3,240 of them). Values are float64; with n <= 5 numbers a true difference from an integer is far above 1e-6.
    """
    num_numbers = numbers.shape[1]
    values: dict[frozenset[int], list[tuple[str, np.ndarray]]] = {}

    def joined(positions: frozenset[int]) -> Iterator[tuple[str, np.ndarray]]:
        first = min(positions)
        for size in range(len(positions) - 1):
            for others in combinations(sorted(positions - {first}), size):  # the first position is always left
                left = frozenset((first, *others))
                for left_text, left_value in values[left]:
                    for right_text, right_value in values[positions - left]:
                        yield f"({left_text} + {right_text})", left_value + right_value
                        yield f"({left_text} - {right_text})", left_value - right_value
                        yield f"({right_text} - {left_text})", right_value - left_value
                        yield f"({left_text} * {right_text})", left_value * right_value
                        yield f"({left_text} / {right_text})", left_value / right_value
                        yield f"({right_text} / {left_text})", right_value / left_value

    with np.errstate(divide="ignore", invalid="ignore"):
        for position in range(num_numbers):
            values[frozenset((position,))] = [(POSITIONS[position], numbers[:, position].astype(np.float64))]
        for size in range(2, num_numbers):
            for positions in combinations(range(num_numbers), size):
                values[frozenset(positions)] = list(joined(frozenset(positions)))
        for text, value in joined(frozenset(range(num_numbers))):
            yield text[1:-1], np.abs(value - targets) < 1e-6


def best_constant_pattern(problems: Iterable[Any]) -> tuple[str, float]:
    """The best that an answer of constant form can do: its text ("a * b - c"-like, one per count of numbers, joined by
    "; ") and its accuracy over all problems. `problems` have a `ground_truth` with `numbers` and `target`. Problems of
    fewer than 2 or more than 5 numbers count as unsolved: the patterns of 6 are too many to try."""
    by_count: dict[int, list[dict[str, Any]]] = {}
    for problem in problems:
        by_count.setdefault(len(problem.ground_truth["numbers"]), []).append(problem.ground_truth)
    texts, num_solved, num_problems = [], 0, 0
    for count, truths in sorted(by_count.items()):
        num_problems += len(truths)
        if not 2 <= count <= len(POSITIONS):
            continue
        numbers = np.array([list(map(whole, truth["numbers"])) for truth in truths])
        targets = np.array([whole(truth["target"]) for truth in truths])
        solved, text = max(
            ((int(hits.sum()), text) for text, hits in pattern_hits(numbers, targets)), key=lambda best: best[0]
        )
        texts.append(text)
        num_solved += solved
    return "; ".join(texts), num_solved / num_problems
