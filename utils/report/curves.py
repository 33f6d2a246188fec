"""What one run comes to, as curves: curves.png."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.report.figures import BLUE, GREEN, ORANGE, PURPLE, save_small
from utils.report.runs import ACCURACY, evaluation_interval, read_metrics


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
    save_small(figure, path)
    return path
