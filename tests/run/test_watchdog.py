"""The heartbeat with real processes that import nothing else: stalls, deaths, failures, and who is named for them."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils import ROOT, metrics
from utils.run import heartbeat, stopping, watchdog

pytestmark = pytest.mark.slow

# A rank: phases of 0.1 s up to step 3; there each does what it is told, or waits for the others for ever.
RANK = r"""
import ctypes, os, sys, time
from pathlib import Path
from utils.run import heartbeat, watchdog

def hang_in_python():
    while True:
        time.sleep(0.1)

class OnGPU:
    item = ctypes.CDLL(None).sleep  # without the interpreter's lock, and without a frame of its own

folder, limit, fault = sys.argv[1], float(sys.argv[2]), sys.argv[3]
monotonic, ahead = time.monotonic, float(os.environ.get(f"AHEAD_{os.environ['RANK']}", "0"))
if ahead:  # as on another machine
    time.monotonic = lambda: monotonic() + ahead
    heartbeat.clock = lambda: f"another, {ahead} s ahead"
watchdog.start(folder, limit / 60, on_gpu=fault in ("gpu", "hang late"))
for step in range(1, 4):
    for phase in ("rollout", "reward"):
        watchdog.phase(phase, step)
        time.sleep(0.5 if step == 3 else 0.1)
        if step == 3 and phase == "rollout":
            Path(folder, f"there_{os.environ['RANK']}").touch()
            if fault == "hang":
                hang_in_python()
            if fault == "native":
                ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
            if fault == "gpu":
                tensor = OnGPU()
                tensor.item(600)
            if fault == "hang late":
                for _ in range(15):
                    time.sleep(0.1)
                    watchdog.progress()
                hang_in_python()
            if fault == "leave":
                watchdog.stop()
                sys.exit(3)
            if fault in ("fail", "fail after"):
                while fault == "fail after" and '"failed"' not in Path(folder, ".heartbeat", "rank_1").read_text():
                    time.sleep(0.001)
                try:
                    raise ValueError("a bug")
                except ValueError as error:
                    assert watchdog.fail_by(error)
                    os._exit(1)
            if fault == "fill":
                watchdog.fail("no space", remove=Path(folder, "partial"))
                os._exit(1)
            if fault == "slow":
                for _ in range(50):
                    time.sleep(0.1)
                    watchdog.progress()
                print("healthy", flush=True)
                os._exit(0)
hang_in_python()
"""


class Ranks:
    """One process for each of `faults`; "" is one that waits for the others."""

    def __init__(self, folder: Path, limit: float, *faults: str, **variables: str) -> None:
        self.folder, self.began, self.errors = folder, time.monotonic(), folder / "stderr.txt"
        environment = os.environ | {"WORLD_SIZE": str(len(faults)), "PYTHONPATH": str(ROOT)} | variables
        (folder / "rank.py").write_text(RANK)
        with self.errors.open("w") as errors:
            self.processes = [
                subprocess.Popen([sys.executable, folder / "rank.py", str(folder), str(limit), fault], stderr=errors,
                                 stdout=subprocess.PIPE, text=True, env=environment | {"RANK": str(rank)})
                for rank, fault in enumerate(faults)
            ]

    def when_there(self, rank: int) -> subprocess.Popen:
        end = time.monotonic() + 60
        while not (self.folder / f"there_{rank}").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return self.processes[rank]

    def end(self) -> tuple[list[int], str]:
        """Exit statuses, and the last line on stderr."""
        try:
            statuses = [process.wait(timeout=60) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.stdout.close()
        return statuses, self.errors.read_text().strip().splitlines()[-1]


def test_a_rank_that_hangs_in_python_is_named_and_all_show_their_stacks(tmp_path):
    statuses, line = Ranks(tmp_path, 3.0, "", "hang", "").end()
    assert statuses == [1, 1, 1]
    assert re.match(r"stopped: rank 1 \(process \d+ on .*\), in step 3, rollout, made no progress for [34] s ", line)
    for rank in range(3):
        assert "hang_in_python" in (tmp_path / f"stall_rank_{rank}.txt").read_text()


@pytest.mark.parametrize("fault", ["native", "stopped"])
def test_a_rank_that_cannot_answer_is_named_and_killed(tmp_path, fault):
    """Rank 0, so that another has to speak."""
    ranks = Ranks(tmp_path, 5.0, fault, "")
    if fault == "stopped":
        os.kill(ranks.when_there(0).pid, signal.SIGSTOP)
    statuses, line = ranks.end()
    assert statuses[1] == 1 and line.startswith("stopped: rank 0 (process ") and "and does not answer" in line
    if fault == "stopped":
        assert statuses[0] == -signal.SIGKILL
    else:  # asked for its stacks, as native code can be: the line of the call
        [number] = [number for number, line in enumerate(RANK.splitlines(), start=1) if "PyDLL" in line]
        assert f'File "{tmp_path}/rank.py", line {number} in <module>' in ranks.errors.read_text()


@pytest.mark.parametrize(("rank", "faults"), [(0, ("", "", "")), (2, ("", "", ""))])
def test_a_rank_that_is_killed_is_named(tmp_path, rank, faults):
    ranks = Ranks(tmp_path, 60.0, *faults)
    ranks.when_there(rank).kill()
    began = time.monotonic()
    statuses, line = ranks.end()
    assert time.monotonic() - began < 20
    assert statuses == [-signal.SIGKILL if number == rank else 1 for number in range(3)]
    assert line.startswith(f"stopped: rank {rank} (process ") and line.endswith(heartbeat.GONE)


def test_a_rank_that_fails_is_named_and_its_traceback_shown(tmp_path):
    statuses, line = Ranks(tmp_path, 60.0, "", "fail").end()
    assert statuses == [1, 1] and line.startswith("stopped: rank 1 ") and line.endswith("ValueError: a bug")
    assert (tmp_path / "stderr.txt").read_text().count("Traceback") == 1


@pytest.mark.parametrize("ahead", ["1e6", "-1e6"])
def test_of_two_machines_the_one_that_failed_first_is_named_whatever_their_clocks_say(tmp_path, ahead):
    statuses, line = Ranks(tmp_path, 60.0, "fail after", "fail", "", AHEAD_1=ahead).end()
    assert statuses == [1, 1, 1] and line.startswith("stopped: rank 1 ") and line.endswith("ValueError: a bug")


@pytest.mark.parametrize("ahead", ["1e6", "-1e6"])
def test_a_rank_that_is_killed_on_another_machine_is_named(tmp_path, ahead):
    ranks = Ranks(tmp_path, 60.0, "", "", AHEAD_1=ahead)
    ranks.when_there(1).kill()
    statuses, line = ranks.end()
    assert statuses == [1, -signal.SIGKILL] and line.startswith("stopped: rank 1 ") and line.endswith(heartbeat.GONE)


def test_a_rank_that_waits_for_the_gpu_waits_for_the_others(tmp_path):
    """NCCL's collectives return at once: a rank waits where it reads what they give. It waits for longer than the one
    that is behind, which did something when the other waited already."""
    _, line = Ranks(tmp_path, 4.0, "gpu", "hang late").end()
    assert line.startswith("stopped: rank 1 (process ")


def test_of_several_ranks_that_fail_one_tells_and_removes_what_is_half_written(tmp_path):
    (tmp_path / "partial").mkdir()
    statuses, _ = Ranks(tmp_path, 60.0, "fill", "fill", "fill").end()
    assert statuses == [1, 1, 1] and not (tmp_path / "partial").exists()
    assert (tmp_path / "stderr.txt").read_text().split() == ["stopped:", "no", "space"]


def test_progress_within_a_phase_and_taking_leave_are_no_faults(tmp_path):
    """Rank 1 is in one phase for longer than the limit, and rank 2 ends long before the others."""
    ranks = Ranks(tmp_path, 3.0, "slow", "slow", "leave")
    with pytest.raises(IndexError):
        ranks.end()
    assert [process.returncode for process in ranks.processes] == [0, 0, 3]


def test_a_run_that_was_stopped_as_a_whole_goes_on(tmp_path):
    """Ctrl-Z, or a machine that sleeps: the time in which a process was stopped does not count."""
    ranks = Ranks(tmp_path, 3.0, "slow", "slow")
    for number, seconds in ((signal.SIGSTOP, 4.5), (signal.SIGCONT, 0)):
        for rank in range(2):
            os.kill(ranks.when_there(rank).pid, number)
        time.sleep(seconds)
    with pytest.raises(IndexError):
        ranks.end()
    assert [process.returncode for process in ranks.processes] == [0, 0]


def test_what_an_earlier_run_left_is_no_fault(tmp_path):
    ranks = Ranks(tmp_path, 60.0, "", "")
    for process in ranks.processes:
        ranks.when_there(ranks.processes.index(process))
    for process in ranks.processes:
        process.kill()
    for process in ranks.processes:
        process.wait()
    heart = None
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2"}
    try:
        watchdog.start(str(tmp_path), 1.0)
        heart = watchdog._watchdog
        heart.look()
        assert heart.others == {} and heart.failure() is None
    finally:
        watchdog.stop()
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
    assert heart is not None and not heart.thread.is_alive()


def test_the_parts_of_a_step_are_its_phases_and_its_seconds():
    for name in ("rft", "stage", "r3", "uft", "sft"):
        parts = re.findall(r'watch\.begin\("(\w+)"\)', (ROOT / "training" / f"{name}.py").read_text())
        watch = metrics.Stopwatch(step=1)
        for part in parts:
            watch.begin(part)
            assert watchdog.current_phase() == part
        watch.end()
        assert list(watch.seconds) == [f"seconds/{part}" for part in parts] and min(watch.seconds.values()) > 0
        assert parts == (["batch", "update"] if name == "sft" else ["sync", "rollout", "reward", "logprobs", "update"])


def test_it_costs_next_to_nothing(tmp_path):
    watchdog.start(str(tmp_path), 1.0)
    try:
        began = time.perf_counter()
        for _ in range(1000):
            watchdog.phase("rollout", 1)
        of_a_phase = (time.perf_counter() - began) / 1000
        began = time.perf_counter()
        for _ in range(1000):
            watchdog.progress()
        of_progress = (time.perf_counter() - began) / 1000
    finally:
        watchdog.stop()
    print(f"{of_a_phase * 1e6:.1f} us a phase, {of_progress * 1e6:.2f} us a sign of progress")
    assert of_a_phase < 1e-3 and of_progress < 1e-4  # a step has about ten of the one


# ----- clocks -----

WALL = {("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime")}
WALL |= {(name, method) for name in ("datetime", "date") for method in ("now", "today", "utcnow")}
FILES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_atime", "getmtime", "getctime"}


def wall_clocks(source: str) -> list[str]:
    """Where code reads a clock that somebody may set, or orders files by it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in WALL or node.attr in FILES:
                found.append(f"{owner}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"from time import {alias.name}" for alias in node.names if ("time", alias.name) in WALL]
    return found


def test_nothing_reads_the_wall_clock_but_what_shows_dates():
    read = {str(path.relative_to(ROOT)): found for folder in ("training", "utils", "inference", "rewards")
            for path in (ROOT / folder).rglob("*.py") if (found := wall_clocks(path.read_text()))}
    assert read == {
        "utils/run/environment.py": ["time.strftime"],
        "utils/report/page.py": [".st_mtime_ns"],  # whether a file has changed
        "utils/report/page_data.py": [".st_mtime", "time.strftime"],  # what a page says of dates, beside the run
    }
    assert wall_clocks("import time\nfrom time import time\ntime.time()\ndatetime.datetime.now()") != []


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    jumps = iter([1e9, -1e9, 3.6e3, -3.6e3] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    watchdog.start(str(tmp_path), 0.1)
    try:
        watch = metrics.Stopwatch(step=1)
        watch.begin("rollout")
        time.sleep(3 * heartbeat.TICK)
        watch.end()
        assert 3 * heartbeat.TICK <= watch.seconds["seconds/rollout"] < 6 + 3 * heartbeat.TICK
        assert 0 <= watchdog._watchdog.idle < 6
    finally:
        watchdog.stop()
    monkeypatch.setattr(stopping, "_course", stopping._Course())
    stopping._note(signal.SIGTERM, None)
    stopping._note(signal.SIGTERM, None)  # within ONE_REQUEST: the process is still there
