"""The worker processes: limits, crashes, order, threads, the end of the parent; and that no text is compiled."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards import limits, pool, score
from rewards.answer import CORRECT, UNPARSABLE, WRONG_RESULT
from rewards.pool import CRASHED, TIMEOUT, Comparison, Pool
from utils import ROOT, metrics, rollouts
from utils.types import Problem, Prompt, Rollout

# A worker without math-verify: an answer is what it does, then it is compared as text.
STAND_IN = """
import json, os, signal, sys, time
time.sleep(float(os.environ.get("SECONDS_TO_START", "0")))
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    target, answer, seconds = json.loads(line)
    if answer.startswith("sleep"):
        time.sleep(float(answer.split()[1]))
    if answer == "exit":
        os._exit(0)
    if answer == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    print(json.dumps("equal" if answer.startswith(target) else "different"), flush=True)
"""
STAND_IN_COMMAND = (sys.executable, "-S", "-c", STAND_IN)


@pytest.fixture
def stand_in():
    pools = []

    def start(num_workers: int, time_limit: float) -> Pool:
        pools.append(Pool(num_workers, time_limit, STAND_IN_COMMAND))
        return pools[-1]

    yield start
    for one in pools:
        one.close()


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_timeout_and_crashes_leave_the_rest_of_the_batch_alone(stand_in, num_workers):
    workers = stand_in(num_workers, 2.0)
    answers = ["a", "sleep 600", "b", "exit", "a 1", "kill", "a 2"]
    expected = [CORRECT, TIMEOUT, WRONG_RESULT, CRASHED, CORRECT, CRASHED, CORRECT]
    assert workers.compare_all([Comparison("a", answer) for answer in answers]) == expected
    assert workers.compare_all([Comparison("a", "a")] * 3) == [CORRECT] * 3


def test_the_reasons_and_rewards_of_a_timeout_and_a_crash():
    assert TIMEOUT == (0.0, False, "timeout")
    assert CRASHED == (0.0, False, "verifier crashed")


def test_a_killed_worker_is_gone(stand_in):
    workers = stand_in(1, 1.5)
    workers.compare(Comparison("a", "a"))
    pid = workers.workers[0].process.pid
    assert workers.compare(Comparison("a", "sleep 600")) == TIMEOUT
    assert not is_running(pid)


def test_a_launchers_signal_to_the_whole_tree_costs_no_answer():
    judge = "lambda target, answer: os.kill(os.getpid(), 15) or 'equal'"
    code = f"import os, sys; from rewards.limits import serve; serve({judge}, sys.stdout)"
    workers = Pool(1, 5.0, (sys.executable, "-c", code))
    assert workers.compare(Comparison("a", "a")) == CORRECT
    workers.close()


def test_neither_the_queue_nor_the_start_counts_as_time(stand_in, monkeypatch):
    monkeypatch.setenv("SECONDS_TO_START", "2.2")
    workers = stand_in(1, 2.0)
    answers = [f"sleep 0.45 {i}" for i in range(5)]  # 2.25 seconds in all
    assert workers.compare_all([Comparison("sleep", answer) for answer in answers]) == [CORRECT] * 5


def test_a_worker_that_died_while_idle_is_replaced(stand_in):
    workers = stand_in(1, 30.0)
    assert workers.compare(Comparison("a", "a")) == CORRECT
    workers.workers[0].process.kill()
    workers.workers[0].process.wait()
    assert workers.compare(Comparison("a", "b")) == WRONG_RESULT


def test_a_worker_is_replaced_after_its_number_of_comparisons(stand_in, monkeypatch):
    monkeypatch.setattr(pool, "MAX_COMPARISONS", 2)
    workers = stand_in(1, 30.0)
    pids = []
    for answer in "abcd":
        workers.compare(Comparison("a", answer))
        pids.append(workers.workers[0].process.pid)
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_an_interrupted_comparison_cannot_answer_the_next(stand_in, monkeypatch):
    workers = stand_in(1, 30.0)
    workers.compare(Comparison("a", "a"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with monkeypatch.context() as patch:
        patch.setattr(pool.Worker, "read_line", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            workers.compare(Comparison("a", "a"))
    signal.signal(signal.SIGINT, before)
    assert workers.compare(Comparison("a", "b")) == WRONG_RESULT


def test_equal_comparisons_are_made_once_and_workers_start_only_when_needed(stand_in):
    workers = stand_in(8, 30.0)
    assert workers.compare_all([Comparison("a", "a")] * 50) == [CORRECT] * 50
    assert sum(worker.num_comparisons for worker in workers.workers) == 1
    assert [worker.process is not None for worker in workers.workers].count(True) == 1


def test_a_batch_is_spread_over_all_workers(stand_in):
    workers = stand_in(2, 30.0)
    assert workers.compare_all([Comparison("sleep", f"sleep 0.5 {i}") for i in range(2)]) == [CORRECT] * 2
    assert [worker.num_comparisons for worker in workers.workers] == [1, 1]


def test_a_worker_that_cannot_start_is_an_error_that_names_the_command():
    with pytest.raises(RuntimeError, match="does not start: .*no_such_module"):
        Pool(1, command=(sys.executable, "-S", "-c", "import no_such_module")).compare(Comparison("a", "a"))


@pytest.mark.parametrize("text", ["0", "-1", "abc", "", " ", "2.5", "1e3", "1_0", "\u0663", "1025", "9" * 5_000])
def test_a_number_of_workers_that_cannot_be_is_an_error_that_names_variable_value_and_rule(monkeypatch, text):
    monkeypatch.setenv("VERIFIER_WORKERS", text)
    monkeypatch.setattr(pool, "shared", None)
    with pytest.raises(ValueError) as error:
        score("math500", "<answer> 1+x </answer>", {"target": "x+1"})
    assert str(error.value) == f"environment variable VERIFIER_WORKERS {text}: must be a whole number from 1 to 1024"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("03", 3), ("1024", 1024)])
def test_the_environment_sets_the_number_of_workers(monkeypatch, text, number):
    monkeypatch.setenv("VERIFIER_WORKERS", text)
    assert pool.num_workers() == number


@pytest.mark.parametrize(("cores", "number"), [(None, 1), (2, 2), (64, 4)])
def test_without_the_environment_there_is_a_worker_for_each_core_and_at_most_four(monkeypatch, cores, number):
    monkeypatch.delenv("VERIFIER_WORKERS", raising=False)
    monkeypatch.setattr(pool.os, "cpu_count", lambda: cores)
    assert pool.num_workers() == number


def test_a_pool_without_workers_is_refused_and_does_not_wait_for_one():
    with pytest.raises(AssertionError, match="at least 1 worker"):
        Pool(0)


def test_many_threads_share_the_workers_and_each_gets_its_own_verdicts(stand_in):
    workers = stand_in(8, 60.0)
    found: dict[int, list] = {}

    def judge(thread: int) -> None:
        comparisons = [Comparison(str(thread), f"{(thread + i) % 10} {i}") for i in range(20)]
        found[thread] = [one.correct for one in workers.compare_all(comparisons)]

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [i % 10 == 0 for i in range(20)] for number in range(6)}


ANSWERS = (r"\frac{2}{\sqrt{2}}", "2^{1/2}", r"\sqrt{3}", "1.414214", "1.41", "x+")
REAL = [Comparison(r"\sqrt{2}", answer) for answer in ANSWERS]


def test_results_are_the_same_with_1_and_8_workers_and_from_another_thread():
    """The processes are the real ones."""
    found = []

    def judge_with(num_workers: int) -> None:
        workers = Pool(num_workers, time_limit=60.0)
        found.append(workers.compare_all(REAL))
        workers.close()

    judge_with(1)
    thread = threading.Thread(target=judge_with, args=(8,))
    thread.start()
    thread.join()
    assert found == [[CORRECT, CORRECT, WRONG_RESULT, CORRECT, WRONG_RESULT, UNPARSABLE]] * 2


def test_an_endless_comparison_is_a_timeout():
    workers = Pool(1, time_limit=2.0)
    assert workers.compare(Comparison(r"\sqrt{2}", "9^{9^{9^{9}}} + x")) == TIMEOUT
    workers.close()


# The real worker but for the comparison, which takes what the answer says.
GREEDY = """
import os, time
from rewards import worker
def compare(target, answer):
    if answer == "memory":
        taken = [bytearray(2**28) for _ in range(64)]  # 16 GiB
    while answer.startswith("time"):
        sum(range(100_000))
    return "equal"
worker.prepare()
worker.prepare, worker.compare = (lambda: None), compare
worker.main()
"""


def test_memory_beyond_the_limit_is_a_crash_of_the_worker_alone():
    workers = Pool(1, time_limit=60.0, command=(sys.executable, "-c", GREEDY))
    comparisons = [Comparison("a", answer) for answer in ("b", "memory", "c")]
    assert workers.compare_all(comparisons) == [CORRECT, CRASHED, CORRECT]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB
    workers.close()


def test_a_worker_that_nobody_watches_ends_after_its_processor_time():
    """Its parent is stopped, say: the worker is given 0.1 seconds, and nobody kills it."""
    process = subprocess.Popen([sys.executable, "-c", GREEDY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdin.write(b'["a", "time", 0.1]\n')
    process.stdin.flush()
    assert process.wait(timeout=60) in (-signal.SIGXCPU, -signal.SIGKILL)
    process.stdin.close()
    process.stdout.close()


def test_real_comparisons_fit_into_the_memory_limit_many_times():
    """The address space after the hardest that the tests know, against MAX_MEMORY."""
    workers = Pool(1, time_limit=60.0)
    workers.compare_all(REAL)
    status = Path(f"/proc/{workers.workers[0].process.pid}/status").read_text()
    peak = int(status.split("VmPeak:")[1].split()[0]) * 1024
    workers.close()
    assert peak < limits.MAX_MEMORY / 4, peak


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_its_parent(end):
    program = f"""
import os, signal, sys
from rewards import pool
pool.COMMAND = (sys.executable, "-S", "-c", {STAND_IN!r})
pool.Pool.__init__.__defaults__ = (5.0, pool.COMMAND)
pool.compare_all([pool.Comparison("a", "a"), pool.Comparison("a", "b")])
print([worker.process.pid for worker in pool.shared.workers if worker.process], flush=True)
{end}
"""
    parent = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=100)
    pids = json.loads(parent.stdout)
    assert pids and all(ends(pid) for pid in pids)


def test_the_real_worker_ends_with_its_stdin_and_has_a_session_of_its_own():
    workers = Pool(1)
    workers.compare(REAL[0])
    process = workers.workers[0].process
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


GUARD = r"""
import json, sys
from rewards import worker
assert not {"torch", "numpy", "transformers"} & set(sys.modules), "a worker imports what it does not need"
if sys.argv[1] == "guarded":
    worker.prepare()
compiled = []
sys.addaudithook(lambda event, arguments: compiled.append(str(arguments[0])) if event == "compile" else None)
sums = [r"\sum_{n=1}^{\infty} \frac{\text{os.abc}^n}{n^3}", r"\sum_{n=1}^{\infty} \frac{1}{n! n}"]
texts = [*sums, "12.5 + x", "x^5 + xy + 2"]
verdicts = [worker.compare(r"\sqrt{2}", text) for text in texts] + [worker.compare("x+y", "y+x")]
refused = []
for source in ("1", "__import__('os')", "x.y", "print", "'a'", "Integer (1 ).real", "lambda: 0", "1 if 2 else 3"):
    try:
        eval(source)
    except PermissionError:
        refused.append(source)
    except Exception:
        pass
foreign = [source for source in compiled if "abc" in source or "lambdify" in source]
print(json.dumps([verdicts, refused, len(foreign), len(compiled) > 9]))
"""


@pytest.mark.parametrize("mode", ["guarded", "open"])
def test_nothing_that_a_model_wrote_reaches_the_compiler(mode):
    output = subprocess.run([sys.executable, "-c", GUARD, mode], cwd=ROOT, capture_output=True, text=True, timeout=100)
    verdicts, refused, num_foreign, some_compiled = json.loads(output.stdout)
    assert verdicts == ["different"] * 4 + ["equal"] and some_compiled
    if mode == "guarded":
        assert refused == ["__import__('os')", "x.y", "print", "'a'", "Integer (1 ).real", "lambda: 0"]
        assert num_foreign == 0
    else:
        assert refused == [] and num_foreign > 0  # what the guard is for: should SymPy mend it, this test says so


def test_a_steps_rollouts_are_verified_in_order_and_timeouts_are_counted(monkeypatch):
    verdicts = {"x+1": CORRECT, "x+2": TIMEOUT, "x+3": CRASHED}
    monkeypatch.setattr(pool, "compare_all", lambda them, _on_progress: [verdicts[one.answer] for one in them])
    monkeypatch.setattr(rollouts, "completion_text", lambda rollout, _: f"<answer>{rollout.response_ids[0]}</answer>")
    problem = Problem(0, "math500", "p", (), "", {"target": "1+x"})
    prompt = Prompt(problem, [1], [], 0)
    groups = [[Rollout(prompt, [text], [0.0], "stop") for text in texts]
              for texts in (["x+1", "1+x"], ["x+2", "x+3"], ["x+3", "x+1"])]
    scores = rollouts.score_rollouts(groups, None)
    assert [[verdict[:3] for verdict in group] for group in scores] == [
        [CORRECT, CORRECT], [TIMEOUT, CRASHED], [CRASHED, CORRECT]]
    watch = metrics.Stopwatch(step=1)
    watch.seconds["seconds/rollout"] = 1.0
    line = rollouts.rollout_metrics(groups, scores, watch.seconds)
    assert line["verifier_timeouts"] == 3 and line["accuracy"] == 0.5 and line["flat_groups"] == 2 / 3
    assert line["groups_all_right"] == line["groups_all_wrong"] == line["common_answer"] == 1 / 3
    assert line["slowest_rank"] == 0 and line["seconds/slowest_rank"] == line["seconds/mean_rank"] == 1.0


def test_score_works_from_another_thread():
    found = []
    truth = {"target": "x+1"}
    thread = threading.Thread(target=lambda: found.append(score("math500", "<answer> 1+x </answer>", truth)))
    thread.start()
    thread.join()
    assert found == [CORRECT]
