"""Where a run comes from: its seed, the runs that it goes on from, and the model that the first of them began with."""

import math
import os
import re
from pathlib import Path

from utils.report.runs import is_on_hub, read_args

OF_STEP = re.compile(r"(?:export_)?step_(\d+)")  # folders of checkpoints, and of what utils.export makes of them


def model_path(output_dir: Path) -> Path:
    """What --model named: absolute where it is a folder. Relative paths begin where this is called."""
    model = read_args(output_dir).get("model", "unknown model")
    return Path(model if is_on_hub(model) else os.path.abspath(model))


def goes_on_from(output_dir: Path) -> tuple[Path, float] | None:
    """The run in whose folder the model of this one lies, and the step of it; None where it is no run's."""
    model = model_path(output_dir)
    for folder in model.parents:
        if (folder / "args.json").is_file() and (folder / "metrics.jsonl").is_file():
            steps = [int(found[1]) for part in model.parts if (found := OF_STEP.fullmatch(part))]
            return folder, steps[-1] if steps else math.inf
    return None


def lineage(output_dir: Path) -> list[tuple[Path, float]]:
    """The run and those it goes on from, newest first, each with the last step of it that counts."""
    chain = [(Path(os.path.abspath(output_dir)), math.inf)]
    while (before := goes_on_from(chain[-1][0])) is not None and before[0] not in [folder for folder, _ in chain]:
        chain.append(before)
    return chain


def origin(output_dir: Path) -> Path:
    """The model that the first run of the lineage began with."""
    return model_path(lineage(output_dir)[-1][0])


def seed_of(output_dir: Path) -> int:
    """--seed; of a run that does not say, the number at the end of its folder's name, or 0."""
    named = re.search(r"_seed(\d+)$", Path(output_dir).resolve().name)
    return read_args(output_dir).get("seed", int(named[1]) if named else 0)
