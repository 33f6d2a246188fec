"""The script that replaces groups which teach nothing, as users start it: its numbers do not depend on how the work is cut, a
resumed run goes on exactly, and what it writes is explained."""

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

STEPS, PROMPTS = 4, 16
STAGES = {"dapo": 2}
OWN = {"dapo": {"max_refills": 2, "overlong": 0.5}}


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
    """The same on one process without ZeRO, prefixes not shared; and each again from its step 2, as {name: folder}."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    again = {name: tmp_path_factory.mktemp(name) / "again" for name in STAGES}
    other = {"zero_stage": 0, "share_prefix": False, "max_tokens_per_micro_batch": 900}
    runs = [(f"training/{name}.py", flags | OWN[name] | other | more) for name in STAGES for more in (
        {"output_dir": folders[name]}, {"output_dir": again[name]},
        {"output_dir": again[name], "resume": True, "resume_step": 2})]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders, again


@pytest.mark.parametrize("name", STAGES)
def test_numbers_do_not_depend_on_ranks_stage_micro_batches_and_shared_prefixes(on_two, alone, name):
    first, second = (training_lines(folders[name]) for folders in (on_two, alone[0]))
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 3, 4]
    for one, other in zip(first, second, strict=True):
        names = {field for field in one if not depends_on_machine(field) and not field.startswith("logprob_mismatch")}
        assert {field: other[field] for field in names} == pytest.approx(
            {field: one[field] for field in names}, rel=CLOSE["rtol"], abs=CLOSE["atol"])
    for one, other in zip(*(evaluation_lines(folders[name]) for folders in (on_two, alone[0])), strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_run_goes_on_exactly(alone, name):
    first, second = (list(map(without_times, training_lines(folders[name]))) for folders in alone)
    assert len(first) == STEPS and first == second


@pytest.mark.parametrize("name", STAGES)
def test_lines_are_explained(on_two, name):
    for line in training_lines(on_two[name]):
        assert set(line) <= {"step", "accuracy/slices_0", "rollouts/slices_0", *logger.TRAINING_FIELDS,
                             *logger.MORE_FIELDS}
        assert line["rollouts/slices_0"] == PROMPTS * 4
        assert line["grad_norm"] > 0 and line["logprob_mismatch"] < 1e-9


def test_flat_groups_become_fewer(on_two):
    lines = training_lines(on_two["dapo"])
    assert all(line["flat_groups"] <= line["flat_groups_at_first"] for line in lines)
    assert sum(line["flat_groups"] for line in lines) < sum(line["flat_groups_at_first"] for line in lines)
    assert all(0 < line["refill_rounds"] <= 2 for line in lines)

