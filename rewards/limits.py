"""What the worker processes of pool.py share: the limits on what they take, how they hear of work and of the end."""

import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import TextIO

MAX_MEMORY = 2 * 1024**3  # bytes of address space
SPARE_SECONDS = 3  # of processor time, after which the process ends though nobody stops it


def read_lines(lines: queue.Queue) -> None:
    """In a thread of its own: the parent may go while the other one compares."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def limit_cpu_time(seconds: float) -> None:
    """The process is killed `seconds` of processor time from now: for when nobody is left to measure them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def serve(judge: Callable[[str, str], object], output: TextIO) -> None:
    """Say "ready"; then for each line [text, text, seconds] of stdin what `judge` makes of the texts, until its end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher's to a whole tree of processes; the parent ends this one
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    print(json.dumps("ready"), file=output, flush=True)
    while True:
        *texts, seconds = json.loads(lines.get())
        limit_cpu_time(seconds + SPARE_SECONDS)
        print(json.dumps(judge(*texts)), file=output, flush=True)


def silence() -> None:
    """Nothing that prints from here on can write a verdict, or keep a terminal or a pipe of the parent open."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())


def limit_memory(more_than: int = 0) -> None:
    """MAX_MEMORY bytes beside `more_than`, and no image of the memory on the disk when it ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (more_than + MAX_MEMORY,) * 2)
