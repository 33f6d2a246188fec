"""What the worker processes of pool.py share: the limits on what they take, how they hear of work and of the end."""

import os
import queue
import resource
import sys

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
