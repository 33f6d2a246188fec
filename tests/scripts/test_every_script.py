"""What holds for every script alike: a run that goes back to a checkpoint gives the same numbers and weights again, and
DeepSpeed's own rollout gives those of ours. The two draw from other streams; at next to no temperature nothing is left
to draw, so that all numbers of a run must be the same."""

import pytest

from tests.chaos.kill_resume import OWN
from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import outcome, start_in_turn, succeed, training_lines, without_times
from tests.scripts.test_scripts import SCRIPTS
from utils.report.runs import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

STEPS, COLD = 4, 1e-5
KEEPS = {"adaback": ["hint_low"], "uft_adaptive": ["hint_p"], "relift": []}  # of each problem; what changes there
DRAWN = ("logprob_mismatch", "logprob_mismatch_max")


def test_every_script_is_here_and_is_killed():
    assert set(OWN) == {name for name in SCRIPTS if name != "eval"}


def flags_of(name, model, data):
    flags = {
        "model": model, "data": data, "seed": 1, "prompts_per_step": 8, "mini_batch_prompts": 4,
        "max_prompt_length": 64, "max_response_length": 24, "max_tokens_per_micro_batch": 320, "lr": 1e-3,
        "zero_stage": 0, "eval_problems": 2,
    }
    return flags | ({} if name == "sft" else {"group_size": 3}) | OWN[name]


# ----- going back -----


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory, base_model, countdown_data):
    """{name: folder} of runs whose second half was taken twice, one after another in one process."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in OWN}
    whole = {"total_steps": STEPS, "eval_every": STEPS, "save_every": STEPS // 2}
    runs = [(f"training/{name}.py", flags_of(name, base_model, countdown_data) | whole | {"output_dir": folder} | again)
            for name, folder in folders.items() for again in ({}, {"resume": True, "resume_step": STEPS // 2})]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1"))
    return folders


@pytest.mark.parametrize("name", OWN)
def test_a_run_that_goes_back_gives_the_same_numbers_and_weights(gone_back, name):
    """And what it keeps of each problem, which the second half changes."""
    before, after = (outcome(gone_back[name], STEPS, before_going_back=back) for back in (True, False))
    assert before == after and set(after[STEPS + 2]) == {"hf/model.safetensors"}  # after two evaluations
    lines, keeps = training_lines(gone_back[name]), KEEPS.get(name, ())
    assert len(after) == STEPS + 3 + (name in KEEPS) and ("state/problems.json" in after[-1]) == (name in KEEPS)
    assert all(lines[-1][field] != lines[1][field] for field in keeps)


# ----- the other engine -----


@pytest.fixture(scope="module")
def runs(tmp_path_factory, exact_base_model, countdown_data):
    """{(name, engine): folder} of runs of a step in float64, one after another in one process."""
    one = {"total_steps": 1, "eval_every": 1, "save_every": 9, "prompts_per_step": 4, "mini_batch_prompts": 2}
    cold = {"group_size": 2, "temperature": COLD, "kl_coef": 0}
    folders = {(name, engine): tmp_path_factory.mktemp(name) / engine for name in OWN
               for engine in ("torch", "deepspeed")}
    runs = [(f"training/{name}.py", flags_of(name, exact_base_model, countdown_data) | one
             | ({} if name == "sft" else cold) | {"engine": engine, "output_dir": folder})
            for (name, engine), folder in folders.items()]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.mark.parametrize("name", OWN)
def test_numbers_do_not_depend_on_the_engine(runs, name):
    ours, theirs = (list(map(without_times, read_metrics(runs[name, engine]))) for engine in ("torch", "deepspeed"))
    assert len(ours) == len(theirs) == 3  # with two evaluations
    for one, other in zip(ours, theirs, strict=True):
        names = set(one) - set(DRAWN)
        assert {field: other[field] for field in names} == pytest.approx(
            {field: one[field] for field in names}, rel=CLOSE["rtol"], abs=CLOSE["atol"])
    if name != "sft":
        assert all(line["response_tokens"] > 3 for line in training_lines(runs[name, "deepspeed"]))
