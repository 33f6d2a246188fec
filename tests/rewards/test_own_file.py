"""A verifier in a file of the user's: it judges in worker processes, under their limits, and its faults are told."""

import os
from collections import Counter
from pathlib import Path

import pytest

import rewards
from rewards import pool, score, score_all, use_file
from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT
from rewards.pool import CRASHED, TIMEOUT, WorkerRefuses

FILE = '''
import os, time
from collections import namedtuple
from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT, last_answer
import beside
print("noise")
Own = namedtuple("Own", "reward correct reason")  # which compiles generated text


def verify(completion, ground_truth):
    answer = last_answer(completion)
    print("more noise")
    if answer is None:
        return NO_ANSWER
    if answer == "sleep":
        time.sleep(600)
    if answer == "exit":
        os._exit(0)
    if answer == "memory":
        bytearray(2**33)
    if answer == "raise":
        raise KeyError(answer)
    if answer == "number":
        return 1.0
    if answer == "nan":
        return Own(float("nan"), True, "")
    if answer == "own":
        return Own(0.5, False, f"half {os.getpid()}")
    return CORRECT if answer == beside.twice(ground_truth["target"]) else WRONG_RESULT
'''


@pytest.fixture
def source(tmp_path, forget_verifiers):
    """The data_source of the file above."""
    (tmp_path / "beside.py").write_text("def twice(text):\n    return text + text\n")
    (tmp_path / "mine.py").write_text(FILE)
    return use_file(str(tmp_path / "mine.py"))


def item(source: str, answer: str) -> tuple:
    return source, f"so </think> <answer>{answer}</answer>", {"target": "ab"}


def test_it_judges_in_another_process_and_among_other_verifiers(source):
    assert source == "mine.py"
    mathematics = ("math500", "<answer> 1+x </answer>", {"target": "x+1"})
    scores = score_all([item(source, "abab"), mathematics, item(source, "ab"), ("mine.py", "none", {}),
                        item(source, "own")])
    assert scores[:4] == [CORRECT, CORRECT, WRONG_RESULT, NO_ANSWER]
    assert scores[4][:2] == (0.5, False) and scores[4].reason != f"half {os.getpid()}"


def test_faults_cost_the_reward_and_say_what_they_are(source):
    lines = FILE.splitlines()
    number = next(n for n, line in enumerate(lines, start=1) if "raise KeyError" in line)
    assert score(*item(source, "raise")) == (0.0, False, f"verifier raised KeyError in line {number}")
    assert score(*item(source, "number")) == (0.0, False, "verifier raised AttributeError")
    assert score(*item(source, "nan")) == (0.0, False, "verifier raised ValueError")
    assert score(*item(source, "exit")) == score(*item(source, "memory")) == CRASHED
    found = Counter(pool.has_failed(score(*item(source, answer))) for answer in ("raise", "exit", "abab", "ab"))
    assert found == {True: 2, False: 2}
    assert score(*item(source, "abab")) == CORRECT  # by a worker that took the place of the others


def test_its_time_is_limited(source, monkeypatch):
    [workers] = pool.of_commands.values()
    for worker in workers.workers:
        monkeypatch.setattr(worker, "time_limit", 1.0)
    assert score(*item(source, "sleep")) == TIMEOUT


@pytest.mark.parametrize(("text", "why"), [
    ("def check(): ...", "it has no function verify(completion, ground_truth)"),
    ("verify = 3", "it has no function verify(completion, ground_truth)"),
    ("import no_such_module", "importing it raised ModuleNotFoundError in line 1: No module named 'no_such_module'"),
    ("def verify(:", "importing it raised SyntaxError: invalid syntax"),
    ("raise SystemExit(0)", "a verifier process does not start"),
])
def test_a_file_that_is_no_verifier_says_why(tmp_path, forget_verifiers, text, why):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError) as error:
        use_file(str(tmp_path / "bad.py"))
    assert str(error.value).startswith(why)
    assert "bad.py" not in rewards.NAMED


def test_a_file_that_changes_during_a_run_stops_it(source, tmp_path):
    [workers] = pool.of_commands.values()
    (tmp_path / "mine.py").write_text(FILE + "# other\n")
    assert score(*item(source, "abab")) == CORRECT  # the worker has the one that the run began with
    workers.workers[-1].stop()
    for worker in workers.workers:
        worker.stop()
    with pytest.raises(WorkerRefuses, match=r"mine.py has changed since the start; put it back"):
        score(*item(source, "abab"))


def test_what_is_no_json_is_an_error_of_the_data(source):
    with pytest.raises(ValueError, match="ground_truth cannot be given to mine.py as JSON"):
        score(source, "", {"target": Path()})
