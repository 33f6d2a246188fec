"""Verifiers: model text in, reward out. Nothing in this package executes model text.

A new task is one file with `verify(completion, ground_truth) -> Score` and one line in `VERIFIERS`. It may return a
Comparison instead, which the processes of pool.py then make, with a limit on their time. A verifier may also stay in a
file of the user's, anywhere: see own_file.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import competition_math, countdown, kk_logic, numeric, own_file, pool, sudoku, tree
from rewards.answer import Score

__all__ = ["NAMED", "VERIFIERS", "Score", "own_digest", "score", "score_all", "use_file", "verifier_of", "verify"]

Verifier = Callable[[str, Mapping[str, Any]], Score | pool.Comparison]
VERIFIERS: dict[str, Verifier] = {
    "countdown": countdown.verify,
    "kk_logic": kk_logic.verify,
    "openai/gsm8k": numeric.verify,
    "aime": numeric.verify,
    "amc": numeric.verify,
    "DigitalLearningGmbH/MATH-lighteval": competition_math.verify,
    "math500": competition_math.verify,
    "minerva": competition_math.verify,
    "olympiad_bench": competition_math.verify,
    "sudoku": sudoku.verify,
    "tree": tree.verify,
}
NAMED: dict[str, Verifier] = {  # for data that come from nowhere above; `use_file` adds the user's own
    "competition_math": competition_math.verify,
    "numeric": numeric.verify,
}
own_files: dict[str, own_file.OwnFile] = {}  # those of the user's, by name


def use_file(path: str) -> str:
    """Let the function `verify` of the user's Python file judge the rows whose data_source is the file's name, which
    comes back. The file runs, as the user's own code, in worker processes.

    ValueError: there is no such file, it cannot be imported, or has no such function."""
    verifier = own_file.OwnFile.of(path)
    NAMED[verifier.name] = verifier.verify
    own_files[verifier.name] = verifier
    return verifier.name


def own_digest(data_source: str) -> str:
    """Which version of the user's file judges that source; empty where none does."""
    return own_files[data_source].digest if data_source in own_files else ""


def verifier_of(data_source: str) -> Verifier | None:
    return VERIFIERS.get(data_source) or NAMED.get(data_source)


def score(data_source: str, completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of `completion` (hint + response text) under the verifier of `data_source`. No completion raises.

    ValueError: `data_source` is not in `VERIFIERS` or `NAMED`, or `ground_truth` is not what its verifier needs.
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
    verifier = verifier_of(data_source)
    if verifier is None:
        raise ValueError(f"data_source {data_source!r} has no verifier; known: {', '.join((*VERIFIERS, *NAMED))}")
    return verifier(completion, ground_truth)
