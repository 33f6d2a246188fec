"""Intervals over seeds, differences in pairs, and what methods have cost: numbers worked by hand."""

import csv
import json

import pytest

from tests.helpers.experiment import write_run
from tests.report.test_comparison import rows_of
from utils.report import __main__ as report_command
from utils.report import over_seeds
from utils.report.cost import Tokens, tokens_of
from utils.report.lineage import goes_on_from, lineage, origin, seed_of
from utils.report.methods import by_task_and_model
from utils.report.student import (
    interval_over_seeds,
    p_value,
    probability_within,
    quantile_95,
    stand_together,
)

RFT = {"sampled": 1000, "response": 1000, "hint": 0, "demonstration": 0}
SFT = {"response": 0, "hint": 400, "demonstration": 0}  # its demonstrations are hints, and it samples nothing


@pytest.fixture
def runs(tmp_path):
    """sft, rft and sft_rft of three seeds; what sft_rft began with, sft had after 20 of its 30 steps."""
    base, found = tmp_path / "base", []
    for seed, (sft, rft, both) in enumerate([(0.40, 0.20, 0.70), (0.50, 0.40, 0.90), (0.60, 0.60, 0.80)]):
        folder = write_run(tmp_path / f"sft_seed{seed}", base, [0.1, 0.2, 0.3, sft], seed, **SFT)
        found += [folder, write_run(tmp_path / f"rft_seed{seed}", base, [0.1, 0.2, rft], seed, **RFT)]
        later = folder / "checkpoints" / "step_20" / "hf"
        found.append(write_run(tmp_path / f"sft_rft_seed{seed}", later, [0.3, both], seed, **RFT))
    return found


# ----- Student's t -----


@pytest.mark.parametrize(("df", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622),
                                       (10, 2.2281), (29, 2.0452), (30, 2.0423), (120, 1.9799)])
def test_quantiles_are_those_of_the_tables(df, t):
    assert quantile_95(df) == pytest.approx(t, abs=5e-5)


def test_probabilities_of_angles_with_known_sines():
    """t = sqrt(df) is 45 degrees: 1/2; sqrt(1/2); 1/2 + 1/pi; sqrt(1/2) (1 + 1/4); 1/2 + (1 + 2/3 / 2) / pi."""
    assert [probability_within(df**0.5, df) for df in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.5, 0.70711, 0.81831, 0.88388, 0.92441], abs=1e-5)


def test_an_interval_over_seeds_by_hand():
    """Mean .5, s .1, three seeds: 4.30265 * .1 / sqrt(3) = .24842 to both sides; of s .3 it is cut at 0 and 1."""
    assert interval_over_seeds([0.4, 0.5, 0.6], 0, 1) == pytest.approx((0.25158, 0.74842), abs=1e-5)
    assert interval_over_seeds([0.2, 0.5, 0.8], 0, 1) == (0, 1)
    assert interval_over_seeds([0.2, 0.4], 0, 1) == pytest.approx((0, 1))  # 12.7 * .1 to both sides
    with pytest.raises(ValueError, match="two or more"):
        interval_over_seeds([0.5], 0, 1)


def test_p_values_and_what_holm_leaves_of_them():
    """t = .2 / (.1 / sqrt(3)) = 2 sqrt(3); with two degrees of freedom P = t / sqrt(t^2 + 2) = sqrt(12 / 14)."""
    assert p_value([0.1, 0.2, 0.3]) == p_value([-0.1, -0.2, -0.3]) == pytest.approx(1 - (12 / 14) ** 0.5)
    assert stand_together([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # .03 is over .05 / 2
    assert stand_together([0.03, 0.01, 0.02]) == [True, True, True]
    assert stand_together([0.03, 0.03]) == [False, False] and stand_together([]) == []


# ----- lineage and cost -----


def test_a_run_descends_from_the_model_that_the_first_run_began_with(runs, tmp_path, monkeypatch):
    both = tmp_path / "sft_rft_seed1"
    assert goes_on_from(both) == (tmp_path / "sft_seed1", 20) and goes_on_from(tmp_path / "rft_seed1") is None
    assert [folder.name for folder, _ in lineage(both)] == ["sft_rft_seed1", "sft_seed1"]
    assert {origin(run) for run in runs} == {tmp_path / "base"}
    exported = write_run(tmp_path / "third", both / "export_step_10", [0.5])
    assert [step for _, step in lineage(exported)][1:] == [10, 20] and origin(exported) == tmp_path / "base"
    monkeypatch.chdir(tmp_path)
    assert origin(write_run(tmp_path / "relative", "sft_seed0/checkpoints/step_30/hf", [0.5])) == tmp_path / "base"
    assert str(origin(write_run(tmp_path / "of the hub", "Qwen/Qwen2.5-3B", [0.5]))) == "Qwen/Qwen2.5-3B"
    own = write_run(tmp_path / "own", tmp_path / "own" / "checkpoints" / "step_10" / "hf", [0.5])
    assert len(lineage(own)) == 1


def test_tokens_by_hand(runs, tmp_path):
    """A hint counts where a loss has it; what is sampled and not trained costs a quarter of what is."""
    assert tokens_of(tmp_path / "rft_seed0") == Tokens(sampled=2000, response=2000)
    assert tokens_of(tmp_path / "rft_seed0").forward_passes == 4 * 2000
    assert tokens_of(tmp_path / "sft_seed0") == Tokens(demonstration=1200)
    assert tokens_of(tmp_path / "sft_seed0").forward_passes == 3 * 1200
    assert tokens_of(tmp_path / "sft_rft_seed0") == Tokens(1000, 1000, 0, 800)  # two of sft's three lines
    mixed = {"sampled": 900, "response": 300, "hint": 50, "demonstration": 70}
    for name, more, hints in (("r3", {"state_grad_norm/hint": 0.0}, 0), ("uft", {"state_grad_norm/hint": 0.1}, 100)):
        run = write_run(tmp_path / name, tmp_path / "base", [0, 0, 0], **mixed, **more)
        assert tokens_of(run) == Tokens(1800, 600, hints, 140)
        assert tokens_of(run).forward_passes == 1800 + 3 * (600 + hints + 140)
    assert tokens_of(write_run(tmp_path / "old", tmp_path / "base", [0, 0])) is None
    assert tokens_of(write_run(tmp_path / "later", tmp_path / "old" / "checkpoints" / "step_10" / "hf", [0, 0], **RFT)
                     ) is None


def test_seeds_are_told_by_the_flag_then_by_the_name(tmp_path):
    run = write_run(tmp_path / "uft_seed3", "m", [0.5], seed=7)
    assert seed_of(run) == 7
    args = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps({name: args[name] for name in args if name != "seed"}))
    assert seed_of(run) == 3


# ----- tables -----


def test_methods_have_intervals_over_seeds_and_costs(runs, tmp_path):
    """rft: .2 .4 .6, mean .4, 4.30265 * .2 / sqrt(3) = .49683. sft: 3 lines of 400 tokens. sft_rft: 1000, and 2 of
    those lines."""
    [methods] = by_task_and_model(runs)["words"].values()
    rows = rows_of(over_seeds.methods_table(methods, against="rft", constant=0.07))
    assert rows["base"][:3] == ["", "0", "10.0%"] and rows["best constant pattern"][2] == "7.0%"
    assert rows["sft"] == ["3", "30", "50.0%", "25.2% to 74.8%", "0", "0", "0", "1", "4", "0.45"]
    assert rows["rft"] == ["3", "20", "40.0%", "0.0% to 89.7%", "2", "2", "0", "0", "8", "1.00"]
    assert rows["sft_rft"] == ["3", "10", "80.0%", "55.2% to 100.0%", "1", "1", "0", "1", "6", "0.80"]
    old = {"old": {0: write_run(tmp_path / "old", tmp_path / "base", [0.1, 0.2])}} | methods
    rows = rows_of(over_seeds.methods_table(old))
    assert rows["old"] == ["1", "10", "20.0%", "one seed", "", "", "", "", ""] and len(rows["sft"]) == 9
    same = {seed: write_run(tmp_path / f"same_seed{seed}", "m", [1.0], seed) for seed in range(2)}
    assert rows_of(over_seeds.methods_table({"same": same}))["same"][3] == "all alike"


def test_tasks_stand_beside_each_other_the_best_mean_first(runs, tmp_path):
    """sft costs 3.6 of rft's 8 on the one and 1.2 of 4 on the other, mean .375. What one lacks has no mean, and is
    last."""
    [methods] = by_task_and_model(runs)["words"].values()
    other = {name: {0: write_run(tmp_path / "other" / f"{name}_seed0", tmp_path / "base", [0.2, final], **tokens)}
             for name, final, tokens in (("rft", 0.9, RFT), ("sft", 0.2, SFT))}
    overview = over_seeds.tasks_table({"words": methods, "numbers": other}, "rft")
    assert overview.splitlines()[0] == "| final accuracy | words | numbers | mean of these | cost / rft |"
    assert list(rows_of(overview).items()) == [
        ("rft", ["40.0% (20 to 60)", "90.0%", "65.0%", "1.00"]),
        ("sft", ["50.0% (40 to 60)", "20.0%", "35.0%", "0.38"]),
        ("sft_rft", ["80.0% (70 to 90)", "", "", ""]), ("base", ["10.0%", "20.0%", "", ""])]
    assert over_seeds.tasks_table({"words": methods, "numbers": other}).splitlines()[0].endswith("| mean of these |")
    assert "mean of these" not in over_seeds.report(runs, [])


def test_differences_are_paired_by_seed(runs):
    """sft less rft: .2 .1 0, mean .1, s .1; 4.30265 * .1 / sqrt(3) = .24842. sft_rft less sft: .3 .4 .2."""
    [methods] = by_task_and_model(runs)["words"].values()
    table = over_seeds.differences_table(methods, [])
    assert table.startswith("| less that of (3 comparisons) | sft | rft |")
    assert rows_of(table) == {
        "rft": ["-10.0 (-34.8 to +14.8)", ""],
        "sft_rft": ["+30.0 (+5.2 to +54.8) *", "+40.0 (-3.0 to +83.0)"],
    }
    shuffled = {"rft": dict(reversed(methods["rft"].items())), "sft": methods["sft"]}
    assert rows_of(over_seeds.differences_table(shuffled, ["rft"])) == {
        "rft": [""], "sft": ["+10.0 (-14.8 to +34.8)"]}


def test_marks_are_of_all_comparisons_and_not_of_seeds_without_a_spread(tmp_path):
    """a, b and c differ from the first by .5 -+ .0001, exactly, and in the one seed that both have."""
    finals = {"first": [0.1, 0.1, 0.1], "a": [0.6, 0.6001, 0.5999], "b": [0.6] * 3, "c": [0.6]}
    methods = {name: {seed: write_run(tmp_path / f"{name}_seed{seed}", "m", [final], seed)
                      for seed, final in enumerate(of_name)} for name, of_name in finals.items()}
    assert [cells[0] for cells in rows_of(over_seeds.differences_table(methods, ["first"])).values()] == [
        "", "+50.0 (+50.0 to +50.0) **", "+50.0 (all seeds)", "+50.0 (one seed)"]
    other = {"first": methods["first"], "d": {5: write_run(tmp_path / "d_seed5", "m", [0.5], 5)}}
    assert rows_of(over_seeds.differences_table(other, []))["d"] == ["no seed of both"]


def test_two_runs_of_one_seed_are_refused(tmp_path):
    runs = [write_run(tmp_path / f"uft_seed{number}", "m", [0.5, 0.6], seed=0) for number in range(2)]
    with pytest.raises(SystemExit, match="uft_seed0 and .*uft_seed1 both have --seed 0"):
        report_command.main(report_command.Args(tuple(runs), over_seeds=True))
    assert by_task_and_model([runs[0], runs[0]])["words"]["m"] == {"uft": {0: runs[0]}}


def test_the_command_prints_the_tables_and_writes_the_record(runs, tmp_path, capsys):
    args = report_command.Args(tuple(runs), over_seeds=True, against=("rft",), csv=tmp_path / "all.csv",
                               figure=tmp_path / "figure.png")
    report_command.main(args)
    printed = capsys.readouterr().out
    assert "| cost / rft |" in printed and "| less that of (2 comparisons) | rft |" in printed
    assert printed.count(over_seeds.ABOUT) == printed.count(over_seeds.ABOUT_DIFFERENCES) == 1
    assert "pooled" not in printed and (tmp_path / "figure.png").is_file()
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 9 and len({(row["method"], row["seed"]) for row in rows}) == 9
    row = next(row for row in rows if (row["method"], row["seed"]) == ("sft_rft", "1"))
    assert row == {
        "task": "words", "model": "base", "method": "sft_rft", "seed": "1", "goes_on_from": "sft_seed1 step 20",
        "step": "10", "final_accuracy": "0.9", "test_problems": "100", "best_accuracy": "0.9", "best_step": "10",
        "sampled_tokens": "1000", "trained_response_tokens": "1000", "trained_hint_tokens": "0",
        "trained_demonstration_tokens": "800", "forward_passes": "6400",
    }


@pytest.mark.parametrize(("flags", "error"), [
    ({"over_seeds": True, "against": ("grpo",)}, "--against grpo: must be one of the methods: sft, rft, sft_rft"),
    ({"against": ("rft",)}, "--against rft: needs --over_seeds"),
])
def test_a_method_that_is_not_there_is_named(runs, flags, error):
    with pytest.raises(SystemExit, match=error):
        report_command.main(report_command.Args(tuple(runs), **flags))
