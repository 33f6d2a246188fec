"""Problems: where they are read from, how they are checked, and in which order training meets them.

A data set is a folder with `train.parquet` and `test.parquet` in the schema of the UFT authors' release (columns
`data_source, prompt, reward_model`, and `hint`, `answer` where solutions are known; others are ignored), or the name of
a built-in task that makes one; or data in another form, which utils/tasks/own.py brings into these columns.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rewards import NAMED, VERIFIERS, own_digest, pool, verifier_of, verify
from utils import ROOT, seeding
from utils.run.errors import BadInput, require
from utils.tasks.own import Own, convert, use_verifier
from utils.tasks.own_files import is_own
from utils.tasks.registry import BUILT_IN
from utils.types import Problem

BUILT_IN_FOLDER = ROOT / "data"
REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model")
OPTIONAL_COLUMNS = ("hint", "answer")  # evaluation and pure reinforcement do without
OWN = Own()


def data_folder(name_or_folder: str) -> Path:
    """The folder that `--data` stands for; a built-in task is built at first use (in `data/` of this checkout).

    Raises:
        BadInput: neither a built-in name nor a folder.
    """
    if name_or_folder in BUILT_IN:
        folder = BUILT_IN_FOLDER / name_or_folder
        with one_builds(folder, folder / "test.parquet") as is_missing:
            if is_missing:
                BUILT_IN[name_or_folder](folder)
        return folder
    folder = Path(name_or_folder)
    if not folder.is_dir():
        names = ", ".join(sorted(BUILT_IN))
        raise BadInput(f"flag --data {name_or_folder}: must be a built-in task ({names}) or a folder that exists, a "
                       ".jsonl, .csv or .parquet file, or a data set of the Hugging Face hub (owner/name)")
    return folder


@contextlib.contextmanager
def one_builds(folder: Path, result: Path) -> Iterator[bool]:
    """Whether to make `result`, the file of `folder` that is written last. Of all processes, of whatever run, that want
    it at once one makes it, while the others wait; what a killed one has begun is made anew."""
    if result.is_file():
        yield False
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # gone with the process; of all machines where they share the disk
        yield not result.is_file()


def load_problems(name_or_folder: str, split: str, needs: Sequence[str] = ()) -> list[Problem]:
    """All rows of `split` ("train" or "test"); see `load_splits`."""
    return load_splits(name_or_folder, (split,), {split: needs})[0][split]


def load_splits(
    name: str, splits: Sequence[str], needs: Mapping[str, Sequence[str]] = MappingProxyType({}), own: Own = OWN
) -> tuple[dict[str, list[Problem]], str]:
    """All rows of the `splits` ("train", "test") of what `--data name` stands for, and in words how data of one's own
    were read. `needs` names the optional columns that every row of a split must fill.

    Raises:
        BadInput: a missing file or column, a column of the wrong type, an empty split, a hint that holds an answer, or
            rows without what is needed; a VERIFIER_WORKERS with which no answer could be judged later.
    """
    try:
        pool.num_workers()
    except ValueError as error:
        raise BadInput(str(error)) from error
    if not splits:
        return {}, ""
    if name not in BUILT_IN and is_own(name):
        rows, words = convert(name, own)
        for split in splits:
            require(split in rows, "--data", name, f"has no {split} split")
        tables = {split: pa.Table.from_pylist(rows[split]) for split in splits}
        return {split: _problems(table, table.column_names, needs.get(split, ()), f"flag --data {name}: {split}")
                for split, table in tables.items()}, words
    for field in fields(own):
        value = getattr(own, field.name)
        fits = value == field.default or (field.name == "verifier" and value.endswith(".py"))
        require(fits, f"--{field.name}", value, f"is for data in other columns than ours, and --data {name} has ours")
    if own != OWN:
        use_verifier(own.verifier)
    return {split: _read(name, split, needs.get(split, ())) for split in splits}, ""


def _read(name_or_folder: str, split: str, needs: Sequence[str]) -> list[Problem]:
    """The rows of a folder in our form, or of a built-in task."""
    path = data_folder(name_or_folder) / f"{split}.parquet"
    where = f"flag --data {name_or_folder}: {path.name}"
    if not path.is_file():
        raise BadInput(f"{where} is missing in {path.parent}")
    try:
        table = pq.ParquetFile(path).read()  # read_table imports pandas, half a second
        columns = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where} cannot be read as parquet ({error})") from error
    return _problems(table, columns, needs, where)


def _problems(table: pa.Table, columns: Sequence[str], needs: Sequence[str], where: str) -> list[Problem]:
    needed = (*REQUIRED_COLUMNS, *needs)
    missing = [column for column in needed if column not in columns]
    if missing:
        raise BadInput(f"{where} has no column {', '.join(missing)}; needed are {', '.join(needed)}")
    if table.num_rows == 0:
        raise BadInput(f"{where} has no rows")
    known = [column for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if column in columns]
    rows = zip(*(_values(table, column, where) for column in known), strict=True)
    problems = [_problem(index, dict(zip(known, row, strict=True)), f"{where} row {index}")
                for index, row in enumerate(rows)]
    for column in needs:
        empty = [p.index for p in problems if not (p.solution if column == "hint" else p.demonstration)]
        if empty:
            raise BadInput(f"{where}: {len(empty)} of {len(problems)} rows have an empty {column}, which this script "
                           f"needs (the first is row {empty[0]})")
    return problems


def _values(table: pa.Table, column: str, where: str) -> list[Any]:
    """The values of a column; BadInput where Python cannot hold one (no UTF-8, a field twice in a struct, no date)."""
    try:
        return table[column].to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
        raise BadInput(f"{where} column {column} cannot be read ({error})") from error


def _problem(index: int, row: dict[str, Any], where: str) -> Problem:
    """The row as a Problem; BadInput says what is wrong with it."""

    def expect(condition: bool, rule: str) -> None:
        if not condition:
            raise BadInput(f"{where}: {rule}")

    messages, reward_model = row["prompt"], row["reward_model"]
    solution = [] if row.get("hint") is None else row["hint"]
    demonstration = "" if row.get("answer") is None else row["answer"]
    source = row["data_source"]
    expect(isinstance(source, str) and verifier_of(source) is not None,
           f"data_source {source!r} has no verifier; known: {', '.join((*VERIFIERS, *NAMED))}"
           + ("; name your file by --verifier" if str(source).endswith(".py") else ""))
    expect(
        isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
        and isinstance(messages[0].get("content"), str) and messages[0]["content"] != "",
        "prompt must be a list of one message whose content is a text",
    )
    expect(isinstance(solution, list) and all(isinstance(chunk, str) for chunk in solution),
           "hint must be a list of texts")
    expect(isinstance(demonstration, str), "answer must be a text")
    expect(isinstance(reward_model, dict) and isinstance(reward_model.get("ground_truth"), dict),
           "reward_model must hold ground_truth")
    expect("<answer>" not in "".join(solution), "hint must not hold an <answer>: it would be scored as the model's")
    try:
        verify(source, "", reward_model["ground_truth"])
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error
    if not "".join(solution):  # the authors write [''] where there is none
        solution = []
    return Problem(index, source, messages[0]["content"], tuple(solution), demonstration,
                   reward_model["ground_truth"])


def problems_of_step(problems: list[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The `count` problems of training step `step` (1, 2, ...), all different if there are that many.

    The steps walk through an endless row of shuffled epochs; each epoch's order depends on (seed, epoch, count) alone.
    """
    chosen = []
    for position in range((step - 1) * count, step * count):
        epoch, offset = divmod(position, len(problems))
        if offset == 0 or not chosen:
            order = _epoch_order(len(problems), epoch, count, seed)
        chosen.append(problems[order[offset]])
    return chosen


def _epoch_order(num_problems: int, epoch: int, count: int, seed: int) -> np.ndarray:
    """(num_problems,) indices: shuffled, but what the step that two epochs share has from the epoch before changes
    places with the next problem that it has not. (A problem twice in a step has the same hints and samples twice.)"""
    first = epoch
    while first * num_problems % count and count <= num_problems:
        first -= 1  # the nearest epoch that begins with a step: it is as shuffled; at most `count` back
    order = seeding.generator("epoch", seed, first).permutation(num_problems)
    for number in range(first + 1, epoch + 1):
        num_before = number * num_problems % count
        num_after = count - num_before
        before = order[-num_before:]
        order = seeding.generator("epoch", seed, number).permutation(num_problems)
        met = np.isin(order, before)
        here = np.flatnonzero(met[:num_after])
        there = num_after + np.flatnonzero(~met[num_after:])[: len(here)]  # as many: count <= num_problems
        order[here], order[there] = order[there], order[here]
    return order


def fingerprint(problems: list[Problem]) -> str:
    """A short hash of all problems: equal fingerprints mean equal data, and equal files of verifiers of one's own."""
    digest = hashlib.sha256()
    for source in sorted({problem.data_source for problem in problems}):
        digest.update(own_digest(source).encode())
    for problem in problems:
        digest.update(repr(problem).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
