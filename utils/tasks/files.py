"""Writing a data set: rows in the columns of the authors' release, and `train.parquet` and `test.parquet` in one
folder, each renamed into place whole."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def make_row(
    data_source: str, text: str, hint: Sequence[str], answer: str, ground_truth: dict[str, Any], index: int, split: str,
    ability: str = "math",
) -> dict[str, Any]:  # fmt: skip
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
