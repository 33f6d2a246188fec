"""The comparison of all methods: what compare_tiny.sh runs, in which order, and that each method is tuned alike."""

import json
import shutil
from dataclasses import asdict

import pytest
import tyro

from launch_scripts import compare_tiny
from launch_scripts.compare_tiny import METHODS, SIZES, SWEEPS, TASKS, list_for_tables, list_runs
from tests.scripts.test_launch_scripts import SCRIPTS

ENDS = (0.2, 0.5, 0.5, 0.1)  # of the four tuning runs: the second is the first of the best


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Tuned here, nothing kept of earlier tuning."""
    monkeypatch.setattr(compare_tiny, "KEPT", tmp_path / "kept.json")
    (tmp_path / "kept.json").write_text("{}")
    for task in TASKS:
        for name in METHODS:
            for i, accuracy in enumerate(ENDS):
                evaluated(tmp_path / task / "tuning" / f"{name}_{i}", accuracy)
    return tmp_path


def evaluated(run, accuracy):
    run.mkdir(parents=True)
    lines = [{"step": 0, "eval/accuracy": 0.9, "eval/n": 8}, {"step": 80, "eval/accuracy": accuracy, "eval/n": 8}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def words(run):
    return run.line().split()


def parsed(run):
    folder, script, *flags = words(run)
    args = tyro.cli(SCRIPTS[script].Args, args=[*flags, "--output_dir", folder], config=(tyro.conf.FlagCreatePairsOff,),
                    use_underscores=True)
    return asdict(args)


@pytest.mark.parametrize("stage", ["tune", "compare", "sweep", "models"])
def test_every_line_is_a_command_that_its_script_takes(root, stage):
    runs = [run for part in (1, 2) for run in list_runs(root, stage, part, list(TASKS), [0, 1])]
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        flags = parsed(run)
        assert flags["prompts_per_step"] % flags["mini_batch_prompts"] == 0
        assert all(flags[name] == type(flags[name])(value) for name, value in run.flags.items())
        assert "steps" not in run.line().replace("total_steps", "").replace("hint_steps", "")


def test_each_method_is_tuned_over_four_settings_that_differ(root):
    for task in TASKS:
        for name, method in METHODS.items():
            tried = compare_tiny.settings(method, TASKS[task])
            assert len(tried) == 4 and len({json.dumps(one) for one in tried}) == 4
            assert len({one["lr"] for one in tried}) == (2 if method.own else 4)
            runs = compare_tiny.tuning(root, task, name)
            assert [run.flags["lr"] for run in runs] == [one["lr"] for one in tried]
            assert {run.flags["seed"] for run in runs} == {compare_tiny.TUNING_SEED}
            assert {run.flags["data"] for run in runs} == {root / task / "tuning_data"}  # the test split is not seen


def test_the_best_last_evaluation_decides(root):
    for name in METHODS:
        assert compare_tiny.tuning_outcome(root, "sudoku", name) == (
            compare_tiny.settings(METHODS[name], TASKS["sudoku"])[1], list(ENDS))
    assert "rft | lr: 0.0002 (0.200, 0.500, 0.500, 0.100)" in compare_tiny.tuning_table(root, ["sudoku"])


def test_sft_rft_comes_after_sft_and_costs_as_much_as_rft(root):
    """Passes per step and prompt: SFT 3 for a demonstration, RFT 4 for each of 4 samples: 80 SFT steps, 15 of RFT."""
    first, second = (list_runs(root, "compare", part, ["countdown"], [1]) for part in (1, 2))
    assert {run.folder.name for run in first} == {f"{name}_seed1" for name in METHODS if name != "sft_rft"}
    [run] = second
    assert run.script == "rft" and run.flags["model"] == root / "countdown" / "sft_seed1/checkpoints/step_80/hf"
    assert 3 * 80 + 16 * run.flags["total_steps"] <= 16 * 80 < 3 * 80 + 16 * (run.flags["total_steps"] + 4)
    tuning = list_runs(root, "tune", 2, ["countdown"], [0])
    assert [run.folder.name for run in tuning] == [f"sft_rft_{i}" for i in range(4)]
    assert {run.flags["model"] for run in tuning} == {root / "countdown/tuning/sft_1/checkpoints/step_80/hf"}


def test_a_sweep_changes_one_flag_and_leaves_out_what_the_comparison_has(root):
    runs = {run.folder.name: run for run in list_runs(root, "sweep", 1, ["sudoku"], [0])}
    compared = {run.folder.name: run for run in list_runs(root, "compare", 1, ["sudoku"], [0])}
    missing = {name for name in SWEEPS if f"{name}_seed0" not in runs}
    for name in missing:
        method, flags = SWEEPS[name]
        same = compared[f"{method}_seed0"].flags
        assert all(same[key] == value for key, value in flags.items())
    assert missing == {"prefix_top", "uft_sft_coef_0.001"}  # ENDS chose these
    for name, run in runs.items():
        method, flags = SWEEPS[name.removesuffix("_seed0")]
        differing = {key for key, value in run.flags.items() if compared[f"{method}_seed0"].flags.get(key) != value}
        assert differing == set(flags)
    assert runs["uft_hint_steps_0.25_seed0"].flags["hint_steps"] == 20


def test_other_models_have_their_own_sft_to_go_on_from(root):
    [run] = [run for run in list_runs(root, "models", 2, ["countdown"], [1]) if run.folder.parent.name == "small"]
    assert run.folder.name == "sft_rft_seed1"
    assert run.flags["model"] == root / "countdown/small/sft_seed1/checkpoints/step_80/hf"
    assert {run.flags["model"] for run in list_runs(root, "models", 1, ["countdown"], [0])} == \
        {root / "countdown" / f"base_{size}" for size in SIZES}


def test_tables_are_of_all_runs_the_seeds_of_a_method_together(root):
    listed = list_for_tables(root, "compare", list(TASKS), [0, 1])
    assert [run.folder.name for run in listed[:4]] == ["sft_seed0", "sft_seed1"] * 2
    assert {run.folder for run in listed} == {run.folder for part in (1, 2)
                                              for run in list_runs(root, "compare", part, list(TASKS), [0, 1])}
    models = {run.folder.parent.name for run in list_for_tables(root, "models", ["countdown"], [0])}
    assert models == {"small", "middle", "countdown"}
    sweeps = {run.folder.name for run in list_for_tables(root, "sweep", ["sudoku"], [0])}
    assert {"uft_seed0", "prefix_rft_seed0", "uft_sft_coef_1_seed0"} <= sweeps


def test_a_run_that_is_missing_is_named(root):
    shutil.rmtree(root / "sudoku" / "tuning" / "rft_3")
    with pytest.raises((FileNotFoundError, ValueError), match="rft_3"):
        compare_tiny.tuning_outcome(root, "sudoku", "rft")


def test_a_method_whose_tuning_is_kept_is_not_tuned_again(root):
    for task in TASKS:
        for name in METHODS:
            for i in range(4):
                (root / task / "tuning" / f"{name}_{i}" / "curves.png").touch()
    before = list_runs(root, "compare", 1, list(TASKS), [0])
    (root / "sudoku" / "tuning" / "hpt_3" / "curves.png").unlink()
    compare_tiny.keep(root, ["sudoku"])
    kept = json.loads(compare_tiny.KEPT.read_text())
    assert list(kept) == ["sudoku"] and list(kept["sudoku"]) == [name for name in METHODS if name != "hpt"]
    assert kept["sudoku"]["rft"] == {"flags": {"lr": 2e-4}, "accuracies": list(ENDS)}
    left = list_runs(root, "tune", 1, ["sudoku"], [0])
    assert [run.folder.name for run in left] == [f"hpt_{i}" for i in range(4)]
    shutil.rmtree(root / "sudoku" / "tuning" / "rft_3")  # what is kept needs no run
    assert list_runs(root, "compare", 1, list(TASKS), [0]) == before
    del kept["sudoku"]["sft_rft"]
    compare_tiny.KEPT.write_text(json.dumps(kept))
    left = list_runs(root, "tune", 1, ["sudoku"], [0])
    assert {run.folder.name[:-2] for run in left} == {"sft", "hpt"}  # sft_rft begins with its runs


def test_what_is_kept_was_chosen_from_what_is_tried_now():
    for task, methods in compare_tiny.read_kept().items():
        for name, kept in methods.items():
            tried = compare_tiny.settings(METHODS[name], TASKS[task])
            best = max(kept["accuracies"])
            assert kept["accuracies"][tried.index(kept["flags"])] == best and len(kept["accuracies"]) == 4
