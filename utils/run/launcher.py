"""The DeepSpeed launcher that started this process."""

import os
from pathlib import Path


def launcher_folder() -> Path | None:
    """Its folder in /proc, proc(5); None where this process was not started so, or the system has no such folders."""
    process = os.getppid()
    try:
        while process > 1:
            folder = Path("/proc", str(process))
            if b"deepspeed.launcher.launch" in folder.joinpath("cmdline").read_bytes():
                return folder
            process = int(stat(folder)[1])
    except OSError:
        pass
    return None


def stat(folder: Path) -> list[str]:
    """The fields of a process from the third on: its parent's number is field 1, when it started field 19."""
    return folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()


def variable(name: str) -> str | None:
    """What an environment variable was for the launcher, which hands some on to its processes with another value."""
    folder = launcher_folder()
    try:
        words = [] if folder is None else folder.joinpath("environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return None
    return next((word.partition(b"=")[2].decode(errors="replace") for word in words
                 if word.startswith(f"{name}=".encode())), None)
