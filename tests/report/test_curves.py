import json

import pytest
from PIL import Image

from utils.report import __main__ as report_command
from utils.report import curves
from utils.report.closing import closing_table
from utils.report.comparison import several_runs_table
from utils.report.curves import plot_curves
from utils.report.runs import read_metrics, wilson_interval


def write(output_dir, lines):
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return output_dir


def evaluation(step, accuracy, n=512, tokens=40.25):
    return {"step": step, "eval/accuracy": accuracy, "eval/format": 0.99, "eval/response_tokens": tokens, "eval/n": n}


def training(step):
    names = ["reward", "accuracy", "loss", "pg_loss", "kl_loss", "entropy"]
    names += ["hint_slices", "hint_tokens", "response_tokens"]
    noise = {name: ((step * 7919 + 31 * index) % 101) / 101 for index, name in enumerate(names)}
    return {"step": step, "sft_loss": 0.0} | noise


# By hand, z = 1.96, 8 of 10: z^2 = 3.8416; centre (.8 + .19208) / 1.38416 = .716738;
# half width 1.96 sqrt(.016 + .009604) / 1.38416 = 1.96 * .160012 / 1.38416 = .226580.
# 0 of 20: the low end is 0 and the high end z^2 / (n + z^2) = 3.8416 / 23.8416 = .161130.
# 15 of 148 is Newcombe's (1998) table, method 3: .0624 to .1605; 81 of 263: .2553 to .3662.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.490158, 0.943318),
        (0, 20, 0.0, 0.161130),
        (20, 20, 1 - 0.161130, 1.0),
        (15, 148, 0.0624, 0.1605),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson_interval(successes, n)


def test_closing_table(tmp_path):
    # 50 of 100: centre .5, half width 1.96 sqrt(.0025 + 3.8416/40000) / 1.038416 = .09617.
    run = write(tmp_path / "run", [evaluation(0, 0.0, 20), evaluation(2, 0.9), training(3), evaluation(4, 0.5, 100, 7)])
    assert closing_table(run, ("best constant pattern", 0.051, "a + b | c")) == (
        "|  | accuracy on 100 problems (95 % interval) | format | response tokens |\n"
        "| :-- | --: | --: | --: |\n"
        "| base (step 0) | 0.0% (0.0% to 16.1%) | 99.0% | 40.2 |\n"
        "| trained (step 4) | 50.0% (40.4% to 59.6%) | 99.0% | 7.0 |\n"
        "| best constant pattern: a + b \\| c | 5.1% |  |  |"
    )


def test_a_lone_evaluation_is_one_row_with_its_own_name(tmp_path):
    assert [line.split(" (")[0] for line in closing_table(write(tmp_path, [evaluation(9, 0.5)])).splitlines()[2:]] == [
        "| trained"
    ]
    assert [line.split(" (")[0] for line in closing_table(write(tmp_path, [evaluation(0, 0.5)])).splitlines()[2:]] == [
        "| base"
    ]


def test_no_evaluation_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no evaluation"):
        closing_table(write(tmp_path, [training(1)]))


def test_seeds_share_a_row(tmp_path):
    runs = [
        write(tmp_path / "uft_seed0", [evaluation(0, 0.25, 20), evaluation(100, 0.30, 10)]),
        write(tmp_path / "uft_seed12", [evaluation(0, 0.35, 20), evaluation(80, 0.60, 10)]),
        write(tmp_path / "rft_3b", [evaluation(50, 0.0, 20)]),
    ]
    # Pooled: 3 + 6 of 20; centre (.45 + .09604) / 1.19208 = .45806, half width 1.96 sqrt(.012375 + .002401) / 1.19208
    # = .19987.
    assert several_runs_table(runs, 0.051) == (
        "| run | seeds | step | base | final accuracy | min to max | 95 % interval, pooled |\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n"
        "| uft | 2 | 80 to 100 | 30.0% | 45.0% | 30.0% to 60.0% | 25.8% to 65.8% |\n"
        "| rft_3b | 1 | 50 |  | 0.0% | 0.0% to 0.0% | 0.0% to 16.1% |\n"
        "| best constant pattern |  |  |  | 5.1% |  |  |"
    )


def drawn(monkeypatch):
    """Catches the figure that plot_curves makes, to ask what is drawn."""
    figures = []
    make = curves.Figure
    monkeypatch.setattr(curves, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    return lambda: {
        line.get_label().split(" (")[0]: (list(line.get_xdata()), list(line.get_ydata()))
        for axes in figures[-1].axes
        for line in axes.get_lines()
    }


def test_curves_are_a_small_png(tmp_path):
    lines = [evaluation(0, 0.0)]
    for step in range(1, 501):
        lines += [training(step)] + ([evaluation(step, step / 600)] if step % 25 == 0 else [])
    path = plot_curves(write(tmp_path, lines))
    assert path == tmp_path / "curves.png" and path.stat().st_size < 150_000
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (1000, 700)
        image.load()


def test_curves_draw_what_is_logged_and_leave_gaps_for_null(tmp_path, monkeypatch):
    curves = drawn(monkeypatch)
    lines = [evaluation(0, 0.1), training(1) | {"reward": 0.25}, training(2) | {"reward": None}, evaluation(2, 0.3)]
    plot_curves(write(tmp_path, lines))
    assert curves()["greedy, no hint"] == ([0, 2], [0.1, 0.3])
    assert curves()["base: 10.0%"][1] == [0.1, 0.1]
    assert curves()["reward"][1] == pytest.approx([0.25, float("nan")], nan_ok=True)
    assert {"hint slices", "hint tokens", "response tokens", "pg", "kl", "entropy"} < curves().keys()
    assert "sft" not in curves()  # 0 throughout


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ([{"step": 1, "loss": 2.0, "sft_loss": 2.0}, {"step": 1, "eval/accuracy": 0.1}], {"sft", "greedy, no hint"}),
        ([evaluation(5, 0.2)], {"greedy, no hint"}),
        ([{"step": 1, "loss": 2.0}], set()),
        ([], set()),
    ],
)
def test_curves_of_logs_with_missing_fields(tmp_path, monkeypatch, lines, labels):
    curves = drawn(monkeypatch)
    assert plot_curves(write(tmp_path, lines)).stat().st_size > 5_000
    assert curves().keys() == labels


def test_metrics_of_a_live_run_are_read_without_the_torn_line(tmp_path):
    write(tmp_path, [training(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step":')
    assert read_metrics(tmp_path) == [training(1)]


def test_command_line(tmp_path, capsys):
    run = write(tmp_path / "a_seed0", [evaluation(0, 0.0, 20)])
    report_command.main(report_command.Args((run,), pattern_accuracy=0.051))
    assert "| best constant pattern | 5.1% |" in capsys.readouterr().out and (run / "curves.png").exists()
    report_command.main(report_command.Args((run, run)))
    assert "| a | 2 | 0 | 0.0% |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nowhere must be the output_dir"):
        report_command.main(report_command.Args((tmp_path / "nowhere",)))
