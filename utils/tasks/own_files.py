"""Data of the user's own as they are: the rows of a .jsonl, .csv or .parquet file, or of a data set in the layout of
the Hugging Face hub (a name there, `name:config`, or a folder)."""

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from utils.run.errors import BadInput

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?::[\w.-]+)?")
WHOLE = "rows"  # the split of a file, which says of none


class Rows(NamedTuple):
    """`values(columns)` are the rows with these columns; `places` says for errors where each row stands in its file."""

    columns: list[str]
    values: Callable[[Sequence[str]], list[dict[str, Any]]]
    places: Sequence[str] | None = None

    def place(self, index: int) -> str:
        return f"row {index}" if self.places is None else self.places[index]


def is_own(name: str) -> bool:
    """Whether `name` is a file of the user's, a folder of data in another form than ours, or such a name."""
    path = Path(name)
    if path.suffix in READERS and not path.is_dir():
        return True
    if not path.is_dir():
        return HUB_NAME.fullmatch(name) is not None
    ours = [path / f"{split}.parquet" for split in ("train", "test")]
    if any(file.is_file() for file in ours):
        return all(is_in_other_columns(file) for file in ours if file.is_file())
    return any(file.suffix in (*READERS, ".json") for file in path.rglob("*"))


def is_in_other_columns(file: Path) -> bool:
    try:
        columns = {column.lower() for column in pq.read_schema(file).names}
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False  # broken: let the reader of our form tell
    return bool(columns) and not columns & {"data_source", "reward_model"}


def read_splits(name: str, where: str) -> dict[str, Rows]:
    """{split: rows} of what `is_own`; a file has the one split WHOLE. BadInput begins with `where`."""
    path = Path(name)
    if path.suffix not in READERS or path.is_dir():
        return read_hub(name, where)
    if not path.is_file():
        raise BadInput(f"{where}: no such file")
    try:
        return {WHOLE: READERS[path.suffix](path, where)}
    except (OSError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise BadInput(f"{where}: cannot be read ({error})") from error


def read_json_lines(path: Path, where: str) -> Rows:
    entries, places = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: line {number} is no JSON ({error})") from error
        if not isinstance(entries[-1], dict):
            raise BadInput(f"{where}: line {number} must be a JSON object, {{\"prompt\": ..}}")
        places.append(f"line {number}")
    columns = list(dict.fromkeys(column for entry in entries for column in entry))
    return Rows(columns, lambda chosen: [{column: entry.get(column) for column in chosen} for entry in entries], places)


def read_csv(path: Path, where: str) -> Rows:
    """All values are texts: 007 stays 007."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = list(reader.fieldnames or [])
        entries, places = [], []
        for entry in reader:
            if None in entry or None in entry.values():
                raise BadInput(f"{where}: line {reader.line_num} has more or fewer fields than the {len(columns)} of "
                               "its first line")
            entries.append(entry)
            places.append(f"line {reader.line_num}")
    return Rows(columns, lambda chosen: [{column: entry[column] for column in chosen} for entry in entries], places)


def read_parquet(path: Path, where: str) -> Rows:
    file = pq.ParquetFile(path)

    def values(chosen: Sequence[str]) -> list[dict[str, Any]]:
        try:
            return file.read(columns=list(chosen)).to_pylist()
        except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
            raise BadInput(f"{where}: cannot be read ({error})") from error

    return Rows(file.schema_arrow.names, values)


READERS = {".jsonl": read_json_lines, ".csv": read_csv, ".parquet": read_parquet}


def read_hub(name: str, where: str) -> dict[str, Rows]:
    import datasets  # here, as it takes a second that only such data should cost

    source, _, config = (name, "", "") if Path(name).is_dir() else name.partition(":")
    try:
        splits = datasets.load_dataset(source, config or None)
    except Exception as error:  # of the hub's, its HTTP library's, and of every reader of files
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        here = "" if Path(name).is_dir() else "; no such folder is here, and as a name of the Hugging Face hub it"
        raise BadInput(f"{where}{here or ':'} cannot be loaded ({first_line})") from error

    def rows(of_split: datasets.Dataset) -> Rows:
        return Rows(of_split.column_names, lambda chosen: of_split.select_columns(list(chosen)).to_list())

    return {split: rows(of_split) for split, of_split in splits.items()}
