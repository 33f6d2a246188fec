"""On PYTHONPATH of a launch, every Python process imports this at its start: signal USR1 is then a bug, wherever the
process is, and SIGRTMIN a hang. The project itself knows nothing of it."""

import contextlib
import signal
import time


def fail(_number, _frame):
    raise ValueError("a bug of one rank")


def hang(_number, _frame):
    while True:
        time.sleep(1)


with contextlib.suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGUSR1, fail)
    signal.signal(signal.SIGRTMIN, hang)
