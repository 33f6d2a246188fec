"""What a worker's `main` does: the cases that its command line names, each measured and written down."""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from utils.run import distributed, processes


def write_down(folder: str, name: str, measured: Any) -> None:
    """<folder>/<name>.json, by the first process."""
    if distributed.is_main():
        (Path(folder) / f"{name}.json").write_text(json.dumps(measured))


def run_cases(cases: Iterable[Any], run: Callable[[Any], Any], prepare: Callable[[str], None] = lambda _: None) -> None:
    """`FOLDER NAME_OF_CASE ...` on the command line. `prepare` is called with the folder, once the ranks have met."""
    folder, *names = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]  # by the launcher
    gc.freeze()  # as run_script does
    processes.join(timeout_minutes=2)
    prepare(folder)
    for case in cases:
        if case.name in names:
            write_down(folder, case.name, run(case))
    processes.end()
    os._exit(0)  # as the scripts do: see cli.run_script
