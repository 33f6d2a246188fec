"""What the page shows, by hand; and files that are still being written."""

import json
import time

import pytest

from utils.report import page_data as module
from utils.report.page_data import accuracy_by_slices, curves, health_notes, page_data, phases
from utils.report.runs import wilson_interval
from utils.run.doctor import diagnoses


def write(folder, metrics, samples=(), **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics", metrics), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def of_one(folder):
    [run] = page_data([folder])["runs"]
    return run


def test_a_run_is_told_with_its_facts_and_evaluations(tmp_path):
    start = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time.time() - 120))
    hardware = {"cpu": "a CPU", "cores": 2, "memory_gib": 23.5, "gpus": [{"name": "H", "memory_gib": 80.0}]}
    known = {"date": start, "command": ["training/uft.py", "--model", "my model"], "world_size": 2,
             "versions": {"torch": "2.13"}, "hardware": hardware, "git": {"commit": "0123456789abcdef", "dirty": True}}
    lines = [{"step": 0, "eval/accuracy": 0.5, "eval/n": 10}, {"step": 1, "loss": 2.0},
             {"step": 1, "eval/accuracy": 0.8}]
    run = of_one(write(tmp_path / "mine", lines, args={"model": "m", "data": "d/tree/data", "total_steps": 9},
                       environment=known))
    assert run["name"] == run["group"] == "mine" and (run["steps"], run["total_steps"]) == (1, 9)
    assert run["command"] == "training/uft.py --model 'my model'" and run["script"] == "uft" and run["data"] == "tree"
    assert run["commit"] == "0123456789ab with changes" and run["processes"] == "2 processes"
    assert run["hardware"] == "H, 80 GiB; a CPU, 2 cores, 23.5 GiB" and run["versions"] == "torch 2.13"
    assert 118 < run["seconds"] < 180
    first, second = run["evaluations"]
    assert (first["low"], first["high"]) == wilson_interval(5, 10) and (second["low"], second["high"]) == (None, None)


def test_a_run_that_is_being_written_or_has_not_begun(tmp_path):
    (tmp_path / "new").mkdir()
    run = of_one(tmp_path / "new")
    assert run["curves"] == {} and run["evaluations"] == run["samples"] == run["notes"] == [] and run["steps"] == 0
    folder = write(tmp_path / "run", [{"step": 1, "loss": 1.0}], [{"step": 1, "response": "whole"}])
    for name in ("metrics", "samples"):
        with (folder / f"{name}.jsonl").open("ab") as file:
            file.write('{"step": 2, "response": "é'.encode()[:-1])
    run = of_one(folder)
    assert run["curves"]["step"] == [1] and [one["response"] for one in run["samples"]] == ["whole"]


def test_runs_of_one_name_are_told_apart_and_seeds_share_a_group(tmp_path):
    runs = [write(tmp_path / name, []) for name in ("a/x_seed0", "a/x_seed1", "b/x_seed0")]
    told = [(run["name"], run["group"]) for run in page_data([*runs, runs[0]])["runs"]]
    assert told == [("a/x_seed0", "a/x"), ("x_seed1", "a/x"), ("b/x_seed0", "b/x")]


def test_curves_have_gaps_and_long_ones_are_means_of_spans(monkeypatch):
    lines = [{"step": step, "loss": step / 3, "kl_loss": None if step == 2 else 1.0, "rollouts/slices_0": 4}
             for step in range(1, 5)]
    assert curves(lines) == {"step": [1, 2, 3, 4], "loss": [0.33333, 0.66667, 1.0, 1.3333], "kl_loss": [1, None, 1, 1]}
    monkeypatch.setattr(module, "MOST_POINTS", 2)
    assert curves(lines) == {"step": [2, 4], "loss": [0.5, 1.1667], "kl_loss": [1, 1]}
    assert curves([]) == {}


def test_accuracy_by_slices_is_pooled_by_the_number_of_responses(monkeypatch):
    lines = [{"step": 1, "accuracy/slices_0": 0.5, "rollouts/slices_0": 4, "accuracy/slices_3": 1.0,
              "rollouts/slices_3": 2}, {"step": 2, "accuracy/slices_0": 0.0, "rollouts/slices_0": 12}]
    monkeypatch.setattr(module, "SPANS", 2)
    none, three = accuracy_by_slices(lines)
    low, high = wilson_interval(2, 16)
    assert none["slices"] == 0 and none["all"] == {"from": 1, "to": 2, "accuracy": 0.125, "n": 16, "low": low,
                                                   "high": high}
    assert [(span["from"], span["accuracy"], span["n"]) for span in none["spans"]] == [(1, 0.5, 4), (2, 0.0, 12)]
    assert three["slices"] == 3 and [(span["from"], span["n"]) for span in three["spans"]] == [(1, 2)]


@pytest.mark.parametrize(("share_prefix", "trained"), [(True, 2 * (10 + 5) + 8 * 7), (False, 8 * (10 + 5) + 8 * 7)])
def test_phases_and_their_tokens(share_prefix, trained):
    lines = [{"prompt_tokens": 6, "hint_tokens": 5, "response_tokens": 4, "seconds/rollout": 1.5, "seconds/reward": 1.0,
              "seconds/update": 3.0, "seconds/sync": 0.0},
             {"prompt_tokens": 4, "hint_tokens": 0, "response_tokens": 3, "seconds/rollout": 0.5,
              "seconds/update": None}]
    flags = {"prompts_per_step": 2, "group_size": 4, "share_prefix": share_prefix}
    assert [tuple(phase.values()) for phase in phases(lines, flags)] == [
        ("rollout", 2.0, "tokens sampled", 8 * 7), ("reward", 1.0, "responses verified", 16),
        ("update", 3.0, "tokens forward and backward", trained)]


def test_health_notes_are_the_doctors_and_say_once_what_differs_in_numbers_only():
    flat = {"loss": 0.1, "flat_groups": 0.95, "accuracy": 0.97, "format": 1.0, "truncated": 0.0}
    lines = [{"step": step, **flat, "skipped_updates": 2 * (step in (3, 7))} for step in range(1, 400)]
    lines[6]["skipped_updates"] = 5
    [skipped] = [note for note in health_notes(lines) if "updates were skipped" in note["text"]]
    assert skipped["text"].startswith("5 updates")
    assert (skipped["first"], skipped["last"], skipped["count"]) == (3, 7, 2)
    [doctors] = [note for note in health_notes(lines) if note != skipped]
    said = diagnoses(lines)
    assert doctors["text"] == said[-1][1] and (doctors["first"], doctors["count"]) == (said[0][0], len(said)) and said



def test_the_newest_samples_are_shown_and_long_texts_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLES", 2)
    monkeypatch.setattr(module, "MOST_CHARACTERS", 3)
    folder = write(tmp_path, [], [{"step": step, "response": "abcdef"[: step + 1]} for step in range(1, 5)])
    assert [(one["step"], one["response"], one["hint"]) for one in of_one(folder)["samples"]] == [
        (3, "abc [1 more characters]", ""), (4, "abc [2 more characters]", "")]
