"""From the command line to `main`, and from an error to one last line."""

import gc
import os
import sys
from collections.abc import Callable

import tyro

from utils.run import devices, distributed, out_of_memory, watchdog
from utils.run.errors import BadInput, BadMachine, Interrupted, RunStopped

RENAMED = {"dry_run": "probe_memory"}  # flags of earlier versions


def run_script(main: Callable, args_class: type, computes: bool = True) -> None:
    """Parse the command line into `args_class` and call `main` with it. `computes` says that it may use a GPU, which
    must then work, unless the user asks for the CPU (devices.py).

    Bad input ends the process with one line on stderr (from the first rank) and exit status 2, a run that must stop
    with one and exit status 1; so does a lack of memory. Any error of one process ends all, and is told last: see
    utils/run/watchdog.py.
    """
    settings: dict = {}
    argv = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]  # by the launcher
    try:
        given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
        for old in given & set(RENAMED):
            if RENAMED[old] in args_class.__dataclass_fields__:
                raise BadInput(f"flag --{old} is called --{RENAMED[old]} now")
        args = tyro.cli(args_class, args=argv, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
        settings = vars(args)
        if computes:
            devices.settle()
        gc.freeze()  # what the libraries have made stays: no collection need look through its million objects again
        try:
            main(args)
        except Interrupted as request:
            request.__traceback__ = None  # with it go the frames that hold the step's tensors
            request.finish()
    except BadInput as error:
        watchdog.stop()
        is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        of_a_machine = isinstance(error, BadMachine) or distributed.is_node_local()
        if is_first_here if of_a_machine else distributed.is_main():  # each machine tells of itself
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RunStopped as error:
        watchdog.fail(str(error), error.remove)
        os._exit(1)
    except Exception as error:
        shortage = out_of_memory.describe(error, watchdog.current_phase(), settings)
        if shortage is not None:
            watchdog.fail(shortage)
        elif not watchdog.fail_by(error):
            raise
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all files are closed; a library's thread aborts the interpreter's teardown in about one run of ten
