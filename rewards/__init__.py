"""Verifiers: model text in, reward out. Nothing in this package executes model text.

A new task is one file with `verify(completion, ground_truth) -> Score` and one line in `VERIFIERS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rewards import countdown
from rewards.answer import Score

__all__ = ["VERIFIERS", "Score", "score"]

VERIFIERS: dict[str, Callable[[str, Mapping[str, Any]], Score]] = {
    "countdown": countdown.verify,
}


def score(data_source: str, completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of `completion` (hint + response text) under the verifier of `data_source`. No completion raises.

    ValueError: `data_source` is not in `VERIFIERS`, or `ground_truth` is not what its verifier needs.
    """
    if data_source not in VERIFIERS:
        raise ValueError(f"data_source {data_source!r} has no verifier; known: {', '.join(VERIFIERS)}")
    return VERIFIERS[data_source](completion, ground_truth)
