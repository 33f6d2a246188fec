"""SIGTERM and SIGINT: the step is finished, a checkpoint saved, the process ends with status 0. A second signal ends it
at once.

DeepSpeed's launcher hands on what it gets, more than once within a second, and kills what is left after 30 seconds; a
longer step is lost then, and the run goes on from its last checkpoint.
"""

import os
import signal
import time

from utils import distributed

ONE_REQUEST = 2.0  # seconds: signals that close together are one
_received: list[float] = []


def listen() -> None:
    """From here on the first signal is only noted. Called after the libraries that set handlers of their own."""
    _received.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def _note(number: int, _frame) -> None:
    if _received and time.monotonic() > _received[0] + ONE_REQUEST:
        os._exit(128 + number)
    _received.append(time.monotonic())
    if len(_received) == 1:
        name = signal.Signals(number).name
        message = f"\n{name}: finishing the step, then saving; a second signal ends the run at once\n"
        os.write(2, message.encode())  # print is not safe in a handler


def requested() -> bool:
    """Whether any rank has been asked to stop. All ranks call together."""
    return bool(distributed.maximum(float(len(_received) > 0)))
