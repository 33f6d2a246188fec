"""Checkpoints that a thread writes while the run goes on: three runs on two real processes, one after another."""

import re
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import launch_in_turn, training_lines, wait_for
from utils.actor import weights_only
from utils.manifest import damage, files_in
from utils.run.logger import depends_on_machine

pytestmark = pytest.mark.slow
SLOW_SAVE = "tests/workers/slow_save.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_model, countdown_data):
    """The folder of all, and what was said: "plain" saves as it goes, "late" in the background, and so does "stopped",
    which is asked to stop meanwhile; of "failing" the second process cannot write."""
    folder = tmp_path_factory.mktemp("background")
    flags = {
        "model": base_model, "data": countdown_data, "eval_problems": 2, "eval_every": 100, "prompts_per_step": 8,
        "mini_batch_prompts": 8, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8, "lr": 1e-3,
        "save_every": 3, "total_steps": 5, "zero_stage": 2,
    }
    slow = flags | {"script": "training/sft.py", "background_save": True, "late": 2.0}
    stopped = folder / "stopped"

    def stop() -> None:
        wait_for(stopped / "checkpoints" / ".step_3.partial" / "hf" / "tokenizer.json", "")
        (stopped / "stop").touch()

    result = launch_in_turn([
        ("training/sft.py", flags | {"output_dir": folder / "plain"}),
        (SLOW_SAVE, slow | {"output_dir": folder / "late"}),
        (SLOW_SAVE, slow | {"output_dir": stopped, "total_steps": 90, "save_every": 3}),
        (SLOW_SAVE, slow | {"output_dir": folder / "failing", "late": "never"}),
    ], 2, fault=stop)
    return folder, result


def same(one: object, other: object) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def states(checkpoint: Path) -> list:
    with weights_only():
        return [torch.load(path, weights_only=True) for path in files_in(checkpoint) if path.suffix == ".pt"]


def test_steps_taken_meanwhile_change_neither_the_checkpoint_nor_the_run(runs):
    folder, result = runs
    assert int(re.search(r"written in the background when (\d+) steps", result.stdout)[1]) > 3
    plain, late = folder / "plain" / "checkpoints", folder / "late" / "checkpoints"
    assert sorted(path.name for path in late.iterdir()) == sorted(path.name for path in plain.iterdir()) == [
        "latest", "step_3", "step_5"]
    assert (late / "latest").read_text() == "step_5\n"
    for name in ("step_3", "step_5"):
        assert damage(late / name, with_hashes=True) is None
        assert [path.relative_to(late) for path in files_in(late / name)] == [
            path.relative_to(plain) for path in files_in(plain / name)]
        assert same(states(late / name), states(plain / name))
        one, other = ((of / name / "hf" / "model.safetensors").read_bytes() for of in (late, plain))
        assert one == other
    one, other = ([{name: value for name, value in line.items() if not depends_on_machine(name)}
                   for line in training_lines(folder / name)] for name in ("late", "plain"))
    assert one == other


def test_a_stop_waits_for_what_is_on_its_way_and_saves(runs):
    folder, result = runs
    [done] = re.findall(r"interrupted after step (\d+), saved", result.stdout)
    checkpoints = folder / "stopped" / "checkpoints"
    assert 3 <= int(done) < 90 and (checkpoints / "latest").read_text() == f"step_{done}\n"
    assert {path.name for path in checkpoints.iterdir()} >= {"latest", "step_3", f"step_{done}"}
    assert damage(checkpoints / "step_3", True) is None and damage(checkpoints / f"step_{done}", True) is None


def test_an_error_of_the_thread_ends_the_run_with_its_cause_and_nothing_counts(runs):
    folder, result = runs
    assert result.returncode != 0
    assert re.search(r"stopped: .*step_3 cannot be written: OSError: \[Errno 28\] No space left", result.stderr)
    assert list((folder / "failing" / "checkpoints").iterdir()) == []
