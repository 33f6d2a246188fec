"""The scripts whose hints adapt, as users start them: their numbers do not depend on how the work is cut, a resumed run
goes on exactly with what it keeps of each problem, and what they write is explained."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import evaluation_lines, launch_in_turn, start_in_turn, succeed, training_lines
from utils.manifest import damage
from utils.run import logger
from utils.run.logger import depends_on_machine

pytestmark = pytest.mark.slow

STEPS, PROMPTS, PROBLEMS = 4, 16, 20  # most problems are met three times
STAGES = {"adaback": 3, "ghpo": 2, "prefix_rft": 3, "uft_adaptive": 1}
OWN = {"adaback": {"mean_rate": 0.5},
       "ghpo": {"hint_rounds": 2, "ratio": "response", "clip_eps": 3e-4, "clip_eps_high": 4e-4},
       "prefix_rft": {"kl_coef": 0.1, "dump_batch": True, "probe_memory": "always"},
       "uft_adaptive": {"sft_coef": 0.1, "p_high": 0.5}}
KEEPS = {"adaback": ["hint_low", "hint_high"], "uft_adaptive": ["hint_p"]}


@pytest.fixture(scope="module")
def flags(tmp_path_factory, exact_base_model, countdown_data):
    data = tmp_path_factory.mktemp("few") / "data"
    shutil.copytree(countdown_data, data)
    pq.write_table(pq.read_table(data / "train.parquet").slice(0, PROBLEMS), data / "train.parquet")
    return {
        "model": exact_base_model, "data": data, "seed": 1, "total_steps": STEPS, "eval_every": 4, "eval_problems": 8,
        "save_every": 2, "prompts_per_step": PROMPTS, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": 48, "max_tokens_per_micro_batch": 320, "lr": 1e-3,
    }


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, flags):
    """{name: folder} of runs in float64 on two processes, one after another, and what they printed. The last is one
    step with an engine whose ranks decode together, though one may have no problem to sample anew."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in (*STAGES, "together")}
    runs = [(f"training/{name}.py", flags | OWN[name] | {"zero_stage": stage, "output_dir": folders[name]})
            for name, stage in STAGES.items()]
    few = {"total_steps": 1, "prompts_per_step": 2, "mini_batch_prompts": 2, "engine": "deepspeed", "zero_stage": 3,
           "output_dir": folders["together"], "max_response_length": 24, "eval_problems": 2, "seed": 2}
    runs.append(("training/ghpo.py", flags | few))
    return folders, succeed(launch_in_turn(runs, 2, OMP_NUM_THREADS="1", **IN_FLOAT64)).stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flags):
    """The same on one process without ZeRO, prefixes not shared."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STAGES}
    other = {"zero_stage": 0, "share_prefix": False, "max_tokens_per_micro_batch": 900}
    runs = [(f"training/{name}.py", flags | OWN[name] | other | {"output_dir": folders[name]}) for name in STAGES]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


def problems_of(folder, step):
    return json.loads((folder / "checkpoints" / f"step_{step}" / "state" / "problems.json").read_text())


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
    if name in KEEPS:
        assert problems_of(on_two[0][name], STEPS) == problems_of(alone[name], STEPS)


@pytest.mark.parametrize("name", STAGES)
def test_lines_are_explained_and_hints_are_shown(on_two, name):
    lines = training_lines(on_two[0][name])
    for line in lines:
        told = {re.sub(r"slices_\d+$", "slices_N", field) for field in line}
        assert told <= {"step", *logger.TRAINING_FIELDS, *logger.MORE_FIELDS}
        assert line["grad_norm"] > 0 and line["logprob_mismatch"] < 1e-9
        assert 0 < line["hint_share"] < 1 and line["hint_tokens"] > 0
        assert (line["hint_slices"] > 0) == (name == "uft_adaptive") != ("rollouts/hinted" in line)
        shown = sum(value for field, value in line.items() if field.startswith("rollouts/"))
        assert shown == PROMPTS * 4 and set(KEEPS.get(name, [])) <= set(line)
        assert line["tokens/hint"] == pytest.approx(line["hint_tokens"] * PROMPTS)
        assert line["tokens/response"] == pytest.approx(line["response_tokens"] * PROMPTS * 4)
        assert (line["tokens/sampled"] > line["tokens/response"]) == (name == "ghpo")
        assert (line["state_grad_norm/hint"] > 0) == (name in ("prefix_rft", "uft_adaptive"))
        assert (line["sft_loss"] > 0) == (name == "uft_adaptive")


def test_each_script_says_what_it_did(on_two):
    lines = {name: training_lines(folder) for name, folder in on_two[0].items()}
    assert [line["problems_met"] for line in lines["adaback"]] == [16, 20, 20, 20]
    assert all(line["hint_low"] < line["hint_high"] < 1 for line in lines["adaback"])
    assert all(line["rollouts/hinted"] == PROMPTS for line in lines["prefix_rft"])  # one of each group
    assert all(line["rollouts/hinted"] % 4 == 0 for line in lines["ghpo"])  # whole groups
    assert all(0 <= line["hint_p"] <= 1 for line in lines["uft_adaptive"])
    assert len(lines["together"]) == 1 and lines["together"][0]["rollouts/slices_0"] < 8  # some were sampled anew


@pytest.mark.parametrize("name", KEEPS)
def test_what_is_kept_of_each_problem_is_in_every_checkpoint_and_its_manifest(on_two, name):
    for step, met in ((2, 20), (4, 20)):
        folder = on_two[0][name] / "checkpoints" / f"step_{step}"
        kept = problems_of(on_two[0][name], step)
        assert kept["names"] == KEEPS[name] and len(kept["problems"]) == met
        assert "state/problems.json" in json.loads((folder / "manifest.json").read_text())["files"]
        assert damage(folder, with_hashes=True) is None
    assert problems_of(on_two[0][name], 2) != problems_of(on_two[0][name], 4)


def test_the_dumped_group_goes_on_from_its_prefix(on_two):
    printed = re.sub(r"\033\[\d+m", "", on_two[1])
    [(length, advantage, of_response)] = re.findall(
        r"hint \((\d+) tokens, sft_loss, advantage ([+-]\d\.\d{3})\): .*?\nresponse \(\d+ tokens, pg_loss with "
        r"advantage ([+-]\d\.\d{3}), kl_loss, entropy\): ", printed, re.DOTALL)
    assert int(length) > 0 and advantage == of_response
