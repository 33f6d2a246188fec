"""What processes conclude from each other's heartbeats, without such processes."""

import random
import sys

import pytest

from utils.run import heartbeat, waiting
from utils.run.heartbeat import TICK, Heartbeat

# ----- who failed first -----


@pytest.fixture
def look(tmp_path):
    """look(rank, records, **seen) -> the rank that process `rank` says failed first, which has seen what the `records`
    say when its own clock stood at `seen`: {"told_1": time, "gone_2": time}."""

    def conclude(rank: int, records: list[dict], **seen: float) -> int:
        heart = Heartbeat(tmp_path, rank, len(records))
        heart.record |= records[rank]
        for other, record in enumerate(records):
            if other != rank:
                gone = seen.get(f"gone_{other}")
                heart.others[other] = heart.record | record | {"rank": other, "alive": gone is None, "gone": gone,
                                                               "told": seen.get(f"told_{other}")}
        first = heart.failure()
        heart.close()
        return first["rank"]

    return conclude


def failed(clock: str, at: float, earlier: int = 0) -> dict:
    return {"state": "failed", "clock": clock, "failed_at": at, "earlier": earlier, "reason": "a bug"}


RUNS = {"state": "runs", "clock": "a"}


def test_all_processes_name_the_same_one_that_had_seen_no_other_fail(look):
    draw = random.Random(0)
    for _ in range(300):
        ahead = {clock: draw.uniform(-1e6, 1e6) for clock in "abc"}
        true = {rank: draw.uniform(0, 10) for rank in range(5)}  # times of failure
        records = []
        for at in true.values():
            seen_late = draw.uniform(0, 3)  # a file system that tells late
            clock = draw.choice("abc")
            earlier = sum(other < at - seen_late for other in true.values())
            records.append(failed(clock, at + ahead[clock], earlier))
        named = {look(rank, records, **{f"told_{other}": draw.uniform(0, 1e6) for other in range(5)})
                 for rank in range(5)}
        assert len(named) == 1
        [first] = named
        assert records[first]["earlier"] == 0
        assert all(records[first]["failed_at"] <= one["failed_at"] for one in records
                   if one["clock"] == records[first]["clock"])


def test_a_death_is_compared_with_a_failure_by_one_clock(look):
    """On the machine of the failure by its clock, elsewhere by that of the one who looks. A death is seen late."""
    records = [RUNS, failed("a", 100.0), RUNS, RUNS | {"clock": "b"}]
    assert look(0, records, told_1=500.0, gone_2=100.0 + 2 * TICK - 0.1) == 2
    assert look(0, records, told_1=500.0, gone_2=100.0 + 2 * TICK + 0.1) == 1
    assert look(3, records, told_1=7.0, gone_2=6.9) == 2 and look(3, records, told_1=7.0, gone_2=7.1) == 1


def test_when_a_failure_was_told_is_kept(tmp_path, monkeypatch):
    hearts = [Heartbeat(tmp_path, rank, 2) for rank in range(2)]
    monkeypatch.setattr(heartbeat, "is_locked", lambda _descriptor: True)
    now = [10.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    hearts[0].look()
    assert hearts[0].others[1]["told"] is None
    hearts[1].write(**failed("b", 1e9))
    for now[0] in (20.0, 30.0):
        hearts[0].look()
        assert hearts[0].others[1]["told"] == 20.0
    for heart in hearts:
        heart.close()


def test_a_machines_clock_has_its_name(tmp_path, monkeypatch):
    assert heartbeat.clock() == heartbeat.clock() != ""
    monkeypatch.setattr(heartbeat, "BOOT", tmp_path / "none")
    assert heartbeat.clock() == heartbeat.socket.gethostname()


# ----- who waits -----


class Value:
    """Its methods note what the watchdog would say while they are called, and whether on a CPU too."""

    def __init__(self):
        self.said = []

    def note(self, *_arguments, **_settings):
        caller = sys._getframe(1)
        self.said.append((waiting.called(caller), waiting.waits(caller, True), waiting.waits(caller, False)))
        return self

    item = tolist = cpu = synchronize = to = step = note


def test_calls_that_wait_for_the_gpu_are_known_by_name_however_they_are_written():
    value = Value()
    value.item()
    value.to("cpu", copy=True)
    value.step(1, key=len("(")).cpu(

    )
    value.step(value.step() is None)
    [value for _ in range(1) if value.tolist()]
    assert value.said == [("item", True, False), ("to", True, False), ("step", False, False), ("cpu", True, False),
                          ("step", False, False), ("step", False, False), ("tolist", True, False)]


def test_a_collective_is_one_wherever_in_it_the_thread_is():
    found = []

    def compile_in(folder: str):
        code = compile("def call(inner): inner()", f"/site-packages/{folder}/distributed_c10d.py", "exec")
        names: dict = {}
        exec(code, names)
        return names["call"]

    def inner():
        found.append(waiting.waits(sys._getframe(), False))

    compile_in("torch/distributed")(inner)
    compile_in("deepspeed/comm")(inner)
    compile_in("torch/nn")(inner)
    assert found == [True, True, False] and not waiting.waits(None, True)
    exec("found.append(waiting.called(sys._getframe()))", {"found": found, "waiting": waiting, "sys": sys})
    assert found[-1] == ""  # whose text is not known
