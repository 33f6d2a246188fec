"""A training script whose threads begin to write a checkpoint late, or cannot in the second process. The product knows
nothing of it.

    python tests/workers/slow_save.py --script training/sft.py --late 2.0|never ...     (or under `deepspeed`)
"""

import errno
import os
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.workers.slow_step import value_of
from utils.actor import Actor
from utils.run import distributed, stopping


def main() -> None:
    script, late = value_of("--script"), value_of("--late")
    write_state = Actor.write_state

    def late_write(actor: Actor, files: list) -> None:
        if late == "never" and distributed.rank() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(0.0 if late == "never" else float(late))
        if distributed.is_main():
            print(f"written in the background when {stopping._course.num_done} steps were done", flush=True)
        write_state(actor, files)

    Actor.write_state = late_write
    sys.argv[0] = script
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        Actor.write_state = write_state


if __name__ == "__main__":
    main()
