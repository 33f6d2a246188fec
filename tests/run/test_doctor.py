"""The doctor: each finding by lines that were made for it, three of them in runs that really are so; none in a healthy
one."""

import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.launching import start_in_turn, succeed, training_lines
from utils.answers import answer_pattern, repeats_itself
from utils.report import __main__ as report
from utils.run.doctor import FEWEST, PAUSE, RULES, SAME, Doctor, _first_finding, diagnose, diagnoses
from utils.run.logger import TRAINING_FIELDS


def line(step, **changes):
    healthy = {"reward": 0.4, "accuracy": 0.35, "format": 0.99, "kl_loss": 0.2, "entropy": 0.08, "response_tokens": 39,
               "common_answer": 0.25, "flat_groups": 0.5, "logprob_mismatch": 1e-7, "tokens_per_second": 4e4,
               "seconds/rollout": 0.2, "seconds/logprobs": 0.2, "seconds/update": 0.7, "memory_gib": 0.8,
               "seconds/slowest_rank": 0.21, "seconds/mean_rank": 0.2}
    return {"step": step} | dict.fromkeys(TRAINING_FIELDS, 0.0) | healthy | changes


def healthy_run(seed, steps=220, hint_steps=110):
    """Lines by a formula after the quickstart's: medians of ten steps, their trend and their noise."""
    draw, lines = random.Random(seed), []
    for step in range(1, steps + 1):
        shown = max(0.0, 0.05 + 0.45 * (1 + math.cos(math.pi * step / hint_steps))) if step <= hint_steps else 0.0
        after = max(0, step - hint_steps) / (steps - hint_steps)
        right = min(1.0, max(0.15, shown + 0.04) + 0.28 * after + draw.gauss(0, 0.03))
        alone = 1 - shown
        lines.append(line(
            step, accuracy=right, reward=0.1 + 0.9 * right, format=1 - abs(draw.gauss(0, 0.005)),
            entropy=0.003 + (0.1 - 0.04 * after) * alone * draw.uniform(0.9, 1.1),
            kl_loss=0.34 * step / steps * draw.choice([1] * 30 + [6]), hint_slices=3 * shown, hint_tokens=25 * shown,
            whole_hints=max(0.0, shown - 0.2), response_tokens=15 + 25 * alone, truncated=abs(draw.gauss(0, 0.01)),
            flat_groups=min(1.0, max(0.35, shown + 0.05) + 0.25 * after + draw.gauss(0, 0.05)),
            common_answer=0.05 + draw.gauss(0, 0.01), logprob_mismatch=1e-8 + 2e-7 * alone,
            memory_gib=1 + 0.8 * step / steps + draw.gauss(0, 0.01), slowest_rank=draw.randrange(2),
            **{"seconds/rollout": draw.uniform(0.1, 0.3), "seconds/update": draw.uniform(0.5, 1.0),
               "seconds/slowest_rank": 0.2 * draw.uniform(1, 1.15)},
        ))
    return lines


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_hears_nothing(seed):
    assert diagnoses(healthy_run(seed)) == []


def after(*phases):
    """Lines of (number of steps, changes) one after another."""
    lines = []
    for count, changes in phases:
        lines += [line(len(lines) + number, **changes) for number in range(1, count + 1)]
    return lines


FLAT = {"flat_groups": 0.95, "accuracy": 0.5}
# Of groups with a demonstration: of LUFFY's advantages, of CHORD's own loss, of the problems that HPT gates.
WRONG = {"flat_groups": 0.95, "accuracy": 0.02, "groups_all_wrong": 0.95, "state_grad_norm/demonstration": 0.1}
RIGHT = {"flat_groups": 0.95, "accuracy": 0.97, "groups_all_right": 0.95, "state_grad_norm/demonstration": 0.1}
HINTS = {"hint_tokens": 2.0, "whole_hints": 0.1}
SLOW_RANK = {"slowest_rank": 1, "seconds/slowest_rank": 0.3, "seconds/mean_rank": 0.2}
FINDINGS = [  # name, lines, what is said of them
    ("mismatch", after((10, {"logprob_mismatch": 0.002}), (10, {"logprob_mismatch": 0.03})), "from 0.002 to 0.03 nats"),
    ("cut", after((3, {"truncated": 0.7, "repeated": 0.1})), "the others end: raise --max_response_length"),
    ("cut", after((3, {"truncated": 1.0, "format": 0.0})), "does not know an end: teach it first (training/sft.py)"),
    ("cut", after((3, {"truncated": 1.0} | HINTS)), "hints show no end (10% reach that of a solution, none that of an"),
    ("cut", after((3, {"truncated": 0.8, "repeated": 0.6})), "75% of these repeat themselves: a longer limit will not"),
    ("longer", after((10, {}), (10, {"truncated": 0.3})), "30% after 0%: raise --max_response_length"),
    ("longer", after((10, {}), (10, {"truncated": 0.3, "repeated": 0.2})), "67% of these repeat themselves, so lower"),
    ("hacking", after((3, {"accuracy": 0.02, "common_answer": 0.8, "flat_groups": 0.99})), "80% of the responses give"),
    ("blind", after((3, FLAT | {"teacher_share": 0.0})), "reads 0% of the solutions, for lack of room: raise --max_p"),
    ("flat", after((3, FLAT)), "95% of the groups have equal rewards, hence almost no policy gradient: 50% of the"),
    ("flat", after((3, FLAT | {"accuracy": 0.97})), "97% of the responses are right; the problems are too easy"),
    ("flat", after((3, FLAT | {"accuracy": 0.02})), "2% of the responses are right; show more hints"),
    ("flat", after((3, FLAT | {"accuracy": 0.0, "format": 0.2})), "80% of the responses hold no answer"),
    ("flat", after((60, WRONG)), "so that demonstrations alone teach, and 2% of the responses are right, after 2%: do"),
    ("flat", after((3, RIGHT)), "97% of the responses are right; the problems are too easy"),
    ("flat", after((3, RIGHT | {"state_grad_norm/demonstration": 0.0})), "97% of the responses are right; the"),
    ("flat", after((3, WRONG | {"state_grad_norm/demonstration": 0.0})), "2% of the responses are right; show more"),
    ("entropy", after((10, {}), (10, {"entropy": 0.007})), "from 0.08 to 0.007 nats a token"),
    ("kl", after((20, {}), (10, {"kl_loss": 1.1})), "from 0.2 to 1.1 nats a token"),
    ("slow", after((10, {}), (10, {"seconds/update": 2.5})), "2.6 times as long a token as they did, most in update"),
    ("memory", after((20, {}), (10, {"memory_gib": 1.5}), (10, {"memory_gib": 3.0})), "holds 3.0 GiB, after 0.8"),
    ("rank", after((20, SLOW_RANK)), "rank 1 takes 1.5 times the ranks' mean"),
]
QUIET = [  # just not
    after((10, {"logprob_mismatch": 0.02}), (10, {"logprob_mismatch": 0.04})),  # bfloat16
    after((10, {"truncated": 0.25}), (10, {"truncated": 0.3})),
    after((3, {"truncated": 0.5, "repeated": 0.5})),
    after((3, {"accuracy": 0.35, "common_answer": 0.9})),
    after((3, {"format": 0.5, "accuracy": 0.1, "common_answer": 0.5})),
    after((3, FLAT | {"flat_groups": 0.9})), after((3, FLAT | {"teacher_share": 0.5})),
    after((59, WRONG)), after((10, WRONG), (60, WRONG | {"accuracy": 0.05})),  # demonstrations teach
    after((3, FLAT | {"accuracy": 0.6} | HINTS)),  # the first steps of UFT
    after((10, {}), (10, {"entropy": 0.009})),
    after((10, {}), (10, {"entropy": 0.001, "accuracy": 0.95})),  # it can
    after((10, {}), (10, {"entropy": 0.001} | HINTS)),  # and here hints make it sure
    after((20, {}), (4, {"kl_loss": 5.0}), (6, {})),
    after((10, {"kl_loss": 1.5}), (10, {"kl_loss": 1.6})),  # the reference is far, and not left behind further
    after((10, {}), (10, {"seconds/update": 1.4})),
    after((10, {"response_tokens": 100}), (10, {})),  # other responses
    after((10, {"response_tokens": 10, "seconds/update": 0, "seconds/logprobs": 0, "seconds/rollout": 0.1}), (10, {})),
    after((20, {}), (20, {"memory_gib": 3.0})),  # more, and no longer rising
    after((10, SLOW_RANK), (10, SLOW_RANK | {"slowest_rank": 0})),
    after((20, SLOW_RANK | {"seconds/slowest_rank": 0.25})),
    after((FEWEST - 1, FLAT)),
    after((5, {"loss": None, "kl_loss": None, "entropy": None, "truncated": None})),
    [{"step": step, "loss": 1.0} for step in range(30)],  # another script's, or an older run's
    [{"step": 0, "eval/accuracy": 0.5}], [],
]


@pytest.mark.parametrize(("name", "lines", "says"), FINDINGS, ids=[f"{name}-{says[:20]}" for name, _, says in FINDINGS])
def test_each_finding_is_told_in_one_line_with_what_to_try(name, lines, says):
    assert _first_finding(lines)[0] == name
    said = diagnose(lines)
    assert says in said and "\n" not in said and len(said) < 400


def test_every_finding_is_provoked_here():
    assert {name for name, *_ in FINDINGS} == set(RULES)


@pytest.mark.parametrize("lines", QUIET)
def test_what_is_just_not_a_finding(lines):
    assert diagnose(lines) is None


def test_one_line_at_a_time_and_a_kind_once_in_a_hundred_steps():
    lines = after((SAME + PAUSE + 5, FLAT), (30, FLAT | {"truncated": 0.9}))
    told = diagnoses(lines)
    assert [step for step, _ in told] == [FEWEST, FEWEST + SAME, SAME + PAUSE + 10, SAME + 2 * PAUSE + 10]
    assert [said[:12] for _, said in told] == ["95% of the g", "95% of the g", "more and mor", "90% of the r"]


def test_a_resumed_run_does_not_hear_again_what_it_was_told():
    lines = after((60, FLAT))
    doctor = Doctor(lines[:40])
    assert [doctor.see(one) for one in lines[40:]] == [None] * 20


def test_evaluations_between_the_lines_change_nothing():
    lines = after((3, FLAT))
    assert diagnose([{"step": 0, "eval/accuracy": 0.1}, *lines, {"step": 3, "eval/accuracy": 0.1}]) == diagnose(lines)


# ----- what is counted -----


def test_an_answer_is_told_by_the_places_of_the_problems_numbers():
    prompt = "Numbers: 7, 24, 21\nTarget: 52"
    assert answer_pattern("so <answer> (7 + 24) + 21 </answer>", prompt) == "(#0+#1)+#2"
    assert answer_pattern("<answer>(3+9)+12</answer>", "Numbers: 3, 9, 12\nTarget: 7") == "(#0+#1)+#2"
    assert answer_pattern("<answer> 24 * 2 </answer>", prompt) == "#1*2"
    assert answer_pattern(r"is \boxed{42}, surely", prompt) == "42"
    assert answer_pattern("no answer", prompt) == "" == answer_pattern("<answer> 3", prompt)
    assert len(answer_pattern(f"<answer>{'9' * 1000}</answer>", prompt)) == 200


def test_repetition_survives_noise_and_prose_is_none():
    assert repeats_itself([5, 6, 7] * 10) and repeats_itself([1, 2, 3, 4, 5, 6] * 5 + [9])
    assert not repeats_itself([*range(20), *range(8)])
    assert not repeats_itself(list(range(50))) and not repeats_itself([1, 1, 2]) and not repeats_itself([])


# ----- real runs -----

CONSTANT = "so be it </think>\n<answer> 1 </answer>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_model, countdown_data):
    """{name: folder} of runs, one after another in a process: responses that are cut before their end, groups that are
    drawn at next to no temperature, and a model that was taught to answer 1 whatever the problem."""
    folder = tmp_path_factory.mktemp("doctor")
    constant = folder / "constant"
    constant.mkdir()
    for split in ("train", "test"):
        rows = pq.read_table(countdown_data / f"{split}.parquet").to_pylist()
        table = pa.Table.from_pylist([row | {"answer": CONSTANT} for row in rows])
        pq.write_table(table, constant / f"{split}.parquet")
    base = {"model": base_model, "data": countdown_data, "total_steps": 5, "eval_every": 5, "eval_problems": 2,
            "save_every": 99, "prompts_per_step": 16, "mini_batch_prompts": 16, "max_prompt_length": 64,
            "zero_stage": 0, "max_tokens_per_micro_batch": 600}
    rl = base | {"group_size": 4, "max_response_length": 32, "kl_coef": 0}
    taught = folder / "taught" / "checkpoints" / "step_25" / "hf"
    own = {
        "cut": ("uft", rl | {"max_response_length": 4, "hint_steps": 99}),
        "flat": ("rft", rl | {"temperature": 0.01, "max_response_length": 48}),
        "taught": ("sft", base | {"data": constant, "total_steps": 25, "lr": 3e-3, "max_response_length": 8,
                                  "max_length": 128, "eval_every": 25}),
        "hacking": ("rft", rl | {"model": taught, "tracker": "tensorboard"}),
    }
    succeed(start_in_turn([(f"training/{script}.py", flags | {"output_dir": folder / name})
                           for name, (script, flags) in own.items()]))
    return {name: folder / name for name in own}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "says"), [
    ("cut", "100% of the responses are cut at the length limit, hardly one ends"),
    ("flat", "of the groups have equal rewards, hence almost no policy gradient"),
    ("hacking", "of the responses give one and the same answer"),
])
def test_a_run_that_is_so_hears_it(runs, name, says):
    lines = training_lines(runs[name])
    assert says in diagnose(lines), json.dumps(lines[-1])


@pytest.mark.slow
def test_a_real_run_is_in_tensorboard_too(runs):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(runs["hacking"] / "tensorboard")).Reload()
    for name in ("common_answer", "reward", "seconds/rollout"):
        assert [(one.step, one.value) for one in events.Scalars(name)] == [
            (one["step"], pytest.approx(one[name])) for one in training_lines(runs["hacking"])]


@pytest.mark.slow
def test_the_report_says_it_too(runs, capsys):
    report.main(report.Args((runs["hacking"],)))
    assert "\nstep 3: " in capsys.readouterr().out
