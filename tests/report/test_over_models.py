"""Accuracy averaged over models, by hand: curves, bands, table; and methods that lack a model."""

import pytest
from PIL import Image

from tests.helpers.experiment import write_run
from tests.report.test_comparison import rows_of
from utils.report import __main__ as report_command
from utils.report import over_models
from utils.report.figures import COLOURS, line_styles


@pytest.fixture
def runs(tmp_path):
    """uft of two seeds and rft of one on two models; stage on one of them. The large model is evaluated more often."""

    def run(model, name, seed, accuracies, every):
        base = tmp_path / "models" / model / "hf"
        return write_run(tmp_path / model / f"{name}_seed{seed}", base, accuracies, seed, every)

    return [run("small", "uft", 0, [0.0, 0.1, 0.2], 20), run("small", "uft", 1, [0.0, 0.3, 0.4], 20),
            run("large", "uft", 0, [0.2, 0.9, 0.4, 0.9, 0.8], 10),
            run("large", "uft", 1, [0.2, 0.9, 0.8, 0.9, 1.0], 10),
            run("small", "rft", 0, [0.0, 0.1, 0.1], 20), run("large", "rft", 0, [0.2, 0.3, 0.3, 0.3, 0.5], 10),
            run("large", "stage", 0, [0.2, 0.3, 0.3, 0.3, 0.7], 10)]


def test_the_mean_is_over_models_of_their_means_over_seeds(runs):
    """At steps that both have. uft at 20: (.2 + .6) / 2; its seeds, over models: (.1 + .4) / 2 and (.3 + .8) / 2."""
    models = over_models.read_tasks(runs)["words"]
    steps, middle, low, high = over_models.mean_over_models(models, "uft")
    assert steps == [0, 20, 40] and middle == pytest.approx([0.1, 0.4, 0.6])
    assert low == pytest.approx([0.1, 0.25, 0.5]) and high == pytest.approx([0.1, 0.55, 0.7])
    models = over_models.read_tasks(runs[:1] + runs[2:])["words"]  # seed 1 of one model only: no band
    steps, middle, low, high = over_models.mean_over_models(models, "uft")
    assert middle == low == high == pytest.approx([0.1, 0.35, 0.55])


def test_the_table_has_models_and_their_mean(runs):
    """uft: .3 and .9; over seeds (.2 + .8) / 2 and (.4 + 1) / 2, mean .6 -+ 12.7 * .1."""
    markdown = over_models.report(runs, constant=0.05)
    assert markdown.splitlines()[0] == (
        "| final accuracy, words | seeds | small/hf | large/hf | mean of 2 | 95 % interval over seeds |")
    table, _, note = markdown.partition("\n\n")
    assert rows_of(table) == {
        "base": ["", "0.0%", "20.0%", "10.0%", ""],
        "uft": ["2", "30.0%", "90.0%", "60.0%", "0.0% to 100.0%"],
        "rft": ["1", "10.0%", "50.0%", "30.0%", "one seed"],
        "stage": ["1", "", "70.0%", "", ""],
        "best constant pattern": ["", "5.0%", "5.0%", "5.0%", ""],
    }
    assert note == "Not in the mean: stage (no run of small/hf)."
    assert "| uft | 1 to 2 | 20.0% | 90.0% | 55.0% |  |" in over_models.report(runs[:1] + runs[2:])
    later = write_run(runs[0].parent / "uft_seed2", runs[0].parents[1] / "models" / "small" / "hf", [0, 0, 0, 0], 2, 20)
    assert "Last evaluations are of steps 40 to 60." in over_models.report([*runs, later])


def test_the_figure_has_a_panel_for_each_model_and_one_for_the_mean(runs, tmp_path, monkeypatch):
    other = [write_run(tmp_path / "other" / model / "uft_seed0", tmp_path / model, [0.1, 0.2], data="other")
             for model in ("a", "b", "c")]
    figures, make = [], over_models.Figure
    monkeypatch.setattr(over_models, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    over_models.plot_over_models([*runs, *other], tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 1500
    small, large, mean, empty, *second = figures[0].axes
    assert [axes.get_title() for axes in (small, large, mean)] == [
        "words, small/hf, 1 to 2 seeds", "words, large/hf, 1 to 2 seeds",
        "words, mean of 2 models"]
    assert not empty.axison and [axes.get_title() for axes in second] == [
        "other, a, 1 seed", "other, b, 1 seed", "other, c, 1 seed", "other, mean of 3 models"]
    drawn = [{line.get_label(): list(line.get_ydata()) for line in axes.lines} for axes in (small, large, mean)]
    assert [set(lines) for lines in drawn] == [{"uft", "rft", "base"}, {"uft", "rft", "stage", "base"},
                                               {"uft", "rft", "base"}]
    assert drawn[2]["uft"] == pytest.approx([0.1, 0.4, 0.6]) and drawn[2]["rft"] == pytest.approx([0.1, 0.2, 0.3])
    assert drawn[2]["base"] == pytest.approx([0.1, 0.1])
    [legend] = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["uft", "rft", "stage", "base"]


def test_runs_that_go_on_from_others_belong_to_the_first_model(tmp_path):
    runs = []
    for model, final in (("small", 0.2), ("large", 0.6)):
        sft = write_run(tmp_path / model / "sft", tmp_path / f"base_{model}", [0.1, 0.2])
        runs += [sft, write_run(tmp_path / model / "sft_rft", sft / "checkpoints" / "step_10" / "hf", [0.2, final])]
    models = over_models.read_tasks(runs)["words"]
    assert {model: list(methods) for model, methods in models.items()} == {
        "base_small": ["sft", "sft_rft"], "base_large": ["sft", "sft_rft"]}
    assert "| sft_rft | 1 | 20.0% | 60.0% | 40.0% | one seed |" in over_models.report(runs)


def test_one_model_and_methods_without_a_common_one_are_refused(runs):
    for chosen, error in ((runs[:2], "all runs on words begin with hf"),
                          ([runs[0], runs[-1]], "no method has runs of all models on words: small/hf has uft; large/hf "
                                                "has stage")):
        with pytest.raises(SystemExit, match=f"--mean_over model: .*{error}"):
            report_command.main(report_command.Args(tuple(chosen), mean_over="model"))


def test_the_command_writes_table_and_figure(runs, tmp_path, capsys):
    report_command.main(report_command.Args(tuple(runs), mean_over="model"))
    printed = capsys.readouterr().out
    assert "| uft | 2 | 30.0% | 90.0% | 60.0% |" in printed and "pooled" not in printed
    assert (runs[0].parent / "mean_over_models.png").is_file() and not (runs[0].parent / "comparison.png").exists()


def test_many_methods_have_lines_of_their_own():
    names = [f"method{number}" for number in range(4 * len(COLOURS))]
    styles = line_styles(names)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(names)
    assert [styles[name]["linestyle"] for name in names[:7]] == ["-"] * 7
