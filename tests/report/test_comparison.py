"""Runs beside each other: groups, means, tables, figures; and the steps against the depth of the tree."""

import json
from pathlib import Path

import pytest
from PIL import Image

from utils import data
from utils.report import __main__ as report_command
from utils.report import comparison, depths
from utils.report.runs import data_name, distinct_names, group_by_seed
from utils.tasks import tree


def write_run(folder, data_folder, accuracies, hints=2.0, every=10, n=100):
    folder.mkdir(parents=True)
    args = {"data": str(data_folder), "eval_problems": 0, "total_steps": every * (len(accuracies) - 1),
            "prompts_per_step": 32, "group_size": 8}
    (folder / "args.json").write_text(json.dumps(args))
    lines = []
    for i, accuracy in enumerate(accuracies):
        lines.append({"step": i * every, "eval/n": n, "eval/accuracy": accuracy, "eval/format": 1.0,
                      "eval/response_tokens": 9.0})
        lines.append({"step": i * every + 1, "loss": 0.0, "hint_slices": hints})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two methods on two tasks; the second task has data of a tree."""
    tree.build(tmp_path / "tree3" / "data", depth=3, train_problems=32, test_problems=32)
    other = tmp_path / "gone" / "data"
    return [
        write_run(tmp_path / "tree3" / "uft_seed0", tmp_path / "tree3" / "data", [0.0, 0.4, 0.8]),
        write_run(tmp_path / "tree3" / "uft_seed1", tmp_path / "tree3" / "data", [0.0, 0.6, 1.0]),
        write_run(tmp_path / "tree3" / "rft_seed0", tmp_path / "tree3" / "data", [0.0, 0.1, 0.2], hints=0.0),
        write_run(tmp_path / "gone" / "uft_seed0", other, [0.1, 0.2, 0.3]),
    ]


def test_runs_are_told_apart_by_data_and_by_name_without_the_seed(runs, tmp_path):
    assert [data_name(run) for run in runs] == ["tree3", "tree3", "tree3", "gone"]
    assert comparison.by_task(runs) == {"tree3": {"uft": runs[:2], "rft": runs[2:3]}, "gone": {"uft": runs[3:]}}
    assert list(group_by_seed([tmp_path / "a_seed0", tmp_path / "b", tmp_path / "a_seed12"])) == [
        str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_curve_is_mean_least_and_greatest_where_all_runs_have_a_number():
    first = [{"step": 0, "a": 1.0}, {"step": 10, "a": 3.0}, {"step": 20, "a": 5.0}]
    second = [{"step": 0, "a": 2.0}, {"step": 10, "a": None}, {"step": 20, "a": 5.0}, {"step": 30, "a": 9.0}]
    assert comparison.mean_curve([first, second], "a") == ([0, 20], [1.5, 5.0], [1.0, 5.0], [2.0, 5.0])


def test_constant_pattern_is_found_for_built_in_data_too_if_that_is_there(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "BUILT_IN_FOLDER", tmp_path / "built in")
    monkeypatch.setattr(data, "BUILT_IN_FOLDER", tmp_path / "built in")
    run = write_run(tmp_path / "built in run", "tree", [0.0, 0.1])
    assert comparison.constant_accuracy(run) is None and not (tmp_path / "built in").exists()
    tree.build(tmp_path / "built in" / "tree", depth=2, train_problems=12, test_problems=4)
    assert comparison.constant_accuracy(run) == 0.25
    assert comparison.constant_accuracy(runs[0]) is not None and comparison.constant_accuracy(runs[3]) is None


def test_table_has_base_methods_and_constant_pattern_by_task(runs):
    """Pooled: 180 of 200 is .851 to .934 (Wilson); 20 of 100 .133 to .289; 30 of 100 .219 to .396."""
    lines = comparison.comparison_table(runs).splitlines()
    assert lines[0] == "| final accuracy (95 % interval, pooled) | tree3, 1 to 2 seeds | gone, 1 seed |"
    assert lines[2] == "| base | 0.0% (0.0% to 3.7%) | 10.0% (5.5% to 17.4%) |"
    assert lines[3] == "| uft | 90.0% (85.1% to 93.4%) | 30.0% (21.9% to 39.6%) |"
    assert lines[4] == "| rft | 20.0% (13.3% to 28.9%) |  |"
    assert lines[5].startswith("| best constant pattern | ") and lines[5].endswith("% |  |")
    assert len(lines) == 6


def test_figure_has_a_panel_for_each_task_and_names_what_has_no_hints(runs, tmp_path, monkeypatch):
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 900
    tree_axes, gone_axes, tree_hints, gone_hints = figures[0].axes
    assert tree_axes.get_title() == "tree3, 1 to 2 seeds" and gone_axes.get_title() == "gone, 1 seed"
    drawn = {line.get_label(): line for line in tree_axes.lines}
    assert set(drawn) == {"uft", "rft", "base", "best constant pattern"}
    assert list(drawn["uft"].get_ydata()) == [0.0, 0.5, 0.9] and list(drawn["uft"].get_xdata()) == [0, 10, 20]
    assert [line.get_label() for line in tree_hints.lines] == ["uft"]
    assert tree_hints.get_xlabel() == "step (no hints: rft)" and gone_hints.get_xlabel() == "step"
    same = [line.get_color() for axes in (tree_axes, gone_axes, tree_hints) for line in axes.lines
            if line.get_label() == "uft"]
    assert len(set(same)) == 1


def test_hints_of_tokens_are_drawn_as_shares_of_the_solution(runs, tmp_path, monkeypatch):
    """Beside them those of slices too; runs whose hints are counted in tokens are not called runs without hints."""
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    for run, tokens in zip(runs[:3], ({}, {}, {"rollouts/hinted": 8}), strict=True):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line | tokens | {"hint_share": 0.25} if "loss" in line else line for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    _, _, tree_hints, gone_hints = figures[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in tree_hints.lines} == {
        "uft": [0.25] * 3, "rft": [0.25] * 3}
    assert (tree_hints.get_xlabel(), tree_hints.get_ylabel()) == ("step", "share of the solution shown")
    assert gone_hints.get_ylabel() == "slices shown per problem"


def rows_of(markdown):
    """{first cell: the other cells} of a Markdown table without its header."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()[2:]]
    assert len({line[0] for line in lines}) == len(lines), "two rows have one name"
    return {name: cells for name, *cells in lines}


def test_runs_of_one_name_in_different_folders_are_all_there(tmp_path, monkeypatch):
    finals = {"lr1e-6": 0.3, "lr3e-6": 0.7, "lr1e-5": 0.5}
    runs = [write_run(tmp_path / folder / "uft_seed0", tmp_path / "words", [0.1, final])
            for folder, final in finals.items()]
    runs.append(write_run(tmp_path / "rft_seed0", tmp_path / "words", [0.1, 0.2]))
    expected = {"lr1e-6/uft": "30.0%", "lr3e-6/uft": "70.0%", "lr1e-5/uft": "50.0%", "rft": "20.0%"}
    table = rows_of(comparison.comparison_table(runs))
    assert {name: cells[0].split()[0] for name, cells in table.items()} == {"base": "10.0%"} | expected
    assert {name: cells[3] for name, cells in rows_of(comparison.several_runs_table(runs)).items()} == expected
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    drawn = {line.get_label(): line.get_ydata()[-1] for line in figures[0].axes[0].lines}
    assert drawn == {"lr1e-6/uft": 0.3, "lr3e-6/uft": 0.7, "lr1e-5/uft": 0.5, "rft": 0.2, "base": 0.1}


def test_a_name_is_as_long_as_telling_apart_needs():
    paths = [Path(path) for path in ("/a/x/uft", "/b/x/uft", "/c/y/uft", "/a/x/rft", "/uft")]
    assert list(distinct_names(paths).values()) == ["a/x/uft", "b/x/uft", "y/uft", "rft", "/uft"]


def test_data_of_one_name_in_different_folders_are_different_tasks(tmp_path):
    runs = [write_run(tmp_path / "1" / "uft", tmp_path / "easy" / "countdown" / "data", [0.5, 0.9]),
            write_run(tmp_path / "2" / "uft", tmp_path / "hard" / "countdown" / "data", [0.1, 0.2])]
    assert comparison.by_task(runs) == {"easy/countdown": {"uft": runs[:1]}, "hard/countdown": {"uft": runs[1:]}}
    runs = [write_run(tmp_path / "3" / "uft", tmp_path / "all" / "words", [0.5, 0.9]),
            write_run(tmp_path / "4" / "uft", tmp_path / "all" / "data" / "words", [0.1, 0.2])]
    assert comparison.by_task(runs) == {"all/words": {"uft": runs[:1]}, "data/words": {"uft": runs[1:]}}


def test_data_given_by_different_ways_to_one_folder_are_one_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = (tmp_path / "words" / "data", "words/data", "./words/../words/data/")
    runs = [write_run(tmp_path / str(number), folder, [0.1]) for number, folder in enumerate(given)]
    assert list(comparison.by_task(runs)) == ["words"]


@pytest.mark.parametrize(("given", "name"), [
    ("data", "data"), ("./data", "data"), ("data/data", "data"), ("/data", "data"), (".", "."), ("data/words", "words"),
    ("countdown", "countdown"), ("runs/quickstart/data", "quickstart"),
])
def test_every_data_folder_has_a_name(tmp_path, given, name):
    runs = [write_run(tmp_path / "a", given, [0.1]), write_run(tmp_path / "b", given, [0.2])]
    assert data_name(runs[0]) == name
    assert comparison.comparison_table(runs).startswith(f"| final accuracy (95 % interval, pooled) | {name}, 1 seed |")


def test_the_base_is_the_lowest_first_accuracy_and_seeds_are_counted_for_every_group(tmp_path, monkeypatch):
    """SFT-RFT begins with what SFT has learned, which is no base."""
    runs = [write_run(tmp_path / f"sft_rft_seed{seed}", tmp_path / "words", [0.45, 0.5]) for seed in range(3)]
    runs.append(write_run(tmp_path / "uft_seed0", tmp_path / "words", [0.1, 0.6]))
    markdown = comparison.comparison_table(runs)
    assert "| words, 1 to 3 seeds |" in markdown and rows_of(markdown)["base"][0].startswith("10.0% ")
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    assert {line.get_label(): line.get_ydata()[0] for line in figures[0].axes[0].lines}["base"] == 0.1
    assert figures[0].axes[0].get_title() == "words, 1 to 3 seeds"


def test_a_run_that_begins_elsewhere_has_no_base(tmp_path):
    run = write_run(tmp_path / "resumed", tmp_path / "words", [0.1, 0.2])
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[2:]))
    assert list(rows_of(comparison.comparison_table([run, run]))) == ["resumed"]


def test_a_method_that_never_solves_anything_is_drawn(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / method, tmp_path / "words", [0.0, final])
            for method, final in (("rft", 0.0), ("uft", 0.9))]
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    assert {line.get_label() for line in figures[0].axes[0].lines} == {"rft", "uft", "base"}


def test_fourteen_methods_fit_into_the_figure(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / f"a method, number {number}", tmp_path / "words", [0.0, 0.1], hints=number > 12)
            for number in range(14)]
    figures, make = [], comparison.Figure
    monkeypatch.setattr(comparison, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    comparison.plot_comparison(runs, tmp_path / "figure.png")
    accuracy, hints = figures[0].axes
    looks = {(line.get_color(), line.get_linestyle()) for line in accuracy.lines if line.get_label() != "base"}
    assert len(looks) == 14  # seven colours, solid and dashed
    assert max(map(len, hints.get_xlabel().splitlines())) <= 60 and "number 12" in hints.get_xlabel()


@pytest.mark.parametrize("module", [report_command, depths])
def test_a_run_without_evaluation_is_named(runs, module):
    (runs[1] / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    with pytest.raises(SystemExit, match="tree3/uft_seed1 .* no evaluation yet"):
        module.main(module.Args(tuple(runs[:2])))


def test_report_of_several_runs_writes_tables_and_figure(runs, tmp_path, capsys):
    report_command.main(report_command.Args(tuple(runs), figure=tmp_path / "c.png"))
    printed = capsys.readouterr().out
    assert "| uft | 2 | 20 | 0.0% | 90.0% | 80.0% to 100.0% |" in printed
    assert "| final accuracy (95 % interval, pooled) | tree3, 1 to 2 seeds |" in printed
    assert (tmp_path / "c.png").is_file()


# ----- depths -----


def test_steps_to_an_accuracy_and_what_never_gets_there(runs, tmp_path):
    methods = depths.by_method(runs[:3], 0.5)
    assert methods == {"uft": {3: [20, 10]}, "rft": {3: [float("inf")]}}
    assert depths.steps_table(methods).splitlines()[2:] == ["| uft | 10 |", "| rft | not reached (0 of 1 seeds) |"]
    never = float("inf")
    assert depths.steps_table({"uft": {3: [20, never, 10]}}).splitlines()[2] == "| uft | 20 (2 of 3 seeds) |"
    assert depths.steps_table({"uft": {3: [20, never]}}).splitlines()[2] == "| uft | 20 (1 of 2 seeds) |"
    assert depths.steps_table({"r3": {3: [20, never, never]}}).splitlines()[2] == "| r3 | not reached (1 of 3 seeds) |"
    args = json.loads((runs[2] / "args.json").read_text())
    del args["group_size"]  # as SFT's
    (runs[2] / "args.json").write_text(json.dumps(args))
    depths.main(depths.Args((runs[2], *runs[:2]), figure=tmp_path / "d.png"))
    assert Image.open(tmp_path / "d.png").width > 400


def test_depths_keep_runs_of_one_name_in_different_folders(tmp_path):
    runs = []
    for depth in (2, 3):
        tree.build(tmp_path / f"tree{depth}" / "data", depth=depth, train_problems=8, test_problems=4)
        for lr, final in (("high", 0.9), ("low", 0.1)):
            folder = tmp_path / f"tree{depth}" / lr / "uft_seed0"
            runs.append(write_run(folder, tmp_path / f"tree{depth}" / "data", [0.0, final]))
    never = float("inf")
    assert depths.by_method(runs, 0.5) == {"high/uft": {2: [10], 3: [10]}, "low/uft": {2: [never], 3: [never]}}


def test_depths_draw_every_method(runs, tmp_path, monkeypatch):
    """More of them than there are colours."""
    many = [write_run(tmp_path / "many" / f"method{i}", tmp_path / "tree3" / "data", [0.0, 0.9]) for i in range(9)]
    figures, make = [], depths.Figure
    monkeypatch.setattr(depths, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    depths.main(depths.Args(tuple(many), figure=tmp_path / "d.png"))
    assert {f"method{i}" for i in range(9)} <= {line.get_label() for line in figures[0].axes[0].lines}


def test_depths_know_the_built_in_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "BUILT_IN_FOLDER", tmp_path / "built in")
    tree.build(tmp_path / "built in" / "tree", depth=2, train_problems=8, test_problems=4)
    run = write_run(tmp_path / "uft", "tree", [0.0, 0.9])
    depths.main(depths.Args((run,), figure=tmp_path / "d.png"))
    assert depths.by_method([run], 0.5) == {"uft": {2: [10]}}


def test_depths_refuse_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match="must be output_dirs of training runs"):
        depths.main(depths.Args((tmp_path,)))
