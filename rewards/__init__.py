"""Verifiers: model text in, reward out. Nothing in this package executes model text.

A new task is one file with `verify(completion, ground_truth) -> Score` and one line in `VERIFIERS`. It may return a
Comparison instead, which the processes of pool.py then make, with a limit on their time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import competition_math, countdown, kk_logic, numeric, pool, tree
from rewards.answer import Score

__all__ = ["VERIFIERS", "Score", "score", "score_all"]

VERIFIERS: dict[str, Callable[[str, Mapping[str, Any]], Score | pool.Comparison]] = {
    "countdown": countdown.verify,
    "kk_logic": kk_logic.verify,
    "openai/gsm8k": numeric.verify,
    "aime": numeric.verify,
    "amc": numeric.verify,
    "DigitalLearningGmbH/MATH-lighteval": competition_math.verify,
    "math500": competition_math.verify,
    "minerva": competition_math.verify,
    "olympiad_bench": competition_math.verify,
    "tree": tree.verify,
}


def score(data_source: str, completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of `completion` (hint + response text) under the verifier of `data_source`. No completion raises.

    ValueError: `data_source` is not in `VERIFIERS`, or `ground_truth` is not what its verifier needs.
    """
    return score_all([(data_source, completion, ground_truth)])[0]


def score_all(
    items: Sequence[tuple[str, str, Mapping[str, Any]]], on_progress: Callable[[], None] = lambda: None
) -> list[Score]:
    """The Scores of (data_source, completion, ground_truth) items, in order; all workers share the comparisons.

    It may be called from any thread; `on_progress` is called before each comparison. ValueError: as for
    `score`, before any worker is asked.
    """
    verdicts = [verify(*item) for item in items]
    comparisons = [verdict for verdict in verdicts if isinstance(verdict, pool.Comparison)]
    compared = iter(pool.compare_all(comparisons, on_progress))
    return [next(compared) if isinstance(verdict, pool.Comparison) else verdict for verdict in verdicts]


def verify(data_source: str, completion: str, ground_truth: Mapping[str, Any]) -> Score | pool.Comparison:
    if data_source not in VERIFIERS:
        raise ValueError(f"data_source {data_source!r} has no verifier; known: {', '.join(VERIFIERS)}")
    return VERIFIERS[data_source](completion, ground_truth)
