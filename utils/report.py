"""What a run comes to: curves.png, the closing table, and the table of several runs.

    python -m utils.report RUN              writes RUN/curves.png and prints base against trained
    python -m utils.report RUN RUN ...      prints one row per run; NAME_seed0, NAME_seed1, ... share a row
"""

import io
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from utils.logger import read_jsonl

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
ACCURACY = "eval/accuracy"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # told apart by the colour-blind too


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval (Wilson 1927) of a proportion: with p = successes / n and z = 1.96,
    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n). Sound at 0 and n successes too."""
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"wilson_interval: {successes} successes of n = {n}; must be 0 <= successes <= n and n > 0")
    p, z2n = successes / n, Z_95**2 / n
    half_width = Z_95 * math.sqrt(p * (1 - p) / n + z2n / (4 * n))
    return max(0.0, (p + z2n / 2 - half_width) / (1 + z2n)), min(1.0, (p + z2n / 2 + half_width) / (1 + z2n))


def read_metrics(output_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl, in order, without a torn last one."""
    return read_jsonl(Path(output_dir) / "metrics.jsonl")


def read_evaluations(output_dir: str | Path) -> list[dict]:
    """The evaluation lines of a run; ValueError where it has none."""
    evaluations = [line for line in read_metrics(output_dir) if ACCURACY in line]
    if not evaluations:
        raise ValueError(f"{Path(output_dir) / 'metrics.jsonl'} has no evaluation ({ACCURACY})")
    return evaluations


def evaluation_interval(*evaluations: dict) -> tuple[float, float]:
    """95 % interval of the accuracy of one evaluation line, or of several pooled."""
    n = sum(line["eval/n"] for line in evaluations)
    return wilson_interval(sum(round(line[ACCURACY] * line["eval/n"]) for line in evaluations), n)


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
    image, path = io.BytesIO(), output_dir / "curves.png"
    figure.savefig(image)
    colours = Image.open(image).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)  # a palette: a third of the bytes
    return path


# ----- tables -----


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines)


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
    """Markdown: the last evaluation of each run; folders that differ only in a trailing _seedN share a row.

    Min to max is over the seeds. The 95 % interval pools their answers as if each met other problems: where all meet
    the same ones, as they usually do, it is too narrow for a claim about new problems.
    """
    groups: dict[str, list[list[dict]]] = {}
    for output_dir in output_dirs:
        groups.setdefault(re.sub(r"_seed\d+$", "", str(output_dir.resolve())), []).append(read_evaluations(output_dir))
    rows = []
    for group, runs in groups.items():
        first, last = [evaluations[0] for evaluations in runs], [evaluations[-1] for evaluations in runs]
        steps = sorted({line["step"] for line in last})
        accuracies = [line[ACCURACY] for line in last]
        low, high = evaluation_interval(*last)
        rows.append([
            Path(group).name,
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
    """Accuracy (0 to 1) of the best constant answer pattern on the test set: one more row."""


def main(args: Args) -> None:
    for run in args.runs:
        if not (run / "metrics.jsonl").is_file():
            sys.exit(f"RUNS {run} must be the output_dir of a training run, and it has no metrics.jsonl")
    if not args.runs:
        sys.exit("RUNS (none) must name at least one output_dir of a training run")
    if len(args.runs) > 1:
        print(several_runs_table(list(args.runs), args.pattern_accuracy))
        return
    extra = None if args.pattern_accuracy is None else ("best constant pattern", args.pattern_accuracy, "")
    print(closing_table(args.runs[0], extra))
    print(f"\ncurves: {plot_curves(args.runs[0])}")


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
