"""Runs beside each other: one figure with a panel per task, and one table. `utils.report` is the command.

Runs of a group differ in a trailing _seedN of their folder's name; its line is their mean, its band spans all of them.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from utils.data import BUILT_IN, BUILT_IN_FOLDER, best_constant_answer, load_problems
from utils.runs import (
    ACCURACY,
    data_name,
    evaluation_interval,
    group_by_seed,
    read_args,
    read_evaluations,
    read_metrics,
    table,
)

# Okabe and Ito's palette: told apart by the colour-blind too. A group keeps its place in it over all panels.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def save_small(figure: Figure, path: Path) -> None:
    """The figure as a PNG with a palette, a third of the bytes."""
    image = io.BytesIO()
    figure.savefig(image)
    colours = Image.open(image).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def by_task(output_dirs: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """{task: {group's name: its runs}}, both in the order given."""
    tasks: dict[str, list[Path]] = {}
    for output_dir in output_dirs:
        tasks.setdefault(data_name(output_dir), []).append(output_dir)
    return {task: {Path(group).name: runs for group, runs in group_by_seed(of_task).items()}
            for task, of_task in tasks.items()}


def constant_accuracy(output_dir: Path) -> float | None:
    """What the best constant answer scores on the run's test problems; None where they are gone, or have none."""
    args = read_args(output_dir)
    data = args.get("data", "")
    folder = BUILT_IN_FOLDER / data if data in BUILT_IN else Path(data)
    if not (folder / "test.parquet").is_file():
        return None
    best = best_constant_answer(load_problems(data, "test")[: args["eval_problems"] or None])
    return None if best is None else best[1]


def mean_curve(runs: list[list[dict]], name: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all runs have with `name`, and there mean, least and greatest of it."""
    values = [{line["step"]: line[name] for line in lines if line.get(name) is not None} for lines in runs]
    steps = sorted(set.intersection(*(set(of_run) for of_run in values)))
    at = [[of_run[step] for of_run in values] for step in steps]
    return steps, [mean(v) for v in at], [min(v) for v in at], [max(v) for v in at]


def draw_groups(axes: Axes, groups: dict[str, list[list[dict]]], name: str, colours: dict[str, str]) -> list[str]:
    """A line and a band for each group; the names of those that have only zeros are returned, not drawn."""
    zero = []
    for group, runs in groups.items():
        steps, middle, low, high = mean_curve(runs, name)
        if any(high):
            axes.plot(steps, middle, color=colours[group], label=group, linewidth=1.4)
            axes.fill_between(steps, low, high, color=colours[group], alpha=0.15, linewidth=0)
        else:
            zero.append(group)
    axes.grid(alpha=0.25)
    return zero


def plot_comparison(output_dirs: Sequence[Path], path: Path) -> None:
    """Writes the figure: a column per task; above the accuracy over the steps, with base and best constant answer,
    below the slices shown."""
    tasks = by_task(output_dirs)
    names = list(dict.fromkeys(group for groups in tasks.values() for group in groups))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    figure = Figure(figsize=(1 + 4.2 * len(tasks), 6.4), dpi=100, layout="constrained")
    rows = figure.subplots(2, len(tasks), squeeze=False, height_ratios=[3, 2])
    for (task, groups), accuracy, hints in zip(tasks.items(), *rows, strict=True):
        lines = {group: [read_metrics(run) for run in runs] for group, runs in groups.items()}
        draw_groups(accuracy, lines, ACCURACY, colours)
        bases = [line[ACCURACY] for runs in lines.values() for run in runs for line in run
                 if ACCURACY in line and line["step"] == 0]
        if bases:
            accuracy.axhline(min(bases), color="grey", linestyle=":", label="base")
        constant = constant_accuracy(next(iter(groups.values()))[0])
        if constant is not None:
            accuracy.axhline(constant, color="grey", linestyle="-.", linewidth=1, label="best constant pattern")
        seeds = sorted({len(runs) for runs in groups.values()})
        accuracy.set(title=f"{task} ({'/'.join(map(str, seeds))} seeds)", ylabel="accuracy, greedy, no hint")
        accuracy.set_ylim(bottom=0)
        zero = draw_groups(hints, lines, "hint_slices", colours)
        hints.set(xlabel=f"step (no hints: {', '.join(zero)})" if zero else "step", ylabel="slices shown per problem")
    handles = {label: handle for axes in rows.flat for handle, label in zip(*axes.get_legend_handles_labels(),
                                                                            strict=True)}
    order = [*names, "base", "best constant pattern"]
    labels = [label for label in order if label in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=len(labels),
                  frameon=False)
    save_small(figure, path)


def comparison_table(output_dirs: Sequence[Path]) -> str:
    """Markdown: a row per group, a column per task; the mean of the last evaluations and the 95 % interval of all their
    answers together. Above them the base, below them the best constant answer."""
    tasks = by_task(output_dirs)
    names = list(dict.fromkeys(group for groups in tasks.values() for group in groups))
    evaluations = {task: {group: [read_evaluations(run) for run in runs] for group, runs in groups.items()}
                   for task, groups in tasks.items()}

    def cell(lines: list[dict]) -> str:
        low, high = evaluation_interval(*lines)
        return f"{mean(line[ACCURACY] for line in lines):.1%} ({low:.1%} to {high:.1%})"

    rows = []
    firsts = {task: min((runs[0][0] for runs in groups.values()), key=lambda line: line["step"])
              for task, groups in evaluations.items()}
    if any(line["step"] == 0 for line in firsts.values()):
        rows.append(["base", *(cell([line]) if line["step"] == 0 else "" for line in firsts.values())])
    for name in names:
        rows.append([name, *(cell([run[-1] for run in groups[name]]) if name in groups else ""
                             for groups in evaluations.values())])
    constants = [constant_accuracy(next(iter(groups.values()))[0]) for groups in tasks.values()]
    if any(constant is not None for constant in constants):
        rows.append(["best constant pattern", *("" if c is None else f"{c:.1%}" for c in constants)])
    sizes = [len(next(iter(groups.values()))) for groups in tasks.values()]
    header = [f"{task}, {size} seed{'s' * (size > 1)}" for task, size in zip(tasks, sizes, strict=True)]
    return table(["final accuracy (95 % interval, pooled)", *header], rows)
