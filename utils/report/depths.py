"""Steps to half the problems right against the depth of the tree: the UFT paper's theorem, seen on a language model.

    python -m utils.report.depths RUN RUN ... --figure depths.png      # runs on data of utils.tasks.tree

Without hints the steps grow like the number of leaves, branching ** depth; with hints of random length like a
polynomial of the depth. A step takes prompts_per_step * group_size responses, that is leaves.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from utils.report.comparison import data_folder
from utils.report.figures import line_styles, save_small
from utils.report.runs import (
    ACCURACY,
    has_evaluation,
    named_groups,
    read_args,
    read_evaluations,
    table,
)
from utils.tasks.tree import load_setting


@dataclass
class Args:
    # Output folders of training runs on tree data; NAME_seed0, NAME_seed1, ... share a line.
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    accuracy: float = 0.5  # what counts as reached, 0..1
    figure: Path | None = None  # where the figure is written; left out: depths.png beside the first run


def steps_to(evaluations: list[dict], accuracy: float) -> float:
    """The first evaluation step with at least that accuracy; infinity where there is none."""
    return min((line["step"] for line in evaluations if line[ACCURACY] >= accuracy), default=math.inf)


def by_method(runs: list[Path], accuracy: float) -> dict[str, dict[int, list[float]]]:
    """{method: {depth: steps of each seed}}; depths rise."""
    by_depth: dict[int, list[Path]] = {}
    for run in runs:
        by_depth.setdefault(load_setting(data_folder(run)).depth, []).append(run)
    methods: dict[str, dict[int, list[float]]] = {}
    for depth, of_depth in by_depth.items():
        for method, of_method in named_groups(of_depth).items():
            methods.setdefault(method, {})[depth] = [steps_to(read_evaluations(run), accuracy) for run in of_method]
    return {method: dict(sorted(depths.items())) for method, depths in methods.items()}


def steps_table(methods: dict[str, dict[int, list[float]]]) -> str:
    """Markdown: the lower median of the seeds for each method and depth, and how many got there where not all did."""

    def cell(steps: list[float]) -> str:
        reached = sum(map(math.isfinite, steps))
        middle = median_low(steps)
        shown = f"{middle:g}" if math.isfinite(middle) else "not reached"
        return shown if reached == len(steps) else f"{shown} ({reached} of {len(steps)} seeds)"

    depths = sorted({depth for of_method in methods.values() for depth in of_method})
    rows = [[method, *(cell(of_method[depth]) if depth in of_method else "" for depth in depths)]
            for method, of_method in methods.items()]
    return table(["steps to reach it, median", *(f"depth {depth}" for depth in depths)], rows)


def plot(methods: dict[str, dict[int, list[float]]], args: Args, path: Path) -> None:
    """A line through the lower medians of each method, a dot a seed; a triangle on top where a seed did not get there.
    What is there at step 0 is not drawn: the axis is logarithmic."""
    settings = [read_args(run) for run in args.runs]
    last = max(setting["total_steps"] for setting in settings)
    figure = Figure(figsize=(6.4, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    styles = line_styles(list(methods))
    for number, (method, depths) in enumerate(methods.items()):
        middle = {depth: median_low(steps) for depth, steps in depths.items() if 0 < median_low(steps) < math.inf}
        if middle:
            axes.plot(list(middle), list(middle.values()), **styles[method], label=method)
        for depth, steps in depths.items():
            beside = depth + 0.06 * (number - len(methods) / 2)
            for one in filter(None, steps):
                marker, height = ("o", one) if math.isfinite(one) else ("^", last * 1.15)
                axes.plot(beside, height, marker, color=styles[method]["color"], markersize=4, alpha=0.6)
    leaves = max(setting["prompts_per_step"] * setting.get("group_size", 1) for setting in settings)  # one: SFT's
    branching = load_setting(data_folder(args.runs[0])).branching
    depths = sorted({depth for of_method in methods.values() for depth in of_method})
    bound = {depth: branching**depth / 4 / leaves for depth in depths if branching**depth / 4 / leaves <= last}
    axes.plot(list(bound), list(bound.values()), color="grey", linestyle=":",
              label=f"{branching}^depth / 4 leaves (bound without hints)")
    axes.set(xlabel="depth of the tree", ylabel=f"steps to {args.accuracy:.0%} greedy accuracy", yscale="log",
             xticks=depths, title=f"{leaves} responses a step; triangles: not within {last} steps")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    save_small(figure, path)


def main(args: Args) -> None:
    missing = [run for run in args.runs if not (run / "metrics.jsonl").is_file()]
    if missing or not args.runs:
        sys.exit(f"RUNS {missing[0] if missing else '(none)'} must be output_dirs of training runs on tree data")
    for run in args.runs:
        if not has_evaluation(run):
            sys.exit(f"RUNS {run} has no evaluation yet, and nothing can be said of it")
    methods = by_method(list(args.runs), args.accuracy)
    print(f"\n{args.accuracy:.0%} accuracy\n\n{steps_table(methods)}")
    figure = args.figure or args.runs[0].resolve().parent / "depths.png"
    plot(methods, args, figure)
    print(f"\nfigure: {figure}")


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
