"""Writing a data set: `train.parquet` and `test.parquet` in one folder, each renamed into place whole."""

import json
import os
import shutil
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


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
