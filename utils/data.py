"""Problems: where they are read from, how they are checked, and in which order training meets them.

A data set is a folder with `train.parquet` and `test.parquet` in the schema of the UFT authors' release (columns
`data_source, prompt, hint, answer, reward_model`, others are ignored), or the name of a built-in task that makes one.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rewards import VERIFIERS, score
from utils import seeding
from utils.checks import BadInput
from utils.tasks import countdown

BUILT_IN: dict[str, Callable[[Path], None]] = {"countdown": countdown.build}
CONSTANT_ANSWERS: dict[str, Callable] = {"countdown": countdown.best_constant_pattern}  # data_source -> the best one
BUILT_IN_FOLDER = Path(__file__).resolve().parent.parent / "data"
REQUIRED_COLUMNS = ("data_source", "prompt", "hint", "answer", "reward_model")


@dataclass(frozen=True)
class Problem:
    """One row of a data set.

    Attributes:
        index: row number in its file; with the split, the problem's identity for seeding.
        data_source: which verifier judges it.
        prompt: the text given to the model, as it is.
        solution: the chunks (sentences or lines) of a reference solution, up to but without `</think>`.
        demonstration: the full text to imitate: solution, `</think>`, `<answer> .. </answer>`.
        ground_truth: what the verifier needs to know.
    """

    index: int
    data_source: str
    prompt: str
    solution: tuple[str, ...]
    demonstration: str
    ground_truth: dict[str, Any]


def data_folder(name_or_folder: str) -> Path:
    """The folder that `--data` stands for; a built-in task is built at first use (in `data/` of this checkout).

    Raises:
        BadInput: neither a built-in name nor a folder.
    """
    if name_or_folder in BUILT_IN:
        folder = BUILT_IN_FOLDER / name_or_folder
        if not (folder / "test.parquet").is_file():
            BUILT_IN[name_or_folder](folder)
        return folder
    folder = Path(name_or_folder)
    if not folder.is_dir():
        names = ", ".join(sorted(BUILT_IN))
        raise BadInput(f"flag --data {name_or_folder}: must be a built-in task ({names}) or a folder that exists")
    return folder


def load_problems(name_or_folder: str, split: str) -> list[Problem]:
    """All rows of `split` ("train" or "test").

    Raises:
        BadInput: a missing file or column, a column of the wrong type, an empty split, or a hint that holds an answer.
    """
    path = data_folder(name_or_folder) / f"{split}.parquet"
    where = f"flag --data {name_or_folder}: {path.name}"
    if not path.is_file():
        raise BadInput(f"{where} is missing in {path.parent}")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{where} cannot be read as parquet ({error})") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in table.column_names]
    if missing:
        raise BadInput(f"{where} has no column {', '.join(missing)}; needed are {', '.join(REQUIRED_COLUMNS)}")
    if table.num_rows == 0:
        raise BadInput(f"{where} has no rows")
    rows = table.select(REQUIRED_COLUMNS).to_pylist()
    return [_problem(index, row, f"{where} row {index}") for index, row in enumerate(rows)]


def _problem(index: int, row: dict[str, Any], where: str) -> Problem:
    """The row as a Problem; BadInput says what is wrong with it."""

    def expect(condition: bool, rule: str) -> None:
        if not condition:
            raise BadInput(f"{where}: {rule}")

    messages, solution, reward_model = row["prompt"], row["hint"], row["reward_model"]
    expect(isinstance(row["data_source"], str) and row["data_source"] in VERIFIERS,
           f"data_source {row['data_source']!r} has no verifier; known: {', '.join(VERIFIERS)}")
    expect(
        isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
        and isinstance(messages[0].get("content"), str) and messages[0]["content"] != "",
        "prompt must be a list of one message whose content is a text",
    )
    expect(isinstance(solution, list) and all(isinstance(chunk, str) for chunk in solution),
           "hint must be a list of texts")
    expect(isinstance(row["answer"], str), "answer must be a text")
    expect(isinstance(reward_model, dict) and isinstance(reward_model.get("ground_truth"), dict),
           "reward_model must hold ground_truth")
    expect("<answer>" not in "".join(solution), "hint must not hold an <answer>: it would be scored as the model's")
    try:
        score(row["data_source"], "", reward_model["ground_truth"])
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error
    return Problem(index, row["data_source"], messages[0]["content"], tuple(solution), row["answer"],
                   reward_model["ground_truth"])


def problems_of_step(problems: list[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The `count` problems of training step `step` (1, 2, ...).

    The steps walk through an endless row of shuffled epochs; each epoch's order depends on (seed, epoch) alone.
    """
    chosen = []
    for position in range((step - 1) * count, step * count):
        epoch, offset = divmod(position, len(problems))
        if offset == 0 or not chosen:
            order = seeding.generator("epoch", seed, epoch).permutation(len(problems))
        chosen.append(problems[order[offset]])
    return chosen


def best_constant_answer(problems: list[Problem]) -> tuple[str, float, str] | None:
    """(name, accuracy, text) of the best answer that never looks at the problem, for the tables' floor; None for a
    task that has no such answers."""
    sources = {problem.data_source for problem in problems}
    if len(sources) != 1 or not sources <= set(CONSTANT_ANSWERS):
        return None
    text, accuracy = CONSTANT_ANSWERS[sources.pop()](problems)
    return "best constant pattern", accuracy, text


def fingerprint(problems: list[Problem]) -> str:
    """A short hash of all problems: equal fingerprints mean equal data."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(repr(problem).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
