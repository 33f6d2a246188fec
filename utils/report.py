"""What a run comes to: curves.png, the closing table, and the table of several runs.

    python -m utils.report RUN              writes RUN/curves.png and prints base against trained
    python -m utils.report RUN RUN ...      prints one row per run and writes a figure with a panel per task;
                                            NAME_seed0, NAME_seed1, ... of one folder share a row and a line; where
                                            folders have runs of one name, the folder is part of it
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils import comparison
from utils.runs import (
    ACCURACY,
    evaluation_interval,
    has_evaluation,
    named_groups,
    read_evaluations,
    read_metrics,
    table,
)

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # told apart by the colour-blind too


# ----- curves -----


def draw(axes: Axes, lines: list[dict], curves: dict[str, tuple[str, str]]) -> list[str]:
    """Draws metric -> (label, colour) over `step`, null as a gap. Returns the labels of those that are 0 all along."""
    zero = []
    for name, (label, colour) in curves.items():
        points = [(line["step"], math.nan if line[name] is None else line[name]) for line in lines if name in line]
        if any(value != 0 for _, value in points):
            axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.2)
        elif points:
            zero.append(label.split(" (")[0])
    return zero


def finish(left: Axes, title: str, ylabel: str, zero: Sequence[str] = (), right: Axes | None = None) -> None:
    """Title, axis labels, a legend below for both sides, and a word in place of what is not drawn."""
    left.set(title=title, xlabel=f"step (0 throughout: {', '.join(zero)})" if zero else "step", ylabel=ylabel)
    left.grid(alpha=0.25)
    handles = []
    for axes in (left, right) if right else (left,):
        handles += axes.get_legend_handles_labels()[0]
        if not axes.has_data():
            axes.set_yticks([])
    if not handles:
        left.set_xticks([])
    if not handles and not zero:
        left.text(0.5, 0.5, "not logged", transform=left.transAxes, ha="center", color="grey")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 4}
    left.legend(handles=handles, fontsize=8, frameon=False, **below)


def plot_curves(output_dir: str | Path) -> Path:
    """Writes <output_dir>/curves.png (1000 x 700) from metrics.jsonl; what the algorithm does not log is not drawn."""
    output_dir = Path(output_dir)
    lines = read_metrics(output_dir)
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if line.get(ACCURACY) is not None]
    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    figure.suptitle(output_dir.resolve().name)
    (accuracy, reward), (hints, losses) = figure.subplots(2, 2)

    if evaluations:
        steps, base = [line["step"] for line in evaluations], evaluations[0]
        if base["step"] == 0:
            accuracy.axhline(base[ACCURACY], color="grey", linestyle=":", label=f"base: {base[ACCURACY]:.1%}")
        accuracies = [line[ACCURACY] for line in evaluations]
        accuracy.plot(steps, accuracies, "o-", color=BLUE, markersize=3, label="greedy, no hint")
        if all("eval/n" in line for line in evaluations):
            low, high = zip(*(evaluation_interval(line) for line in evaluations), strict=True)
            accuracy.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval")
        accuracy.set_ylim(bottom=0)
    finish(accuracy, "Accuracy on held-out problems", "fraction right")

    zero = draw(reward, training, {"reward": ("reward", BLUE), "accuracy": ("accuracy", ORANGE)})
    finish(reward, "Training responses (sampled, after the hint)", "mean per response", zero)

    tokens = hints.twinx()
    zero = draw(hints, training, {"hint_slices": ("hint slices (left)", BLUE)})
    zero += draw(tokens, training, {"hint_tokens": ("hint tokens (right)", ORANGE)})
    zero += draw(tokens, training, {"response_tokens": ("response tokens (right)", GREEN)})
    tokens.set_ylabel("tokens")
    finish(hints, "Hints shown", "slices per problem", zero, tokens)

    likelihoods = losses.twinx()
    zero = draw(losses, training, {"pg_loss": ("pg (left)", BLUE), "kl_loss": ("kl (left)", ORANGE)})
    zero += draw(likelihoods, training, {"sft_loss": ("sft (right)", GREEN), "entropy": ("entropy (right)", PURPLE)})
    likelihoods.set_ylabel("nats per token")
    finish(losses, "Loss terms, before their coefficients", "per response token", zero, likelihoods)
    path = output_dir / "curves.png"
    comparison.save_small(figure, path)
    return path


# ----- tables -----


def closing_table(output_dir: str | Path, extra: tuple[str, float, str] | None = None) -> str:
    """Markdown: the first evaluation (base, where it is at step 0), the last (trained), and `extra` = (name, accuracy,
    description), such as the best constant answer pattern. Accuracies carry the 95 % interval."""
    evaluations = read_evaluations(output_dir)
    rows = []
    for line in evaluations[:1] + evaluations[1:][-1:]:
        name = "trained" if line["step"] else "base"
        low, high = evaluation_interval(line)
        rows.append([
            f"{name} (step {line['step']})",
            f"{line[ACCURACY]:.1%} ({low:.1%} to {high:.1%})",
            f"{line['eval/format']:.1%}",
            f"{line['eval/response_tokens']:.1f}",
        ])
    if extra:
        name, accuracy, description = extra
        rows.append([f"{name}: {description}" if description else name, f"{accuracy:.1%}", "", ""])
    header = ["", f"accuracy on {evaluations[-1]['eval/n']} problems (95 % interval)", "format", "response tokens"]
    return table(header, rows)


def several_runs_table(output_dirs: list[Path], pattern_accuracy: float | None = None) -> str:
    """Markdown: the last evaluation of each run; folders that differ only in a trailing _seedN share a row, named as by
    `named_groups`.

    Min to max is over the seeds. The 95 % interval pools their answers as if each met other problems: where all meet
    the same ones, as they usually do, it is too narrow for a claim about new problems.
    """
    groups = {group: [read_evaluations(run) for run in runs] for group, runs in named_groups(output_dirs).items()}
    rows = []
    for group, runs in groups.items():
        first, last = [evaluations[0] for evaluations in runs], [evaluations[-1] for evaluations in runs]
        steps = sorted({line["step"] for line in last})
        accuracies = [line[ACCURACY] for line in last]
        low, high = evaluation_interval(*last)
        rows.append([
            group,
            str(len(runs)),
            str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
            "" if any(line["step"] for line in first) else f"{mean(line[ACCURACY] for line in first):.1%}",
            f"{mean(accuracies):.1%}",
            f"{min(accuracies):.1%} to {max(accuracies):.1%}",
            f"{low:.1%} to {high:.1%}",
        ])
    if pattern_accuracy is not None:
        rows.append(["best constant pattern", "", "", "", f"{pattern_accuracy:.1%}", "", ""])
    return table(["run", "seeds", "step", "base", "final accuracy", "min to max", "95 % interval, pooled"], rows)


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Output folders of training runs."""
    pattern_accuracy: float | None = None
    """Accuracy (0 to 1) of the best constant answer on the test set; left out: found from the run's data, if there."""
    figure: Path | None = None
    """Where the figure of several runs is written; left out: comparison.png beside the first run."""


def main(args: Args) -> None:
    for run in args.runs:
        if not (run / "metrics.jsonl").is_file():
            sys.exit(f"RUNS {run} must be the output_dir of a training run, and it has no metrics.jsonl")
        if not has_evaluation(run):
            sys.exit(f"RUNS {run} has no evaluation yet, and nothing can be said of it")
    if not args.runs:
        sys.exit("RUNS (none) must name at least one output_dir of a training run")
    constant = args.pattern_accuracy
    if len(args.runs) == 1:
        constant = comparison.constant_accuracy(args.runs[0]) if constant is None else constant
        extra = None if constant is None else ("best constant pattern", constant, "")
        print(closing_table(args.runs[0], extra))
        print(f"\ncurves: {plot_curves(args.runs[0])}")
        return
    for task, groups in comparison.by_task(args.runs).items():
        runs = [run for of_group in groups.values() for run in of_group]
        accuracy = comparison.constant_accuracy(runs[0]) if constant is None else constant
        print(f"{task}\n\n{several_runs_table(runs, accuracy)}\n")
    print(comparison.comparison_table(args.runs))
    figure = args.figure or args.runs[0].resolve().parent / "comparison.png"
    comparison.plot_comparison(args.runs, figure)
    print(f"\nfigure: {figure}")


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
