"""Watchdog: ends the whole run, with one clear line, when a process stalls, dies or fails.

Each process keeps a heartbeat file in `<output_dir>/.heartbeat` (heartbeat.py). A thread of each process reads all of
them:

- no progress for the limit (a collective that others do not join is none): every process dumps its stacks to stderr and
  `<output_dir>/stall_rank_R.txt`, and the run ends with a line that names the one that is behind;
- a process is gone and had not finished: killed, crashed or out of memory;
- a process says that it failed.

Time counts while a process runs: not while it is stopped, and not by a clock that somebody may set. Nothing here needs
the others to answer.
"""

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from utils.run.heartbeat import TICK, Heartbeat, described, is_silent
from utils.run.waiting import waits

FOLDER = ".heartbeat"  # in an output folder
STOP = "stop"  # a file there, which asks the run to stop
PATIENCE = 5.0  # seconds to wait for the last words of the others
# In the errors of a collective whose other side has gone:
CONNECTION = ("gloo", "nccl", "connection", "socket", "distbackend", "distnetwork", "diststore")


class _Watchdog(Heartbeat):
    """A heartbeat kept up by a thread, which ends the process when the run is over."""

    def __init__(self, output_dir: str, limit: float, on_gpu: bool) -> None:
        super().__init__(Path(output_dir) / FOLDER, int(os.environ.get("RANK", "0")),
                         int(os.environ.get("WORLD_SIZE", "1")))
        self.output_dir, self.limit, self.on_gpu = Path(output_dir), limit, on_gpu
        self.stacks_of(self.rank).unlink(missing_ok=True)  # of an earlier run
        if self.rank == 0:
            (self.output_dir / STOP).unlink(missing_ok=True)
        self.main_thread = threading.get_ident()
        self.asked = False  # by a signal, to stop
        self.beats = 0  # signs of progress
        self.idle = 0.0  # seconds since the last one
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="heartbeat", daemon=True)
        self.thread.start()

    def stacks_of(self, rank: int | str) -> Path:
        return self.output_dir / f"stall_rank_{rank}.txt"

    # ----- the thread -----

    def watch(self) -> None:
        last_beats, last_time = self.beats, time.monotonic()
        while not self.over.wait(TICK):
            now = time.monotonic()
            # A process that was stopped made no progress, but that is not its fault: what counts is time that it had.
            self.idle = self.idle + min(now - last_time, 4 * TICK) if self.beats == last_beats else 0.0
            last_beats, last_time = self.beats, now
            self.write(ticks=self.record["ticks"] + 1, idle=self.idle,
                       waits=waits(sys._current_frames().get(self.main_thread), self.on_gpu),
                       asked=self.asked or self.rank == 0 and (self.output_dir / STOP).exists())
            self.look()
            failure, states = self.failure(), {one["state"] for one in self.others.values() if one["alive"]}
            if self.over.is_set():
                return
            if failure is not None:
                self.follow(failure)
            if self.idle > self.limit or states & {"stalled", "dumped"}:
                self.end_stalled()

    def follow(self, failure: dict[str, Any]) -> NoReturn:
        """End because another process failed or died. One that failed tells why itself, once the others are gone; for
        one that died the first of the living does."""
        self.write(state="over")
        if failure["state"] != "failed":
            self.look()
            if self.rank == self.living()[0]:
                say(failure["reason"])
            else:
                self.wait_for_end_of(self.living()[0])
        os._exit(1)

    def end_stalled(self) -> NoReturn:
        self.write(state="stalled")
        text = f"rank {self.rank} in step {self.record['step']}, {self.record['phase']}: no progress for " \
               f"{self.idle:.0f} s; its threads, innermost call first\n"
        path = self.stacks_of(self.rank)
        try:
            with path.open("w+") as file:
                file.write(text)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(0)
                os.write(2, f"\n{file.read()}".encode())
        except OSError:  # the disk may be what stalls
            os.write(2, text.encode())
            faulthandler.dump_traceback(2, all_threads=True)
        self.write(state="dumped")
        self.look()
        speaker = self.living()[0]
        if self.rank != speaker:
            self.wait_for_end_of(speaker)
            os._exit(1)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(self.others[rank]["state"] != "dumped" for rank in self.living()[1:]):
            time.sleep(0.1)
            self.look()
        self.kill_silent()
        cause = self.behind(self.idle)
        what = f"made no progress for {cause['idle']:.0f} s"
        if cause["idle"] < self.limit / 2:
            what = f"keeps the others waiting for {self.limit:.0f} s"
        why = ", and does not answer: stopped, or stuck in native code" if cause.get("silent") else ""
        say(f"{described(cause)} {what} (--timeout_minutes {self.limit / 60:g}){why}. Stacks: {self.stacks_of('*')}")
        os._exit(1)

    def kill_silent(self) -> None:
        """DeepSpeed's launcher would give each process that does not answer 30 seconds, one after the other. If it can,
        it shows its stacks first: see `faulthandler.register` in `start`."""
        silent = [one for one in self.others.values() if one["alive"] and is_silent(one)
                  and one["host"] == self.record["host"] and self.shares_clock(one)]
        for number in (signal.SIGUSR2, signal.SIGKILL):
            for one in silent:
                with contextlib.suppress(OSError):
                    os.kill(one["process"], number)
            time.sleep(0.5 if silent else 0)

    def wait_for_end_of(self, rank: int) -> None:
        end = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < end and self.others[rank]["alive"]:
            time.sleep(0.1)
            self.look()

    # ----- the main thread -----

    def fail(self, reason: str, remove: Path | None) -> None:
        """Tell the others, wait until they are gone, and say why as the last; or leave that to one that failed before.
        The caller then ends the process."""
        for number in (signal.SIGTERM, signal.SIGINT):  # by the launcher, as soon as the first process has ended
            signal.signal(number, signal.SIG_IGN)
        self.over.set()
        failed_at = time.monotonic()
        self.look()
        self.write(state="failed", reason=reason[:600], failed_at=failed_at, earlier=len(self.failed()))
        end = time.monotonic() + PATIENCE
        while True:
            self.look()
            first = self.failure()
            if first["rank"] != self.rank and first["state"] == "failed":
                return
            if time.monotonic() > end or not any(one["alive"] for one in self.others.values()):
                if remove is not None:
                    shutil.rmtree(remove, ignore_errors=True)
                say(first["reason"])
                return
            time.sleep(0.1)


def say(reason: str) -> None:
    os.write(2, f"\nstopped: {reason}\n".encode(errors="backslashreplace"))


# ----- for the run -----

_watchdog: _Watchdog | None = None
_phase = "start-up"  # of this process, watched or not


def start(output_dir: str, timeout_minutes: float, on_gpu: bool = False) -> None:
    """From here on this process is watched, and watches. The ranks are those of the launcher's environment. `on_gpu`:
    who waits for the GPU may wait for the others.

    A signal USR2 shows the stacks of a run on stderr, and lets it go on.
    """
    global _watchdog
    faulthandler.enable(file=2)  # whatever sys.stderr has become
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    _watchdog = _Watchdog(output_dir, timeout_minutes * 60, on_gpu)


def phase(name: str, step: int | None = None) -> None:
    """This process begins a phase that all processes go through in the same order."""
    global _phase
    _phase = name
    if _watchdog is not None:
        _watchdog.beats += 1
        changes = {"phase": name, "phases": _watchdog.record["phases"] + 1}
        _watchdog.write(**changes if step is None else changes | {"step": step})


def current_phase() -> str:
    return _phase


def progress() -> None:
    """A sign of progress within a phase. It costs next to nothing."""
    if _watchdog is not None:
        _watchdog.beats += 1


def ask_to_stop() -> None:
    """Tell the other ranks that this one was asked to. Called by a signal's handler."""
    if _watchdog is not None:
        _watchdog.asked = True  # which its thread writes down


def asked_to_stop() -> bool:
    """Whether any rank was asked to, or the file STOP is there, as far as this process knows."""
    heart = _watchdog
    return heart is not None and (heart.record["asked"] or any(one["asked"] for one in list(heart.others.values())))


def stop() -> None:
    """Mark this process as finished: that it ends is no failure."""
    global _watchdog
    if _watchdog is not None:
        heart, _watchdog = _watchdog, None
        heart.over.set()
        heart.thread.join()
        heart.write(state="ended")
        heart.close()


def fail(reason: str, remove: Path | None = None) -> None:
    """This process cannot go on, for `reason`. All others end; then the folder `remove` is removed, if one is given,
    and stderr gets one last line with the reason of the process that failed first. The caller ends this one."""
    if _watchdog is not None:
        _watchdog.fail(reason, remove)
    elif os.environ.get("RANK", "0") == "0":
        say(reason)


def fail_by(error: Exception) -> bool:
    """The same for an error that nobody expected, with its traceback, unless it comes of another process's end. False
    where nothing watches."""
    if _watchdog is None:
        return False
    if is_of_others(error):
        time.sleep(PATIENCE)  # for the thread to find out who it was, and to end this process
    traceback.print_exception(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    _watchdog.fail(f"{described(_watchdog.record)} {type(error).__name__}: {first_line}", None)
    return True


def is_of_others(error: Exception) -> bool:
    """Whether `error` is a collective's, and says that another process is gone."""
    return any(word in f"{type(error).__name__} {error}".lower() for word in CONNECTION)
