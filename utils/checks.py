"""Bad input is found before any model loads, and told in one line: the flag, the value, the rule."""

import contextlib
import fcntl
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import tyro
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from utils import heartbeat

LARGEST = 1e9  # no flag means more, and products of what is larger overflow
LOCK = ".lock"  # file in an output folder that a run holds locked


class BadInput(Exception):
    """What the user gave cannot work. The message names the flag, the value and the rule."""


class RunStopped(Exception):
    """The run must not go on. The message says why, and what to look at; the first rank that raises it tells.
    A folder `remove` is removed once no rank can be writing into it."""

    def __init__(self, message: str, remove: Path | None = None) -> None:
        super().__init__(message)
        self.remove = remove


def launch(main: Callable, args_class: type) -> None:
    """Parse the command line into `args_class` and call `main` with it.

    Bad input ends the process with one line on stderr (from the first rank) and exit status 2, a run that must stop
    with one and exit status 1; so does a lack of memory. Any error of one process ends all, and is told last: see
    utils/heartbeat.py.
    """
    from utils import out_of_memory  # imports torch, and this module

    settings: dict = {}
    argv = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]  # by the launcher
    try:
        args = tyro.cli(args_class, args=argv, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
        settings = vars(args)
        main(args)
    except BadInput as error:
        heartbeat.stop()
        if is_first_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RunStopped as error:
        heartbeat.fail(str(error), error.remove)
        os._exit(1)
    except Exception as error:
        shortage = out_of_memory.describe(error, settings)
        if shortage is not None:
            heartbeat.fail(shortage)
        elif not heartbeat.fail_by(error):
            raise
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all files are closed; a library's thread aborts the interpreter's teardown in about one run of ten


def world_size() -> int:
    """Number of processes the launcher started, known before they meet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def require(condition: bool, flag: str, value: object, rule: str) -> None:
    """Raises BadInput(`flag --name value: rule`) unless the condition holds."""
    if not condition:
        raise BadInput(f"flag {flag} {value}: {rule}")


def require_divides(flag: str, value: int, whole_flag: str, whole: int) -> None:
    """Raises BadInput unless `value` is positive and divides `whole`."""
    if value <= 0 or whole <= 0 or whole % value:
        raise BadInput(f"flag {flag} {value} must divide {whole_flag} {whole}")


def check_numbers(
    settings: object,
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    fractions: Sequence[str] = (),
    below_one: Sequence[str] = (),
    minutes: Sequence[str] = (),
) -> None:
    """Raises BadInput for the first named field of `settings` that is out of its range: above 0, at least 0, within
    [0, 1], within [0, 1), or long enough to wait for. Not-a-number is out of every range, as are infinities."""
    ranges: list[tuple[Sequence[str], Callable[[float], bool], str]] = [
        (positive, lambda value: 0 < value <= LARGEST, f"must be greater than 0, and at most {LARGEST:g}"),
        (not_negative, lambda value: 0 <= value < math.inf, "must not be negative, and finite"),
        (fractions, lambda value: 0 <= value <= 1, "must lie between 0 and 1"),
        (below_one, lambda value: 0 <= value < 1, "must be at least 0 and less than 1"),
        (minutes, lambda value: 0.1 <= value <= LARGEST, f"must be at least 0.1, and at most {LARGEST:g}"),
    ]
    for names, holds, rule in ranges:
        for name in names:
            value = vars(settings)[name]
            require(holds(value), f"--{name}", value, rule)


def check_output_dir(output_dir: str, resume: bool, overwrite: bool) -> None:
    """An output folder holds one run: a new one, or one resumed or overwritten by request.

    Raises:
        BadInput: the folder has content and neither flag is given, both are, or it is no folder.
    """
    folder = Path(output_dir)
    require(not (resume and overwrite), "--resume", resume, "cannot be combined with --overwrite")
    require(not folder.exists() or folder.is_dir(), "--output_dir", output_dir, "is a file, not a folder")
    is_used = folder.exists() and any(path.name not in (LOCK, heartbeat.FOLDER) for path in folder.iterdir())
    if is_used and not resume and not overwrite:
        raise BadInput(f"flag --output_dir {output_dir}: is not empty; give --resume to go on with the run in it, "
                       "or --overwrite to replace it")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    require(os.access(existing, os.W_OK | os.X_OK), "--output_dir", output_dir, f"{existing} cannot be written to")


@contextlib.contextmanager
def writing(what: Path, remove: Path | None = None) -> Iterator[None]:
    """What cannot be written inside ends the run, with one line; the folder `remove` is removed then.

    Raises:
        RunStopped: in place of the errors of Python, PyTorch and safetensors for a disk that is full or broken.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if heartbeat.is_of_others(error):
            raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        free = shutil.disk_usage(next(path for path in (what, *what.absolute().parents) if path.exists())).free
        message = (f"{what} cannot be written: {type(error).__name__}: {first_line} ({free / 2**30:.2f} GiB are free "
                   "there). The checkpoints before are whole: --resume goes on from the latest")
        raise RunStopped(message, remove) from error


_locks: list[TextIO] = []  # held until the process ends, however it ends


def lock_output_dir(output_dir: str) -> None:
    """Make the folder and take it for this run, in the first process. Raises BadInput where another run has it."""
    if not is_first_process():
        return
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        lock = (Path(output_dir) / LOCK).open("a+")
    except OSError as error:
        raise BadInput(f"flag --output_dir {output_dir}: cannot be written to ({error})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise BadInput(f"flag --output_dir {output_dir}: another run is writing there, process {lock.read().strip()}"
                       ) from None
    with contextlib.suppress(OSError):  # a full disk; the lock holds without a name in it
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    _locks.append(lock)


def load_tokenizer(model: str, may_be_unreachable: bool = False) -> PreTrainedTokenizerBase | None:
    """Tokenizer of a local folder or Hugging Face name.

    Args:
        may_be_unreachable: return None where a name's files cannot be fetched (for --check without a hub).

    Raises:
        BadInput: no such folder, a folder without config.json or tokenizer, or a name whose files cannot be fetched.
    """
    folder = Path(model)
    is_local = folder.is_dir()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    require(is_local or not looks_local, "--model", model, "no such folder")
    if is_local:
        require((folder / "config.json").is_file(), "--model", model, "the folder has no config.json")
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        require(any((folder / name).is_file() for name in names), "--model", model,
                "the folder has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        AutoConfig.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:  # what transformers raises for unreadable, unknown and unreachable alike
        if may_be_unreachable and not is_local:
            return None
        first_line = str(error).strip().splitlines()[0]
        raise BadInput(f"flag --model {model}: config and tokenizer cannot be loaded ({first_line}); "
                       "give a local folder, or a name of the Hugging Face hub that this machine can reach") from error
    require(tokenizer.eos_token_id is not None, "--model", model, "its tokenizer has no end-of-sequence token")
    return tokenizer
