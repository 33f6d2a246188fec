"""Checkpoints that are kept, found, refused: all that needs no model. scripts/test_training.py resumes real runs."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import checkpoints
from tests.helpers.checkpoints import WEIGHTS
from tests.helpers.launching import ROOT, launch_words, start_in_turn, succeed, training_lines
from tests.helpers.models import make_problem
from utils import checkpoint
from utils.actor import weights_only
from utils.checkpoint import describe_run, differences, find, superfluous
from utils.data import fingerprint
from utils.manifest import damage, files_in
from utils.run import watchdog
from utils.run.errors import BadInput
from utils.run.output_dir import lock_output_dir

PROBLEMS = [make_problem(0), make_problem(1)]


def run_of(problems=PROBLEMS, **settings):
    fingerprints = {"train": fingerprint(problems), "test": fingerprint(PROBLEMS)}
    return describe_run({"zero_stage": 3, "lr": 1e-5, "output_dir": "here"} | settings, fingerprints)


def write(folder, step, run=None):
    return checkpoints.write(folder, step, run or run_of())


def refused(tmp_path, *parts, resume_step=0, total_steps=9, run=None, allow_changes=False, reshape=False):
    with pytest.raises(BadInput) as error:
        find(str(tmp_path), True, resume_step, total_steps, run or run_of(), allow_changes, reshape)
    for part in parts:
        assert part in str(error.value)


# ----- finding one -----


def test_the_latest_is_resumed_or_the_one_that_is_named(tmp_path):
    for step in (2, 4, 10):
        write(tmp_path, step)
    assert find(str(tmp_path), True, 0, 10, run_of(), False) == (10, [])
    assert find(str(tmp_path), True, 4, 10, run_of(), False) == (4, [])
    refused(tmp_path, "step_5: there is no such checkpoint; the newest other one is step_10", resume_step=5)
    refused(tmp_path, "flag --total_steps 9: the checkpoint to resume is at step 10")


def test_without_resume_a_run_starts_at_the_beginning(tmp_path):
    write(tmp_path, 2)
    assert find(str(tmp_path), False, 0, 9, run_of(), False) == (0, [])
    for flag, resume_step, allow_changes in (("--resume_step 2", 2, False), ("--allow_changes True", 0, True)):
        with pytest.raises(BadInput, match=f"^flag {flag}: needs --resume"):
            find(str(tmp_path), False, resume_step, 9, run_of(), allow_changes)
    with pytest.raises(BadInput, match="^flag --reshape True: needs --resume"):
        find(str(tmp_path), False, 0, 9, run_of(), False, True)


def test_without_latest_the_newest_whole_one_is_offered(tmp_path):
    refused(tmp_path, "flag --resume", "there is no checkpoint to resume")
    write(tmp_path, 2)
    (write(tmp_path, 4) / "state" / "ranks" / "0.pt").unlink()
    (tmp_path / "checkpoints" / "latest").unlink()
    refused(tmp_path, "there is no checkpoint to resume",
            "the newest other one is step_2, resume it with --resume_step 2")


@pytest.mark.parametrize(("harm", "message"), [
    (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    (lambda path: (path / WEIGHTS).write_text("weigh"), f"{WEIGHTS} has 5 bytes, and had 9"),
    (lambda path: (path / WEIGHTS).write_text("weightz 4"), f"{WEIGHTS} is not what was written"),
    (lambda path: shutil.rmtree(path / "state"), "state/ranks/0.pt is missing"),
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing or damaged"),
    (lambda path: (path / "manifest.json").write_text('{"step": 4, "fil'), "manifest.json is missing or damaged"),
    (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is missing or damaged"),
    (lambda path: shutil.rmtree(path), "there is no such checkpoint"),
], ids=["no file", "truncated", "a bit flipped", "no state", "no manifest", "torn manifest", "another", "no folder"])
def test_damage_is_found_and_the_previous_good_one_offered(tmp_path, harm, message):
    write(tmp_path, 2)
    harm(write(tmp_path, 4))
    refused(tmp_path, "checkpoints/step_4: ", message, "; the newest other one is step_2")
    assert find(str(tmp_path), True, 2, 9, run_of(), False) == (2, [])


def test_hashes_are_read_by_the_first_process_only(tmp_path, monkeypatch):
    path = write(tmp_path, 4)
    (path / "hf" / "model.safetensors").write_text("weightz 4")
    assert damage(path, with_hashes=False) is None
    monkeypatch.setenv("RANK", "1")
    assert find(str(tmp_path), True, 0, 9, run_of(), False) == (4, [])


# ----- whose it is -----


def test_other_settings_and_data_are_listed_and_refused_unless_allowed(tmp_path):
    write(tmp_path, 4, run_of(old_flag=1))
    run = run_of([make_problem(0), make_problem(2)], lr=1e-4, new_flag=True)
    told = ["--lr was 1e-05 and is 0.0001", "--new_flag was not there and is True", "--old_flag was 1 and is not there",
            "train problems (fingerprint) was"]
    refused(tmp_path, *told, "--allow_changes", run=run)
    step, changes = find(str(tmp_path), True, 0, 9, run, allow_changes=True)
    assert step == 4 and [change.startswith(start) for change, start in zip(changes, told, strict=True)] == [True] * 4


def test_settings_that_no_number_depends_on_may_differ(tmp_path):
    write(tmp_path, 4, run_of(output_dir="there", save_every=100, timeout_minutes=30, check=False))
    assert find(str(tmp_path), True, 0, 9, run_of(save_every=7, timeout_minutes=3, check=True), False) == (4, [])
    assert differences(run_of(), run_of()) == {}


def test_another_zero_stage_or_number_of_processes_needs_reshape_whatever_else_is_allowed(tmp_path, monkeypatch):
    write(tmp_path, 4)
    refused(tmp_path, "--zero_stage was 3 and is 2", "give --reshape", run=run_of(zero_stage=2), allow_changes=True)
    refused(tmp_path, "--offload was not there and is True", "give --reshape", run=run_of(offload=True),
            allow_changes=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(tmp_path, "processes was 1 and is 2", "give --reshape", run=run_of(), allow_changes=True)
    assert find(str(tmp_path), True, 0, 9, run_of(zero_stage=2), False, True) == (
        4, ["--zero_stage was 3 and is 2", "processes was 1 and is 2"])
    refused(tmp_path, "--lr was 1e-05 and is 0.1", "give --allow_changes", run=run_of(lr=0.1), reshape=True)


# ----- which are kept -----


@pytest.mark.parametrize(("keep_last", "keep_every", "gone"), [
    (0, 0, []), (1, 0, [2, 4, 6, 8, 10]), (3, 0, [2, 4, 6]), (9, 0, []), (1, 4, [2, 6, 10]), (2, 6, [2, 4, 8]),
    (0, 4, []),
])
def test_the_newest_and_every_nth_are_kept(tmp_path, keep_last, keep_every, gone):
    for step in (2, 4, 6, 8, 10, 12):
        (tmp_path / f"step_{step}").mkdir()
    assert [path.name for path in superfluous(tmp_path, 12, keep_last, keep_every)] == [f"step_{step}" for step in gone]


def test_what_was_just_written_is_kept_whatever_lies_there(tmp_path):
    for step in (100, 147, 200):
        (tmp_path / f"step_{step}").mkdir()
    assert [path.name for path in superfluous(tmp_path, 147, 1, 0)] == ["step_100"]


def test_what_comes_after_the_resumed_checkpoint_is_set_aside_not_lost(tmp_path, capsys):
    for step in (2, 4, 6):
        write(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n')
    checkpoint.load(str(tmp_path), 2, SimpleNamespace(load=lambda folder, reshape: None))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "discarded_metrics.jsonl", "discarded_step_4", "discarded_step_6", "latest", "step_2"]
    assert (folder / "latest").read_text() == "step_2\n" and damage(folder / "discarded_step_6", True) is None
    assert (folder / "discarded_metrics.jsonl").read_text() == '{"step": 6}\n'
    assert "discarded_step_4, discarded_step_6" in capsys.readouterr().out
    refused(tmp_path, "step_4: there is no such checkpoint; the newest other one is step_2", resume_step=4)
    write(tmp_path, 4)
    checkpoint.load(str(tmp_path), 2, SimpleNamespace(load=lambda folder, reshape: None))
    assert not (folder / "step_4").exists() and (folder / "discarded_step_6").exists()


def test_a_checkpoint_is_loaded_in_a_phase_of_its_own(tmp_path):
    """In which a lack of memory is told."""
    phases = []

    class Recorder:
        def load(self, _folder, _reshape) -> None:
            phases.append(watchdog.current_phase())

    (tmp_path / "checkpoints").mkdir()
    checkpoint.load(str(tmp_path), 2, Recorder())
    assert phases == ["loading a checkpoint"]


@pytest.mark.slow
def test_a_run_that_went_back_keeps_the_checkpoints_it_writes(tmp_path, base_model, countdown_data):
    """--resume_step with --keep_last: first beside healthy later ones, then beside one that is damaged."""
    flags = {
        "model": base_model, "data": countdown_data, "output_dir": tmp_path, "eval_problems": 2, "prompts_per_step": 4,
        "mini_batch_prompts": 4, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8, "zero_stage": 0,
    }
    again = {"resume": True, "allow_changes": True, "save_every": 1}

    def runs(*own: dict) -> None:
        succeed(start_in_turn([("training/sft.py", flags | one) for one in own]))

    runs({"total_steps": 6, "save_every": 2}, again | {"resume_step": 2, "keep_last": 2, "total_steps": 4})
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("step_*")) == ["step_3", "step_4"]
    (folder / "step_4" / WEIGHTS).write_text("torn")
    run = json.loads((folder / "step_4" / "manifest.json").read_text())["run"]
    refused(tmp_path, "the newest other one is step_3, resume it with --resume_step 3", run=run)
    runs(again | {"resume_step": 3, "keep_last": 1, "total_steps": 4}, again | {"keep_last": 1, "total_steps": 5})
    assert [path.name for path in folder.glob("step_*")] == ["step_5"]
    assert [line["step"] for line in training_lines(tmp_path)] == [1, 2, 3, 4, 5]


# ----- the manifest -----


@pytest.mark.slow
def test_every_rank_tells_of_its_own_files_which_the_first_may_not_see_yet(tmp_path):
    stages = ["stage0", "stage1", "stage2", "stage3", "bfloat16-stage0", "bfloat16-stage2", "bfloat16-stage3"]
    succeed(launch_words("tests/workers/manifest_worker.py", [str(tmp_path), *stages], num_processes=2))
    for name in stages:
        folder = tmp_path / name
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert set(files) == {str(path.relative_to(folder)) for path in files_in(folder)}
        assert damage(folder, with_hashes=True) is None
        of_first, of_second = json.loads((tmp_path / f"{name}.json").read_text())["hashed"]
        assert sorted(of_first + of_second) == sorted(path.name for path in files_in(folder))
        assert all("_pp_rank_1_" in one for one in of_second) and bool(of_second) == (not name.endswith("0"))


# ----- one run a folder -----


@pytest.mark.slow
def test_a_folder_is_taken_by_one_run_until_it_ends_however_it_ends(tmp_path):
    code = "import sys, utils.run.output_dir as o; o.lock_output_dir(sys.argv[1]); print('has it', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "has it\n"
    with pytest.raises(BadInput, match=f"another run is writing there, process {other.pid} on "):
        lock_output_dir(str(tmp_path))
    other.kill()
    other.wait()
    lock_output_dir(str(tmp_path))
    checkpoint.clear(str(tmp_path))
    assert (tmp_path / ".lock").exists()


class Trap:
    """What a pickle can do: it names a function, and loading calls it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_states_are_loaded_without_running_what_a_file_names(tmp_path, monkeypatch):
    file, sprung = tmp_path / "states.pt", tmp_path / "sprung"
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    torch.save({"step": torch.ones(2), "trap": Trap(sprung)}, file)
    with weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)  # as DeepSpeed calls it
    assert not sprung.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.load(file, weights_only=False)
    assert sprung.exists()  # else this would show nothing


@pytest.mark.slow
def test_runs_are_resumed_at_the_other_stages_too(tmp_path, base_model, countdown_data):
    """Stage 3 and exactness: tests/scripts/test_training.py. Other stages have other files."""
    flags = {
        "model": base_model, "data": countdown_data, "eval_problems": 2, "prompts_per_step": 4,
        "mini_batch_prompts": 4, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8,
    }
    for own in ({"total_steps": 1}, {"total_steps": 2, "resume": True, "allow_changes": True}):  # a process each
        succeed(start_in_turn([
            ("training/sft.py", flags | own | {"zero_stage": stage, "output_dir": tmp_path / str(stage)})
            for stage in (0, 1, 2)]))
    for stage in (0, 1, 2):
        assert [line["step"] for line in training_lines(tmp_path / str(stage))] == [1, 2]
