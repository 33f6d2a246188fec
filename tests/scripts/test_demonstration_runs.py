"""The scripts that put a demonstration beside the samples, as users start them: their numbers do not depend on how the
work is cut, and what they write counts sampled tokens alone."""

import re

import pytest
from transformers import AutoTokenizer

from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import evaluation_lines, launch_in_turn, start_in_turn, succeed, training_lines
from training import chord
from utils.data import load_problems, problems_of_step
from utils.prompts import encode
from utils.run import logger
from utils.run.logger import depends_on_machine

pytestmark = pytest.mark.slow

STEPS, PROMPTS, LONGEST = 4, 16, 24
STAGES = {"luffy": 3, "chord": 2, "hpt": 1, "srft": 3}
OWN = {"luffy": {"old_logprobs": "engine", "dump_batch": True, "probe_memory": "always"},
       "chord": {"mu_decay": 3, "phi": True, "kl_coef": 0.1, "ratio": "response"}, "hpt": {"constant_normaliser": True},
       "srft": {"entropy_sign": 1}}
DEMONSTRATION_LOSS = {"luffy": "demonstration_loss", "chord": "sft_loss", "hpt": "sft_loss", "srft": "sft_loss"}


@pytest.fixture(scope="module")
def flags(exact_base_model, countdown_data):
    return {
        "model": exact_base_model, "data": countdown_data, "seed": 1, "total_steps": STEPS, "eval_every": 4,
        "eval_problems": 8, "save_every": 2, "prompts_per_step": PROMPTS, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": 48, "max_demonstration_length": 48, "lr": 1e-3,
        "max_tokens_per_micro_batch": 320,
    }


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, flags):
    """{name: folder} of runs in float64 on two processes, one after another, and what they printed."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    runs = [(f"training/{name}.py", flags | OWN[name] | {"zero_stage": stage, "output_dir": folders[name]})
            for name, stage in STAGES.items()]
    return folders, succeed(launch_in_turn(runs, 2, OMP_NUM_THREADS="1", **IN_FLOAT64)).stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flags):
    """The same on one process without ZeRO, its prefixes not shared."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    other = {"zero_stage": 0, "share_prefix": False, "max_tokens_per_micro_batch": 900}
    runs = [(f"training/{name}.py", flags | OWN[name] | other | {"output_dir": folders[name]}) for name in STAGES]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.mark.parametrize("name", STAGES)
def test_numbers_do_not_depend_on_ranks_stage_micro_batches_and_shared_prefixes(on_two, alone, name):
    first, second = (training_lines(folders[name]) for folders in (on_two[0], alone))
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 3, 4]
    for one, other in zip(first, second, strict=True):
        names = {field for field in one if not depends_on_machine(field) and not field.startswith("logprob_mismatch")}
        assert {field: other[field] for field in names} == pytest.approx(
            {field: one[field] for field in names}, rel=CLOSE["rtol"], abs=CLOSE["atol"])
    for one, other in zip(*(evaluation_lines(folders[name]) for folders in (on_two[0], alone)), strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize("name", STAGES)
def test_lines_are_explained_and_count_what_was_sampled(on_two, name):
    for line in training_lines(on_two[0][name]):
        told = {re.sub(r"slices_\d+$", "slices_N", field) for field in line}
        assert told <= {"step", *logger.TRAINING_FIELDS, *logger.MORE_FIELDS}
        assert line["rollouts/slices_0"] == PROMPTS * (3 if name == "luffy" else 4) and line["hint_tokens"] == 0
        assert line[DEMONSTRATION_LOSS[name]] != 0 and line["grad_norm"] > 0
        assert line["state_grad_norm/demonstration"] > 0 and line["state_grad_norm/response"] > 0
        assert line["tokens/sampled"] == pytest.approx(line["response_tokens"] * line["rollouts/slices_0"])
        assert (line["tokens/response"] < line["tokens/sampled"]) == (name == "hpt") and line["tokens/hint"] == 0
        assert line["tokens/demonstration"] > 0
        assert line["accuracy"] < 1 and line["logprob_mismatch"] < 1e-9  # a demonstration's would be nats


def test_what_a_script_says_of_its_own(on_two, flags):
    folders, printed = on_two
    lines = {name: training_lines(folder) for name, folder in folders.items()}
    args = chord.Args(**flags | OWN["chord"], output_dir="")
    assert [line["mu"] for line in lines["chord"]] == [chord.mu_at(done, args) for done in range(STEPS)]
    assert all(0 < line["gated"] < 1 for line in lines["hpt"])
    assert all(line["gated"] == line["groups_all_wrong"] for line in lines["hpt"])
    assert all(line["pg_loss"] == pytest.approx(line["right_loss"] + line["wrong_loss"]) for line in lines["srft"])
    assert all(line["engine_ratio"] == pytest.approx(1, abs=0.5) for line in lines["luffy"])
    assert printed.count("the verifier judges 100.0% of 200 references right") == len(STAGES)


def test_the_dumped_group_ends_with_the_demonstration(on_two, flags, exact_base_model):
    tokenizer = AutoTokenizer.from_pretrained(exact_base_model)
    pattern = (r"demonstration \((\d+) tokens, not sampled, advantage [+-]\d\.\d{3}\): "
               rf".*?{re.escape(tokenizer.eos_token)}")
    [shown] = re.findall(pattern, re.sub(r"\033\[\d+m", "", on_two[1]), re.DOTALL)
    problems = problems_of_step(load_problems(str(flags["data"]), "train"), 1, PROMPTS, flags["seed"])
    lengths = {len(encode(problem.demonstration, tokenizer)) + 1 for problem in problems}
    assert int(shown) in lengths
