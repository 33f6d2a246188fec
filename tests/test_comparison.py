"""Runs beside each other: groups, means, tables, figures; and the steps against the depth of the tree."""

import json

import pytest
from PIL import Image

from utils import comparison, data, depths, report
from utils.runs import data_name, group_by_seed
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
    assert lines[0] == "| final accuracy (95 % interval, pooled) | tree3, 2 seeds | gone, 1 seed |"
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
    assert tree_axes.get_title() == "tree3 (1/2 seeds)" and gone_axes.get_title() == "gone (1 seeds)"
    drawn = {line.get_label(): line for line in tree_axes.lines}
    assert set(drawn) == {"uft", "rft", "base", "best constant pattern"}
    assert list(drawn["uft"].get_ydata()) == [0.0, 0.5, 0.9] and list(drawn["uft"].get_xdata()) == [0, 10, 20]
    assert [line.get_label() for line in tree_hints.lines] == ["uft"]
    assert tree_hints.get_xlabel() == "step (no hints: rft)" and gone_hints.get_xlabel() == "step"
    same = [line.get_color() for axes in (tree_axes, gone_axes, tree_hints) for line in axes.lines
            if line.get_label() == "uft"]
    assert len(set(same)) == 1


def test_report_of_several_runs_writes_tables_and_figure(runs, tmp_path, capsys):
    report.main(report.Args(tuple(runs), figure=tmp_path / "c.png"))
    printed = capsys.readouterr().out
    assert "| uft | 2 | 20 | 0.0% | 90.0% | 80.0% to 100.0% |" in printed
    assert "| final accuracy (95 % interval, pooled) | tree3, 2 seeds |" in printed
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


def test_depths_refuse_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match="must be output_dirs of training runs"):
        depths.main(depths.Args((tmp_path,)))
