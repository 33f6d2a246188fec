"""The folder of a run: who has it, what is written there, and what is said when that fails."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from utils.run import distributed, watchdog
from utils.run.errors import BadInput, RunStopped, require

LOCK = ".lock"  # file in an output folder that a run holds locked


def check_output_dir(output_dir: str, resume: bool, overwrite: bool) -> None:
    """An output folder holds one run: a new one, or one resumed or overwritten by request.

    Raises:
        BadInput: the folder has content and neither flag is given, both are, or it is no folder.
    """
    folder = Path(output_dir)
    require(not (resume and overwrite), "--resume", resume, "cannot be combined with --overwrite")
    require(not folder.exists() or folder.is_dir(), "--output_dir", output_dir, "is a file, not a folder")
    of_no_run = (LOCK, watchdog.FOLDER, watchdog.STOP)
    is_used = folder.exists() and any(path.name not in of_no_run for path in folder.iterdir())
    if is_used and not resume and not overwrite:
        raise BadInput(f"flag --output_dir {output_dir}: is not empty; give --resume to go on with the run in it, "
                       "or --overwrite to replace it")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    require(os.access(existing, os.W_OK | os.X_OK), "--output_dir", output_dir, f"{existing} cannot be written to")


_locks: list[TextIO] = []  # held until the process ends, however it ends


def lock_output_dir(output_dir: str) -> None:
    """Make the folder and take it for this run, in its first process. Raises BadInput where another run has it."""
    if not distributed.is_keeper():
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


@contextlib.contextmanager
def writing(what: Path, remove: Path | None = None) -> Iterator[None]:
    """Turn a write error inside the block into RunStopped, which then deletes the folder `remove`.

    Raises:
        RunStopped: in place of the errors of Python, PyTorch and safetensors for a disk that is full or broken.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if watchdog.is_of_others(error):
            raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        free = shutil.disk_usage(next(path for path in (what, *what.absolute().parents) if path.exists())).free
        message = (f"{what} cannot be written: {type(error).__name__}: {first_line} ({free / 2**30:.2f} GiB are free "
                   "there). The checkpoints before are whole: --resume goes on from the latest")
        raise RunStopped(message, remove) from error


def plain(value: Any) -> Any:
    """The same value as JSON can hold it: tensors and numpy scalars as numbers, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)
    return number if math.isfinite(number) else None


def json_line(entry: dict) -> str:
    return json.dumps(plain(entry), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a .jsonl file, without a torn last line (a killed writer); ValueError where another is torn."""
    lines = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
    return entries


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)


def cut_after(path: Path, step: int) -> None:
    """Removes the lines of later steps: the resumed run writes them again."""
    if path.exists():
        write_atomically(path, "".join(json_line(entry) for entry in read_jsonl(path) if entry["step"] <= step))
