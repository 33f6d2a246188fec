"""Requests to stop, and the points at which a step is given up for one.

SIGTERM or SIGINT to any rank, or a file `stop` in the output folder, asks all ranks to stop: they learn of it by the
heartbeats. A step of which no update is made yet is given up, since a resumed run takes it again exactly; after its
first update it is finished. DeepSpeed's launcher hands a signal to one rank, waits for its end, kills it after 30
seconds, and goes on with the next: by then the state should be saved. The file has no such limit.

Where all ranks pass in the same order (`meet`, `safe_point`) they agree by a collective whether to go on. Where a rank
is on its own, in a rollout, it leaves by itself (`leave`) into the collective at which the others arrive next: whoever
uses `leave` has a `meet` follow, and no other collective between the two.
"""

import os
import signal
import time
from collections.abc import Callable

from utils.run import distributed, watchdog
from utils.run.errors import Interrupted

ONE_REQUEST = 2.0  # seconds: signals that close together are one
EVERY = 2.0  # seconds between two agreements of `safe_point`, about


class _Course:
    """Where this rank is. The same on all ranks but for `signals`."""

    def __init__(self) -> None:
        self.signals: list[float] = []  # times
        self.finish: Callable[[int], None] | None = None
        self.num_done = 0  # updates of the model; steps
        self.saved = 0  # the step of the last checkpoint
        self.may_give_up = True
        self.met_at = 0.0
        self.passed, self.to_pass = 0, 1  # safe points since the last agreement, and until the next


_course = _Course()


def listen(finish: Callable[[int], None]) -> None:
    """From here on the first signal is only noted; a second one ends the process. Called after the libraries that set
    handlers of their own. `finish(steps done)` is how all ranks end that agreed to."""
    global _course
    _course = _Course()
    _course.finish = finish
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def _note(number: int, _frame) -> None:
    course = _course
    if course.signals and time.monotonic() > course.signals[0] + ONE_REQUEST:
        os._exit(128 + number)
    course.signals.append(time.monotonic())
    if len(course.signals) == 1:
        watchdog.ask_to_stop()
        step = course.num_done + 1
        what = "given up" if course.may_give_up else "finished, since a part of its updates is made"
        lost = step - max(course.saved, 0)
        steps = "1 step" if lost == 1 else f"{lost} steps"
        message = (f"\n{signal.Signals(number).name}: step {step} is {what}, then the run is saved. A second signal, "
                   f"or the launcher after 30 seconds, would end it at once, and {steps} at most would be lost\n")
        os.write(2, message.encode())  # print is not safe in a handler


def begin_step(num_done: int) -> None:
    """All ranks are about to take the step after `num_done`. Raises Interrupted where one was asked to stop."""
    _course.num_done, _course.may_give_up = num_done, True
    meet()


def must_finish() -> None:
    """From here on the step cannot be given up: weights are about to change."""
    _course.may_give_up = False


def is_saved(step: int) -> None:
    """There is a checkpoint of `step`."""
    _course.saved = step


def asked() -> bool:
    """Whether this rank knows of a request."""
    return len(_course.signals) > 0 or watchdog.asked_to_stop()


def meet() -> None:
    """Raises Interrupted on all ranks where one was asked to stop, if the step may be given up. All call together."""
    _agree()
    _course.passed, _course.to_pass = 0, 2


def safe_point() -> None:
    """The same where all ranks pass often: they agree about every EVERY seconds."""
    course = _course
    course.passed += 1
    if course.passed >= course.to_pass:
        seconds = _agree()  # the same on all ranks, so that they pass the same number of safe points until the next
        course.to_pass = max(1, min(int(EVERY * course.passed / max(seconds, 1e-9)), 2 * course.passed))
        course.passed = 0


def leave() -> None:
    """The same for a rank on its own: it waits for the others, who come to a `meet`."""
    if asked():
        _agree()


def _agree() -> float:
    """Seconds since the last time, the largest of all ranks; 0 where nobody has to agree."""
    course = _course
    if course.finish is None or not course.may_give_up:
        return 0.0
    is_asked, seconds = distributed.maxima([float(asked()), time.monotonic() - course.met_at])
    if is_asked:
        finish, num_done = course.finish, course.num_done
        course.finish = None
        raise Interrupted(lambda: finish(num_done))
    course.met_at = time.monotonic()
    return seconds
