"""A training script, one phase of one step of which takes long: every sign of progress in it takes seconds. The product
knows nothing of it.

    python tests/workers/slow_step.py --script training/uft.py --slow "3 logprobs 2.5" ...     (or under `deepspeed`)
"""

import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.run import watchdog


def value_of(flag: str) -> str:
    """Taken from the command line."""
    place = sys.argv.index(flag)
    value = sys.argv[place + 1]
    del sys.argv[place : place + 2]
    return value


def main() -> None:
    script, (step, phase, seconds) = value_of("--script"), value_of("--slow").split()
    progress = watchdog.progress

    def slow_progress() -> None:
        heart = watchdog._watchdog
        if heart is not None and (heart.record["step"], heart.record["phase"]) == (int(step), phase):
            time.sleep(float(seconds))
        progress()

    watchdog.progress = slow_progress
    sys.argv[0] = script
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        watchdog.progress = progress


if __name__ == "__main__":
    main()
