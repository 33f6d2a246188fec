"""Killable worker processes that compare an answer with its target through math-verify.

A worker is `python -m rewards.worker`: a line of JSON in, a line of JSON out. It takes one comparison at a time, and
is killed and replaced when that takes longer than the limit. Workers start when first needed, have a session of their
own (no Ctrl-C of the terminal reaches them), and end with their stdin: whatever way the parent goes, none outlives
it.
"""

import atexit
import contextlib
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rewards.answer import CORRECT, UNPARSABLE, WRONG_RESULT, Score

TIMEOUT = Score(0.0, False, "timeout")
CRASHED = Score(0.0, False, "verifier crashed")
RAISED = "verifier raised"  # how the reason begins where a verifier of the user's own has a fault
VERDICTS = {"equal": CORRECT, "different": WRONG_RESULT, "unparsable": UNPARSABLE}

COMMAND = (sys.executable, "-m", "rewards.worker")
ROOT = Path(__file__).resolve().parent.parent  # of the repository: a worker's folder
TIME_LIMIT = 5.0  # seconds for one comparison, from when a worker takes it
START_LIMIT = 120.0  # seconds for a worker's imports
MAX_WORKERS = 1_024  # each may take 2 GiB
MAX_COMPARISONS = 2_000  # then a worker is replaced: its libraries' caches grow


def has_failed(score: Score) -> bool:
    """Whether the verifier, and not the answer, is what the score tells of."""
    return score.reason in (TIMEOUT.reason, CRASHED.reason) or score.reason.startswith(RAISED)


class Comparison(NamedTuple):
    """What a verifier leaves to the workers: two LaTeX texts; or, for another `command` of workers than COMMAND, the
    ground truth as JSON and the completion."""

    target: str
    answer: str
    command: tuple[str, ...] = ()


class WorkerRefuses(Exception):
    """A worker that says, instead of "ready", why it cannot work."""


class WorkerEnd(Exception):
    """A worker gave no whole line: it ended, or (`late`) time was up."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late


class Worker:
    """One process; started when first used, used by one thread at a time."""

    def __init__(self, command: Sequence[str], time_limit: float) -> None:
        self.command = command
        self.time_limit = time_limit
        self.process: subprocess.Popen | None = None
        self.num_comparisons = 0

    def compare(self, comparison: Comparison) -> Score:
        """RuntimeError: no worker can be started (it says why on stderr). WorkerRefuses: it says why in a line."""
        if self.process is None or self.process.poll() is not None or self.num_comparisons == MAX_COMPARISONS:
            self.stop()
            self.start()
        self.num_comparisons += 1
        try:
            with contextlib.suppress(BrokenPipeError):
                request = [comparison.target, comparison.answer, self.time_limit]
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
            verdict = json.loads(self.read_line(self.time_limit))
            return VERDICTS[verdict] if isinstance(verdict, str) else Score(*verdict)
        except WorkerEnd as end:
            self.stop()
            return TIMEOUT if end.late else CRASHED
        except BaseException:  # Ctrl-C: what the worker still writes must not be taken for the next verdict
            self.stop()
            raise

    def start(self) -> None:
        environment = os.environ | {"PYTHONHASHSEED": "0"}  # the order of sets may steer a simplification
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT, env=environment,
            start_new_session=True,
        )
        self.num_comparisons = 0
        try:
            line = self.read_line(START_LIMIT)  # "ready", or {"refused": why}
        except WorkerEnd:
            self.stop()
            raise RuntimeError(f"a verifier process does not start: {' '.join(self.command)} (in {ROOT})") from None
        if line.startswith(b"{"):
            self.stop()
            raise WorkerRefuses(json.loads(line)["refused"])

    def read_line(self, limit: float) -> bytes:
        """The worker's next line, within `limit` seconds."""
        deadline = time.monotonic() + limit
        line = b""
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
                raise WorkerEnd(late=True)
            part = os.read(self.process.stdout.fileno(), 65_536)
            if not part:
                raise WorkerEnd(late=False)
            line += part
        return line

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


class Pool:
    """`num_workers` workers, shared by all threads."""

    def __init__(self, num_workers: int, time_limit: float = TIME_LIMIT, command: Sequence[str] = COMMAND) -> None:
        assert num_workers > 0, "a pool needs at least 1 worker, or `compare` waits for ever"
        self.workers = [Worker(command, time_limit) for _ in range(num_workers)]
        self.idle: queue.LifoQueue[Worker] = queue.LifoQueue()  # the one used last is the one that has started
        for worker in self.workers:
            self.idle.put(worker)

    def compare(self, comparison: Comparison, on_progress: Callable[[], None] = lambda: None) -> Score:
        worker = self.idle.get()
        on_progress()
        try:
            return worker.compare(comparison)
        finally:
            self.idle.put(worker)

    def start_one(self) -> None:
        """Start a worker, the one that `compare` takes first. Errors as of Worker.compare."""
        worker = self.idle.get()
        try:
            if worker.process is None:
                worker.start()
        finally:
            self.idle.put(worker)

    def compare_all(
        self, comparisons: Sequence[Comparison], on_progress: Callable[[], None] = lambda: None
    ) -> list[Score]:
        """The Scores in order; equal comparisons are made once. RuntimeError: no worker can be started."""
        different = list(dict.fromkeys(comparisons))
        compare = partial(self.compare, on_progress=on_progress)
        if len(different) < 2:
            scores = map(compare, different)
        else:
            with ThreadPoolExecutor(min(len(self.workers), len(different))) as threads:
                scores = threads.map(compare, different)
        score_of = dict(zip(different, scores, strict=True))
        return [score_of[comparison] for comparison in comparisons]

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()


shared: Pool | None = None
of_commands: dict[tuple[str, ...], Pool] = {}  # of workers other than COMMAND
shared_lock = threading.Lock()


def num_workers() -> int:
    """Workers of this process: VERIFIER_WORKERS of the environment; without it one a core, at most 4. ValueError: it is
    not a whole number from 1 to MAX_WORKERS."""
    text = os.environ.get("VERIFIER_WORKERS", str(min(4, os.cpu_count() or 1)))
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_WORKERS:
        rule = f"must be a whole number from 1 to {MAX_WORKERS}"
        raise ValueError(f"environment variable VERIFIER_WORKERS {text}: {rule}")
    return int(text)


def compare_all(
    comparisons: Sequence[Comparison], on_progress: Callable[[], None] = lambda: None
) -> list[Score]:
    """The Scores of `comparisons`, in order, by the workers of this process; from any thread. `on_progress` is called
    before each. ValueError: as for `num_workers`, when the first is needed."""
    by_command: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in comparisons:
        by_command.setdefault(comparison.command, []).append(comparison)
    scores = {command: iter(pool_of(command).compare_all(of_command, on_progress))
              for command, of_command in by_command.items()}
    return [next(scores[comparison.command]) for comparison in comparisons]


def pool_of(command: tuple[str, ...] = ()) -> Pool:
    """The pool of this process with workers of `command`; without one, those of COMMAND."""
    global shared
    with shared_lock:
        if not command:
            shared = shared or Pool(num_workers())
            return shared
        if command not in of_commands:
            of_commands[command] = Pool(num_workers(), command=command)
        return of_commands[command]


def close_shared() -> None:
    for pool in (shared, *of_commands.values()):
        if pool is not None:
            pool.close()


def forget_workers() -> None:
    """In a forked child: the workers and their pipes are the parent's."""
    global shared, shared_lock
    shared, shared_lock = None, threading.Lock()
    of_commands.clear()


atexit.register(close_shared)
os.register_at_fork(after_in_child=forget_workers)
