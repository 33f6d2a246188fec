"""Files of data sets: rows in the columns of the authors' release are written as `train.parquet` and `test.parquet` of
one folder, each renamed into place whole; rows of the hub, and the setting of a generated set, are read."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from utils.run.errors import BadInput


def make_row(
    data_source: str, text: str, hint: Sequence[str], answer: str, ground_truth: dict[str, Any], index: int, split: str,
    ability: str = "math",
) -> dict[str, Any]:
    """`text` is the prompt, `hint` the solution in chunks, `answer` what follows the prompt in a demonstration. `index`
    and `split` say where the problem stands in its source."""
    return {
        "data_source": data_source,
        "prompt": [{"content": text, "role": "user"}],
        "hint": list(hint),
        "question": text,
        "answer": answer,
        "ability": ability,
        "reward_model": {"ground_truth": ground_truth, "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }


def write_splits(
    folder: str | os.PathLike, splits: dict[str, list[dict[str, Any]]], setting: tuple[bytes, dict] | None = None
) -> None:
    """Writes `{split: rows}` as `<folder>/<split>.parquet`, so that two ranks may build the same folder at once.

    `setting` = (key, JSON-able dict) goes into the metadata of each file's schema.
    """
    os.makedirs(folder, exist_ok=True)
    building = tempfile.mkdtemp(dir=folder, prefix=".building-")
    try:
        for split, rows in splits.items():
            table = pa.Table.from_pylist(rows)
            if setting is not None:
                table = table.replace_schema_metadata({setting[0]: json.dumps(setting[1])})
            pq.write_table(table, os.path.join(building, f"{split}.parquet"))
        for split in splits:
            os.replace(os.path.join(building, f"{split}.parquet"), os.path.join(folder, f"{split}.parquet"))
    finally:
        shutil.rmtree(building)


def setting_of(flags: Any, setting_class: type) -> dict[str, Any]:
    """Those of a generator's flags that say which problems there are: the fields of the class that theirs extends."""
    return {field.name: getattr(flags, field.name) for field in fields(setting_class)}


def load_rows(source: str, config: str | None, split: str, columns: Sequence[str], module: str) -> list[dict[str, Any]]:
    """The `columns` of a split of a hub data set, or of a folder with its files (in a subfolder `config`, or directly).

    Raises:
        BadInput: it cannot be loaded, has no rows, or lacks a column. `module` is whose --source gives a local copy.
    """
    import datasets  # here, as it takes a second that only the making of this data should cost

    where = f"data set {source} ({split})"
    advice = f"python -m {module} --output_dir D --source DIR takes a local copy of its files"
    if Path(source).is_dir():
        subfolder = Path(source, config or "")
        source, config = str(subfolder if subfolder.is_dir() else source), None
    try:
        dataset = datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{where} cannot be loaded ({first_line}); {advice}") from error
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise BadInput(f"{where} has no column {', '.join(missing)}; there are {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise BadInput(f"{where} has no rows; {advice}")
    return dataset.select_columns(list(columns)).to_list()


def read_setting(folder: str | os.PathLike, key: bytes, task: str) -> dict[str, Any]:
    """The setting that `write_splits` put into the schema of test.parquet under `key`; BadInput where there is none."""
    metadata = pq.read_schema(os.path.join(folder, "test.parquet")).metadata or {}
    if key not in metadata:
        raise BadInput(f"flag --data {folder}: must have been written by utils.tasks.{task}")
    return json.loads(metadata[key])
