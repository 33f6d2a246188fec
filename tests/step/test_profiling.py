"""What a profile counts. That it traces real runs: tests/scripts/test_training.py."""

import pytest
import torch

from tests.bench.shapes import update_flops
from utils import metrics, profiling
from utils.packing import pack
from utils.profiling import Phase, Profile, pairs_of, work_of_groups, work_of_micro_batch
from utils.run.errors import BadInput
from utils.setup.duration import Work
from utils.setup.profile import matrix_limit, phase_table, profiled_steps
from utils.setup.shapes import SHAPES
from utils.types import Problem, Prompt, Rollout

CPU = torch.device("cpu")
PROBLEM = Problem(0, "countdown", "", (), "", {})


def group(prefix, *lengths):
    prompt = Prompt(PROBLEM, [3] * prefix, [], 0)
    return [Rollout(prompt, [4] * length, [0.0] * length, "stop") for length in lengths]


GROUPS = [group(5, 2, 3), group(4, 6), group(7, 1, 1, 1)]


@pytest.fixture(autouse=True)
def no_profile_goes_on():
    yield
    profiling.start(None)


def test_pairs_by_hand():
    """A prefix of 2: 1 + 2. Responses of 1 and 3: 2 + 1, and 6 + 1 + 2 + 3."""
    assert pairs_of(2, [1, 3]) == 3 + 3 + 12


def test_what_is_packed_is_the_work_of_its_groups():
    parts = list(map(work_of_micro_batch, pack(GROUPS, [[0.0] * len(one) for one in GROUPS], 20, CPU)))
    assert len(parts) > 1
    assert tuple(map(sum, zip(*parts, strict=True))) == work_of_groups(GROUPS) == (5 + 5 + 4 + 6 + 7 + 3, 14, sum(
        pairs_of(len(one[0].prompt.prompt_ids), [len(rollout.response_ids) for rollout in one]) for one in GROUPS))


def test_without_sharing_a_prompt_counts_for_each_response():
    micro_batches = pack(GROUPS[:1], [[0.0] * 2], 20, CPU, share_prefix=False)
    tokens, scored, pairs = map(sum, zip(*map(work_of_micro_batch, micro_batches), strict=True))
    assert (tokens, scored, pairs) == (2 * 5 + 5, 5, pairs_of(5, [2]) + pairs_of(5, [3]))


def test_flops_are_those_of_the_benchmark():
    """Which counts no norms and biases."""
    shape = SHAPES["Qwen/Qwen2.5-0.5B"]
    flops = 3 * sum(Work(*work_of_groups(GROUPS)).flops(shape))
    assert flops == pytest.approx(update_flops(shape, GROUPS), rel=1e-3)


def run_steps(steps, monkeypatch):
    """Stopwatches of the steps, with a generation and an update in each; the time goes on by 1 at each look."""
    ticks = iter(range(1_000))
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(ticks))
    [micro_batch] = pack(GROUPS, [[0.0] * len(one) for one in GROUPS], 100, CPU)
    for step in steps:
        watch = metrics.Stopwatch(step)
        watch.begin("rollout")
        watch.begin("reward")
        profiling.sampled(GROUPS)
        watch.begin("update")
        profiling.scored(micro_batch, is_learned=True)
        watch.end()
        profiling.scored(micro_batch, is_learned=True)  # an evaluation's guard, and an evaluation
        profiling.sampled(GROUPS)


@pytest.mark.parametrize(("steps", "told"), [
    (range(1, 5), 2), (range(3, 6), 1), (range(1, 3), None), (range(4, 6), None),  # resumed after 2; stopped; resumed
])
def test_the_steps_that_are_asked_for_are_counted(monkeypatch, steps, told):
    reports = []
    profiling.start(Profile(2, 3, None, lambda phases, num_steps: reports.append((phases, num_steps))))
    run_steps(steps, monkeypatch)
    if told is None:
        assert reports == []
        return
    [(phases, num_steps)] = reports
    assert num_steps == told and list(phases) == ["rollout", "reward", "update"]
    tokens, scored, pairs = work_of_groups(GROUPS)
    assert [phases["update"].tokens, phases["update"].scored, phases["update"].pairs] == [
        3 * told * tokens, 3 * told * scored, 3 * told * pairs]
    assert (phases["rollout"].tokens, phases["reward"].tokens) == (told * tokens, 0)
    assert phases["update"].seconds > 0


def test_without_a_profile_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(profiling, "work_of_micro_batch", None)
    monkeypatch.setattr(profiling, "work_of_groups", None)
    run_steps([1], monkeypatch)


def test_the_table_by_hand():
    shape = SHAPES["Qwen/Qwen2.5-0.5B"]
    flops = sum(Work(10, 4, 30).flops(shape))
    phases = {"sync": Phase(1.0), "update": Phase(3.0, tokens=20, scored=8, pairs=60)}
    rows = [row.split() for row in phase_table(phases, 2, shape, limit=flops).splitlines()]
    assert rows[0] == ["phase", "seconds", "share", "GFLOP", "GFLOP/s", "of", "the", "limit"]
    assert rows[1] == ["sync", "0.500", "25%", "-", "-", "-"]
    rate = 2 * flops / 3
    assert rows[2] == ["update", "1.500", "75%", f"{flops / 1e9:.2f}", f"{rate / 1e9:.1f}", "66.7%"]
    assert rows[3] == ["step", "2.000", "100%", f"{flops / 1e9:.2f}", f"{flops / 2e9:.1f}", "50.0%"]
    assert phase_table(phases, 2, None, flops).splitlines()[2].split() == ["update", "1.500", "75%", "-", "-", "-"]


def test_the_limit_is_more_than_a_small_product_reaches(monkeypatch):
    limit, size = matrix_limit(CPU, torch.float32)
    assert size == 2048 and 1e9 < limit < 1e14


@pytest.mark.parametrize(("words", "steps"), [("", None), ("3", (3, 3)), ("2:4", (2, 4)), ("1:9", (1, 9))])
def test_steps(words, steps):
    assert profiled_steps(words, 9) == steps


@pytest.mark.parametrize("words", ["0:2", "3:2", "5:10", "10", "a:b", "1:2:3", "1-2", ":2", "-1:2", "\u0661", " 1"])
def test_bad_steps(words):
    with pytest.raises(BadInput, match="flag --profile_steps"):
        profiled_steps(words, 9)
