"""The record of the comparison: what tables and figures are made of comes back from it."""

import json
from statistics import fmean

import pytest

from launch_scripts import compare_tiny_record
from launch_scripts.compare_tiny_record import read_record, restore, save
from utils import ROOT
from utils.report import over_seeds
from utils.report.comparison import mean_curve
from utils.report.cost import Tokens, tokens_of
from utils.report.record import row_of
from utils.report.runs import ACCURACY, read_metrics

OURS = compare_tiny_record.RECORD
TASKS = {"countdown": "countdown", "search tree, depth 6": "tree6", "sudoku, 320 solutions": "sudoku"}


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_tiny_record, "RECORD", tmp_path / "record.jsonl")
    return tmp_path / "record.jsonl"


def trained(run, model, accuracies, seed=0):
    """A complete run of 2 steps between evaluations; step s samples 100 s tokens."""
    run.mkdir(parents=True)
    lines = [{"step": 0, "eval/accuracy": accuracies[0], "eval/n": 64, "eval/length": 5.0}]
    for i, accuracy in enumerate(accuracies[1:]):
        for step in (2 * i + 1, 2 * i + 2):
            lines.append({"step": step, "loss": 1 / 3, "time/update": 2.0, "hint_slices": 5.0 - step,
                          "state_grad_norm/hint": 0.5, "tokens/sampled": 100 * step, "tokens/response": 90 * step,
                          "tokens/hint": 7, "tokens/demonstration": 0})
        lines.append({"step": 2 * i + 2, "eval/accuracy": accuracy, "eval/n": 64})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = {"model": str(model), "data": str(run.parent / "data"), "seed": seed, "lr": 1e-4, "kl_coef": 0.0,
            "eval_problems": 0, "output_dir": str(run), "page": True}
    (run / "args.json").write_text(json.dumps(args))
    command = ["uft.py", "--model", "m", "--data", "d", "--seed", "0", "--lr", "1e-4", "--output_dir", "o"]
    environment = {"command": command, "git": {"commit": "abc"}, "hardware": {"cpu": "a processor"}}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "curves.png").touch()
    return run


def experiment(root):
    folder = root / "sudoku"
    return [trained(folder / "uft_seed0", folder / "base", [0.25, 0.5, 0.75]),
            trained(folder / "uft_seed1", folder / "base", [0.25, 0.5, 0.5], seed=1),
            trained(folder / "sft_rft_seed0", folder / "uft_seed0/checkpoints/step_2/hf", [0.5, 0.625])]


def test_reports_say_the_same_of_runs_and_of_folders_made_of_their_record(tmp_path):
    runs = experiment(tmp_path / "here")
    save(tmp_path / "here")
    restore(tmp_path / "there")
    restored = [tmp_path / "there" / run.relative_to(tmp_path / "here") for run in runs]
    assert tokens_of(restored[0]) == tokens_of(runs[0]) == Tokens(1000, 900, 28, 0)
    # Its own two steps, and those of the first run as far as it went on from them.
    assert tokens_of(restored[2]) == tokens_of(runs[2]) == Tokens(600, 540, 28, 0)
    assert [row_of(run) for run in restored] == [row_of(run) for run in runs]
    assert over_seeds.report(restored, ["uft"]) == over_seeds.report(runs, ["uft"])
    steps, mean, _, _ = mean_curve([read_metrics(run) for run in restored[:2]], "hint_slices")
    assert (steps, mean) == ([2, 4], [3.0, 1.0])
    assert all((run / "restored").read_text() == "at abc on a processor\n" for run in restored)


def test_the_record_has_the_flags_that_were_given_and_no_path_of_this_machine(tmp_path):
    experiment(tmp_path / "here")
    save(tmp_path / "here")
    assert read_record()["sudoku/uft_seed0"]["args"] == {
        "model": "sudoku/base", "data": "sudoku/data", "seed": 0, "lr": 1e-4, "eval_problems": 0}
    assert str(tmp_path) not in compare_tiny_record.RECORD.read_text()


def test_saving_adds_complete_runs_and_leaves_others(tmp_path):
    uft, _, cut = experiment(tmp_path / "first")
    (cut / "curves.png").unlink()
    trained(tmp_path / "first/sudoku/tuning/uft_0", tmp_path / "first/sudoku/base", [0.1, 0.2])
    save(tmp_path / "first")
    assert list(read_record()) == ["sudoku/uft_seed0", "sudoku/uft_seed1"]
    again = trained(tmp_path / "second/sudoku/uft_seed1", tmp_path / "second/sudoku/base", [0.25, 1.0], seed=1)
    save(tmp_path / "second")
    assert list(read_record()) == ["sudoku/uft_seed0", "sudoku/uft_seed1"]
    assert read_record()["sudoku/uft_seed1"]["lines"][-1]["eval/accuracy"] == 1.0
    restore(tmp_path / "second")
    assert not (again / "restored").exists()  # a run that is there stays as it is
    assert (tmp_path / "second/sudoku/uft_seed0/restored").exists()
    save(tmp_path / "second")  # a folder made of the record is no run
    assert read_record()["sudoku/uft_seed0"]["args"]["lr"] == 1e-4


def test_the_readmes_table_says_what_the_record_says():
    """Means over seeds of the last evaluations, in whole percents."""
    finals = {}
    for record in map(json.loads, OURS.read_text(encoding="utf-8").splitlines()):
        method = record["run"].rsplit("_seed", 1)[0]
        evaluations = [line[ACCURACY] for line in record["lines"] if ACCURACY in line]
        finals.setdefault(method, []).append(evaluations[-1])
        if method.endswith("/rft"):  # begins with the base
            finals[f"{method.removesuffix('rft')}base"] = [evaluations[0]]
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    header = next(line for line in lines if line.startswith("| | base | sft | rft |"))
    for name, task in TASKS.items():
        row = next(line for line in lines if line.startswith(f"| {name} |"))
        told = dict(zip(header.split("|")[2:-1], row.split("|")[2:-1], strict=True))
        assert {method.strip(): number.strip(" *") for method, number in told.items()} == {
            method.strip(): f"{100 * fmean(finals[f'{task}/{method.strip()}']):.0f}" for method in told}
