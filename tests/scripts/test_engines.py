"""Every script with DeepSpeed's own rollout in the place of ours. The two draw from other streams; at next to no
temperature nothing is left to draw, so that all numbers of a run must be the same."""

import pytest

from tests.chaos.kill_resume import OWN
from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import start_in_turn, succeed, training_lines, without_times
from tests.scripts.test_scripts import SCRIPTS
from utils.report.runs import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

STEPS, COLD = 1, 1e-5
DRAWN = ("logprob_mismatch", "logprob_mismatch_max")


def test_every_script_is_here_and_is_killed():
    assert set(OWN) == {name for name in SCRIPTS if name != "eval"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, exact_base_model, countdown_data):
    """{(name, engine): folder} of runs in float64, one after another in one process."""
    flags = {
        "model": exact_base_model, "data": countdown_data, "seed": 1, "total_steps": STEPS, "eval_every": STEPS,
        "eval_problems": 2, "save_every": 9, "prompts_per_step": 4, "mini_batch_prompts": 2, "max_prompt_length": 64,
        "max_response_length": 24, "max_tokens_per_micro_batch": 320, "lr": 1e-3, "zero_stage": 0,
    }
    of_groups = {"group_size": 2, "temperature": COLD, "kl_coef": 0}
    folders = {(name, engine): tmp_path_factory.mktemp(name) / engine for name in OWN
               for engine in ("torch", "deepspeed")}
    runs = [(f"training/{name}.py", flags | ({} if name == "sft" else of_groups) | OWN[name]
             | {"engine": engine, "output_dir": folder}) for (name, engine), folder in folders.items()]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.mark.parametrize("name", OWN)
def test_numbers_do_not_depend_on_the_engine(runs, name):
    ours, theirs = (list(map(without_times, read_metrics(runs[name, engine]))) for engine in ("torch", "deepspeed"))
    assert len(ours) == len(theirs) == STEPS + 2
    for one, other in zip(ours, theirs, strict=True):
        names = set(one) - set(DRAWN)
        assert {field: other[field] for field in names} == pytest.approx(
            {field: one[field] for field in names}, rel=CLOSE["rtol"], abs=CLOSE["atol"])
    if name != "sft":
        assert all(line["response_tokens"] > 3 for line in training_lines(runs[name, "deepspeed"]))
