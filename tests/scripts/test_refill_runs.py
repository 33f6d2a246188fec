"""The scripts that replace groups which teach nothing, imitate later what no response got right, or learn from a
teacher, as users start them: their numbers do not depend on how the work is cut, a resumed run goes on exactly, and
what they write is explained."""

import json

import pytest

from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import (
    evaluation_lines,
    launch_in_turn,
    start_in_turn,
    succeed,
    training_lines,
    without_times,
)
from utils.run import logger
from utils.run.logger import depends_on_machine

pytestmark = pytest.mark.slow

STEPS, PROMPTS, IMITATED = 4, 16, 6
STAGES = {"dapo": 2, "relift": 3, "self_distillation": 3}
RESUMED = ("dapo", "relift")  # the other: test_every_script
OWN = {"dapo": {"max_refills": 2, "overlong": 0.5},
       "relift": {"max_demonstration_length": 48, "buffer_size": IMITATED, "sft_lr": 1e-3, "group_size": 2},
       "self_distillation": {"group_size": 2, "max_prompt_length": 144, "ratio": "response"}}


@pytest.fixture(scope="module")
def flags(exact_base_model, countdown_data):
    return {
        "model": exact_base_model, "data": countdown_data, "seed": 1, "total_steps": STEPS, "eval_every": 4,
        "eval_problems": 8, "save_every": 2, "prompts_per_step": PROMPTS, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": 48, "max_tokens_per_micro_batch": 320, "lr": 1e-3,
    }


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, flags):
    """{name: folder} of runs in float64 on two processes, one after another."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    runs = [(f"training/{name}.py", flags | OWN[name] | {"zero_stage": stage, "output_dir": folders[name]})
            for name, stage in STAGES.items()]
    succeed(launch_in_turn(runs, 2, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flags):
    """The same on one process without ZeRO, prefixes not shared."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    other = {"zero_stage": 0, "share_prefix": False, "max_tokens_per_micro_batch": 900}
    runs = [(f"training/{name}.py", flags | OWN[name] | other | {"output_dir": folders[name]}) for name in STAGES]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, flags, base_model):
    """{name: (folder, folder of a run that went back to step 2)}, in float32."""
    folders = {name: (tmp_path_factory.mktemp(name) / "one", tmp_path_factory.mktemp(name) / "other")
               for name in RESUMED}
    runs = [(f"training/{name}.py", flags | OWN[name] | {"model": base_model, "zero_stage": 0} | more)
            for name, (one, other) in folders.items()
            for more in ({"output_dir": one}, {"output_dir": other},
                         {"output_dir": other, "resume": True, "resume_step": 2})]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1"))
    return folders


def waits(folder, step):
    """{row: since which step} in a checkpoint."""
    kept = json.loads((folder / "checkpoints" / f"step_{step}" / "state" / "problems.json").read_text())
    assert kept["names"] == ["waits_since"] and kept["means"] == [0.0]
    return {int(row): since for row, [since] in kept["problems"].items() if since}


@pytest.mark.parametrize("name", STAGES)
def test_numbers_do_not_depend_on_ranks_stage_micro_batches_and_shared_prefixes(on_two, alone, name):
    first, second = (training_lines(folders[name]) for folders in (on_two, alone))
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 3, 4]
    for one, other in zip(first, second, strict=True):
        names = {field for field in one if not depends_on_machine(field) and not field.startswith("logprob_mismatch")}
        assert {field: other[field] for field in names} == pytest.approx(
            {field: one[field] for field in names}, rel=CLOSE["rtol"], abs=CLOSE["atol"])
    for one, other in zip(*(evaluation_lines(folders[name]) for folders in (on_two, alone)), strict=True):
        assert one == pytest.approx(other)
    if name == "relift":
        assert all(waits(on_two[name], step) == waits(alone[name], step) for step in (2, 4))


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_exactly(resumed, name):
    first, second = (list(map(without_times, training_lines(folder))) for folder in resumed[name])
    assert len(first) == STEPS and first == second
    if name == "relift":
        one, other = resumed[name]
        assert waits(one, 2) and waits(one, 4) == waits(other, 4)


@pytest.mark.parametrize("name", STAGES)
def test_lines_are_explained(on_two, name):
    for line in training_lines(on_two[name]):
        assert set(line) <= {"step", "accuracy/slices_0", "rollouts/slices_0", *logger.TRAINING_FIELDS,
                             *logger.MORE_FIELDS}
        assert line["rollouts/slices_0"] == PROMPTS * (4 if name == "dapo" else 2)
        assert line["grad_norm"] > 0 and line["logprob_mismatch"] < 1e-9


def test_flat_groups_become_fewer(on_two):
    lines = training_lines(on_two["dapo"])
    assert all(line["flat_groups"] <= line["flat_groups_at_first"] for line in lines)
    assert sum(line["flat_groups"] for line in lines) < sum(line["flat_groups_at_first"] for line in lines)
    assert all(0 < line["refill_rounds"] <= 2 for line in lines)


def test_what_waits_is_imitated_as_soon_as_there_is_enough(on_two):
    lines = training_lines(on_two["relift"])
    waiting = 0
    for line in lines:
        assert line["imitated"] in (0, IMITATED) and (line["sft_loss"] > 0) == (line["imitated"] > 0)
        assert (line["state_grad_norm/demonstration"] > 0) == (line["imitated"] > 0)
        entered = line["waiting"] + line["imitated"] - waiting
        assert 0 <= entered <= round(line["groups_all_wrong"] * PROMPTS)
        assert (waiting + entered >= IMITATED) == (line["imitated"] > 0)
        waiting = line["waiting"]
    assert sum(line["imitated"] for line in lines) > 0 and len(waits(on_two["relift"], STEPS)) == waiting


def test_the_teacher_has_read_the_solutions(on_two):
    lines = training_lines(on_two["self_distillation"])
    assert all(line["teacher_share"] == 1 and line["tokens/hint"] == line["hint_tokens"] == 0 for line in lines)
    assert all(line["teacher_advantage"] < 0 for line in lines)
