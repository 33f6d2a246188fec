"""The built-in tasks. A new one is a file with `build(folder)` beside this one, and a line in BUILT_IN.

This is not `utils/tasks/__init__.py`: `python -m utils.tasks.countdown` would then warn that it is imported twice.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from utils.tasks import benchmarks, competition_math, countdown, kk_logic, sudoku, tree
from utils.types import Problem

BUILT_IN: dict[str, Callable[[Path], None]] = {
    "countdown": countdown.build,
    "kk_logic": kk_logic.build,
    "math": competition_math.build,
    "sudoku": sudoku.build,
    "tree": tree.build,
    **{name: partial(benchmarks.build, name=name) for name in benchmarks.BENCHMARKS},  # for evaluation: no train split
}
CONSTANT_ANSWERS: dict[str, Callable] = {  # data_source -> the best one
    "countdown": countdown.best_constant_pattern,
    "kk_logic": kk_logic.best_constant_pattern,
    "sudoku": sudoku.best_constant_pattern,
    "tree": tree.best_constant_pattern,
}


def best_constant_answer(problems: list[Problem]) -> tuple[str, float, str] | None:
    """(name, accuracy, text) of the best answer that never looks at the problem, for the tables' floor; None for a
    task that has no such answers."""
    sources = {problem.data_source for problem in problems}
    if len(sources) != 1 or not sources <= set(CONSTANT_ANSWERS):
        return None
    text, accuracy = CONSTANT_ANSWERS[sources.pop()](problems)
    return "best constant pattern", accuracy, text
