"""States that are restored with another number of processes or ZeRO stage: actors, bit for bit (reshape_worker.py), and
whole runs, to rounding."""

import json
import shutil
import sys

import pytest
import torch

from tests.helpers.launching import launch_in_turn, launch_words, run, start_in_turn, succeed, training_lines
from tests.workers.reshape_worker import FURTHER, GROUPS
from utils import reshape
from utils.reshape import Piece

pytestmark = pytest.mark.slow
WORKER = "tests/workers/reshape_worker.py"
EACH = [(before, now, group, number) for before, now in FURTHER for group, cases in GROUPS.items()
        for number in range(len(cases))]
TOLERANCE = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (2**-5, 0.05)}  # of the norm, and of the update, relative


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(processes before, processes now) -> what the worker measured, by group."""
    folder = tmp_path_factory.mktemp("reshape")
    succeed(run([sys.executable, WORKER, str(folder), "save"], OMP_NUM_THREADS="1"))
    words = [str(folder), "save", "load_1", "load_2"]
    succeed(launch_words(WORKER, words, num_processes=2, OMP_NUM_THREADS="1"))
    return {(before, 2): json.loads((folder / f"load_{before}.json").read_text()) for before in (1, 2)}


@pytest.mark.parametrize(("before", "now", "group", "number"), EACH)
def test_an_actor_that_is_cut_otherwise_is_restored_bit_for_bit(results, before, now, group, number):
    """Weights, master copies, moments and the number of updates; and its next update is the same, to rounding: in
    bfloat16 gradients are rounded where they are added up over ranks and micro-batches, 2**-8 of each, and Adam, which
    divides by their size, makes as much of the smallest as of the others."""
    result = [one for one in results[before, now] if one["group"] == group][number]
    assert result["from"] != result["to"] and result["same_names"] and result["differ"] == []
    of_norm, of_update = TOLERANCE[GROUPS[group][number].dtype]
    assert result["norms"][0] == pytest.approx(result["norms"][1], rel=of_norm)
    assert result["apart"] < of_update * result["update"]


def test_another_model_is_told_before_anything_is_set():
    pieces = {"weight": [Piece(torch.zeros(6), {}, 0, 6)]}
    learning = {"weight": torch.nn.Parameter(torch.ones(2, 2)), "bias": torch.nn.Parameter(torch.ones(2))}
    with pytest.raises(reshape.RunStopped, match="written by another model, bias, weight differ"):
        reshape.put(pieces, learning, None, 0, False)
    assert learning["weight"].sum() == 4


def test_a_run_goes_on_with_other_processes_and_stages_as_if_it_had_always_had_them(
    tmp_path, base_model, countdown_data
):
    """Against a run that was never cut otherwise: losses to rounding. In float32 a mean over some hundred tokens is
    right to 1e-6, which three updates at this rate do not make 1e-4."""
    flags = {
        "model": base_model, "data": countdown_data, "eval_problems": 2, "eval_every": 6, "prompts_per_step": 8,
        "mini_batch_prompts": 8, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8, "lr": 1e-3,
        "save_every": 3,
    }

    def of(name: str, **own) -> tuple[str, dict]:
        return "training/sft.py", flags | {"output_dir": tmp_path / name, "total_steps": 6} | own

    again = {"resume": True, "resume_step": 3, "reshape": True}
    succeed(start_in_turn([of("whole", zero_stage=3)]))
    shutil.copytree(tmp_path / "whole", tmp_path / "grows")
    succeed(launch_in_turn([of("grows", zero_stage=2, **again), of("shrinks", zero_stage=3)], 2))
    result = succeed(start_in_turn([of("shrinks", zero_stage=0, **again)]))
    assert "--zero_stage was 3 and is 0" in result.stdout and "processes was 2 and is 1" in result.stdout
    expected = training_lines(tmp_path / "whole")
    for name in ("grows", "shrinks"):
        lines = training_lines(tmp_path / name)
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        for key in ("loss", "grad_norm"):
            assert [line[key] for line in lines] == pytest.approx([line[key] for line in expected], rel=1e-4)
