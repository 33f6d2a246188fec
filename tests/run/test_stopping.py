"""Where a step is given up, with one process; scripts/test_training.py stops real runs in every phase."""

import signal
import time

import pytest

from utils.run import distributed, stopping, watchdog
from utils.run.errors import Interrupted
from utils.saver import Saver


@pytest.fixture
def finished(monkeypatch):
    """What `finish` was called with, of a run that listens."""
    monkeypatch.setattr(stopping, "_course", stopping._Course())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    calls: list[int] = []
    stopping.listen(calls.append)
    yield calls
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_signal_is_heeded_at_the_next_point_and_the_end_is_told_the_steps_done(finished, capfd):
    stopping.begin_step(11)
    stopping.is_saved(5)
    signal.raise_signal(signal.SIGTERM)
    assert "SIGTERM: step 12 is given up" in (said := capfd.readouterr().err) and "7 steps at most" in said
    for point in (stopping.meet, stopping.leave, stopping.safe_point, lambda: stopping.begin_step(11)):
        stopping._course.finish = finished.append
        stopping._course.passed = 100
        with pytest.raises(Interrupted) as request:
            point()
        request.value.finish()
    assert finished == [11] * 4


def test_after_its_first_update_a_step_is_finished(finished, capfd):
    stopping.begin_step(3)
    stopping.must_finish()
    signal.raise_signal(signal.SIGINT)
    assert "SIGINT: step 4 is finished" in capfd.readouterr().err
    for point in (stopping.meet, stopping.leave, stopping.safe_point):
        point()
    with pytest.raises(Interrupted) as request:
        stopping.begin_step(4)
    request.value.finish()
    assert finished == [4]


def test_without_a_listener_or_a_request_nothing_happens_and_nothing_is_said(finished, monkeypatch):
    stopping.begin_step(0)
    stopping.leave()
    stopping.meet()
    monkeypatch.setattr(stopping, "_course", stopping._Course())
    monkeypatch.setattr(distributed, "maxima", None)  # a collective nobody else would join
    stopping.begin_step(0)
    stopping.meet()
    stopping.safe_point()


def test_a_file_asks_too_and_one_of_an_earlier_run_does_not(finished, tmp_path):
    (tmp_path / watchdog.STOP).touch()
    watchdog.start(str(tmp_path), 1)
    try:
        stopping.begin_step(0)
        assert not (tmp_path / watchdog.STOP).exists()
        (tmp_path / watchdog.STOP).touch()
        end = time.monotonic() + 20
        while not stopping.asked():
            assert time.monotonic() < end
            time.sleep(0.05)
        with pytest.raises(Interrupted):
            stopping.meet()
    finally:
        watchdog.stop()


@pytest.mark.parametrize(("seconds", "agreements"), [(0.001, 10), (1.0, 51), (30.0, 100)])
def test_ranks_agree_every_two_seconds_however_short_a_micro_batch_is(finished, monkeypatch, seconds, agreements):
    """Of 100 safe points `seconds` apart; the first ones are nearer to one another."""
    clock, asked = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(distributed, "maxima", lambda values: asked.append(clock[0]) or values)
    stopping.begin_step(0)
    asked.clear()
    for _ in range(100):
        stopping.safe_point()
        clock[0] += seconds
    assert len(asked) <= agreements
    waits = [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)]
    assert max(waits) <= max(2 * stopping.EVERY, 1.01 * seconds)


def test_a_checkpoint_is_due_by_the_clock_of_the_first_process(finished, monkeypatch):
    clock = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    saver, never = (Saver("", None, None, {}, None, 0, 0, minutes, False, 9, saved=-1, saved_at=clock[0])
                    for minutes in (10.0, 0.0))
    told = []
    monkeypatch.setattr(distributed, "maximum", lambda value: told.append(value) or value)
    clock[0] += 599
    assert not saver.is_due() and not never.is_due()
    clock[0] += 2
    assert saver.is_due() and not never.is_due()
    monkeypatch.setenv("RANK", "1")
    assert not saver.is_due() and told == [0.0, 1.0, 0.0]  # it waits to be told
