"""Scripts one after another in one process, where a test is not about their starts, which cost more than short runs.
Ends with the first that fails, and its status.

    python tests/workers/in_turn.py '[["training/sft.py", "--lr", "0.001", ...], ...]'     (or under `deepspeed`)
"""

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.run import cli, output_dir, processes, watchdog


def main(runs: list[list[str]]) -> None:
    processes.join()
    processes.end = watchdog.stop  # the ranks stay together for the next
    cli.os = SimpleNamespace(_exit=sys.exit)  # how a script ends
    for script, *words in runs:
        sys.argv = [script, *words]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code != 0:
                raise
        output_dir._locks.clear()  # held until the process ends


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
    sys.stdout.flush()
    os._exit(0)  # as the scripts do: see cli.run_script
