"""Heartbeat files: one per rank, locked while the process lives, and what the others learn from them.

Each process keeps `<folder>/rank_R`: step, phase, state and a count that goes up while it lives; it holds a lock on
that file for as long as it lives.

Times are those of a monotonic clock, which every machine has of its own: a time that one process writes is compared
with those of the same machine only.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

TICK = 0.5  # seconds between two looks
SILENT = 4.0  # seconds without a sign of life: the process is stopped, or native code keeps the interpreter
BOOT = Path("/proc/sys/kernel/random/boot_id")  # what a machine's clock is called
GONE = "was killed (out of memory? see dmesg) or crashed"


class Heartbeat:
    """`record` is what this process has written; `others` (by rank) what it last saw of those that it has seen alive,
    with `seen` (when their count went up), `alive`, `gone` (when that ended, or None) and `told` (when it was seen that
    they failed, or None): by this process's clock."""

    def __init__(self, folder: Path, rank: int, num_ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rank, self.num_ranks = folder, rank, num_ranks
        self.record: dict[str, Any] = {
            "rank": rank, "host": socket.gethostname(), "clock": clock(), "process": os.getpid(), "step": 0,
            "phase": "start-up", "phases": 0, "state": "runs", "ticks": 0, "idle": 0.0, "waits": False,
            "asked": False,  # to stop
        }
        self.others: dict[int, dict[str, Any]] = {}
        self.descriptor = os.open(folder / f"rank_{rank}", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)  # whoever looks holds it shared, for a moment
        os.ftruncate(self.descriptor, 0)
        self.write()

    def write(self, **changes: Any) -> None:
        self.record.update(changes)
        text = json.dumps(self.record).encode()
        with contextlib.suppress(OSError):  # a full disk is for those to tell who lose something by it
            os.pwrite(self.descriptor, text.ljust(1024), 0)

    def close(self) -> None:
        os.close(self.descriptor)  # and with it the lock

    def look(self) -> None:
        """Bring `others` up to date. A process counts once it has been seen alive: before, its file is an old run's."""
        for rank in range(self.num_ranks):
            if rank == self.rank:
                continue
            try:
                descriptor = os.open(self.folder / f"rank_{rank}", os.O_RDONLY)
            except OSError:
                continue
            try:
                alive = is_locked(descriptor)  # first: the record of a dead process is its last
                record = json.loads(os.read(descriptor, 4096))
            except ValueError:  # about to be written
                continue
            finally:
                os.close(descriptor)
            before = self.others.get(rank)
            if before is None and not alive:
                continue
            now = time.monotonic()
            is_new = before is None or before["ticks"] != record["ticks"]
            gone = None if alive else before["gone"] or now
            told = None if record["state"] != "failed" else before and before["told"] or now
            self.others[rank] = record | {"alive": alive, "seen": now if is_new else before["seen"], "gone": gone,
                                          "told": told}

    def living(self) -> list[int]:
        """The ranks that live and answer, this one included."""
        return sorted([self.rank] + [rank for rank, one in self.others.items() if one["alive"] and not is_silent(one)])

    def failed(self) -> list[dict[str, Any]]:
        """Records of the processes that said so."""
        return [one for one in (*self.others.values(), self.record) if one["state"] == "failed"]

    def failure(self) -> dict[str, Any] | None:
        """The record of the process that failed or died first, with the `reason`: the line that tells of it.

        Of those that failed, all processes say the same one: the first of each machine by its clock, and of these the
        one that had seen the fewest fail before (`earlier`). One that died has left no time: it was when this process
        saw it, as is then the failure of another machine.
        """
        firsts: dict[str, dict[str, Any]] = {}
        for one in sorted(self.failed(), key=lambda one: (one["failed_at"], one["rank"])):
            firsts.setdefault(one["clock"], one)
        found = []
        if firsts:
            one = min(firsts.values(), key=lambda one: (one["earlier"], one["rank"]))
            found.append(one | {"since": one["failed_at"] if self.shares_clock(one) else one["told"] - 2 * TICK})
        found += [one | {"since": one["gone"] - 2 * TICK, "reason": f"{described(one)} {GONE}"}  # seen a tick late
                  for one in self.others.values() if not one["alive"] and one["state"] == "runs"]
        return min(found, key=lambda one: (one["since"], one["rank"]), default=None)

    def shares_clock(self, record: dict[str, Any]) -> bool:
        """Whether a process is on this machine."""
        return record["clock"] == self.record["clock"]

    def behind(self, idle: float) -> dict[str, Any]:
        """The record of the process that the others wait for: in the earliest phase; of several there one that does not
        answer, then one that is in no collective, then the one that has been without progress for longest. This one has
        been for `idle` seconds."""
        everyone = [self.record | {"idle": idle}]
        for one in self.others.values():
            silence = time.monotonic() - one["seen"] if is_silent(one) else 0.0
            everyone.append(one | {"idle": one["idle"] + silence, "silent": silence > 0})
        return min(everyone, key=lambda one: (one["phases"], not one.get("silent"), one["waits"], -one["idle"]))


def clock() -> str:
    """The name of this machine's monotonic clock, which begins with the machine; several machines may have one name."""
    try:
        return BOOT.read_text().strip()
    except OSError:  # no such system
        return socket.gethostname()


def is_silent(record: dict[str, Any]) -> bool:
    return time.monotonic() - record["seen"] > SILENT


def is_locked(descriptor: int) -> bool:
    """Whether another process holds the lock that comes with a life. These locks are gone with the process, whatever
    ends it, and are not inherited by the processes it starts."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.lockf(descriptor, fcntl.LOCK_UN)
    return False


def described(record: dict[str, Any]) -> str:
    return (f"rank {record['rank']} (process {record['process']} on {record['host']}), in step {record['step']}, "
            f"{record['phase']},")
