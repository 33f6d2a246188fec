"""Runs beside each other: one figure with a panel per task, and one table. `utils.report` is the command.

Runs of a group differ in a trailing _seedN of their folder's name; its line is their mean, its band spans all of them.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.data import BUILT_IN_FOLDER, load_problems
from utils.report.figures import line_styles, save_small
from utils.report.runs import (
    ACCURACY,
    data_name,
    distinct_names,
    evaluation_interval,
    named_groups,
    read_args,
    read_evaluations,
    read_metrics,
    seed_counts,
    table,
    without_data,
)
from utils.tasks.registry import BUILT_IN, best_constant_answer


def by_task(output_dirs: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """{task: {group's name: its runs}}, both in the order given. Data in different folders are different tasks."""
    tasks: dict[Path, list[Path]] = {}
    for output_dir in output_dirs:
        tasks.setdefault(data_folder(output_dir), []).append(output_dir)
    names = {folder: data_name(runs[0]) for folder, runs in tasks.items()}
    clashing = [folder for folder, name in names.items() if list(names.values()).count(name) > 1]
    shown = {folder: without_data(folder) for folder in clashing}
    if len(set(shown.values())) < len(clashing):  # words and data/words
        shown = {folder: folder for folder in clashing}
    longer = distinct_names(list(shown.values()))
    names |= {folder: longer[shown[folder]] for folder in clashing}
    return {names[folder]: named_groups(runs) for folder, runs in tasks.items()}


def data_folder(output_dir: Path) -> Path:
    """Where the data of a run lie, absolute; they may be gone. Relative paths begin where this is called."""
    data = read_args(output_dir).get("data", "unknown data")
    return Path(os.path.abspath(BUILT_IN_FOLDER / data if data in BUILT_IN else data))


def constant_accuracy(output_dir: Path) -> float | None:
    """What the best constant answer scores on the run's test problems; None where they are gone, or have none."""
    args = read_args(output_dir)
    if not (data_folder(output_dir) / "test.parquet").is_file():
        return None
    best = best_constant_answer(load_problems(args["data"], "test")[: args["eval_problems"] or None])
    return None if best is None else best[1]


def mean_curve(runs: list[list[dict]], name: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all runs have with `name`, and there mean, least and greatest of it."""
    values = [{line["step"]: line[name] for line in lines if line.get(name) is not None} for lines in runs]
    steps = sorted(set.intersection(*(set(of_run) for of_run in values)))
    at = [[of_run[step] for of_run in values] for step in steps]
    return steps, [mean(v) for v in at], [min(v) for v in at], [max(v) for v in at]


def draw_groups(axes: Axes, groups: dict[str, list[list[dict]]], name: str, styles: dict[str, dict]) -> None:
    """A line and a band for each group."""
    for group, runs in groups.items():
        draw_curve(axes, *mean_curve(runs, name), group, styles)
    axes.grid(alpha=0.25)


def draw_curve(axes: Axes, steps: list[int], middle: list[float], low: list[float], high: list[float], name: str,
               styles: dict[str, dict]) -> None:
    """A line, and a band, fainter where there are many."""
    axes.plot(steps, middle, **styles[name], label=name, linewidth=1.4)
    alpha = 0.15 if len(styles) < 8 else 0.07
    axes.fill_between(steps, low, high, color=styles[name]["color"], alpha=alpha, linewidth=0)


def base_of(groups: dict[str, list[list[dict]]]) -> dict | None:
    """The evaluation at step 0 with the lowest accuracy; None where no run has one. Not every run begins with the base:
    SFT-RFT begins with what SFT has made of it."""
    firsts = [line for runs in groups.values() for lines in runs for line in lines
              if line.get(ACCURACY) is not None and line["step"] == 0]
    return min(firsts, key=lambda line: line[ACCURACY], default=None)


def that_have(lines: dict[str, list[list[dict]]], *names: str) -> dict[str, list[list[dict]]]:
    """The groups of runs in which one of these metrics is ever other than 0."""
    return {group: runs for group, runs in lines.items()
            if any(line.get(name) for run in runs for line in run for name in names)}


def plot_comparison(output_dirs: Sequence[Path], path: Path) -> None:
    """Writes the figure: a column per task; above the accuracy over the steps, with base and best constant answer,
    below the slices shown, or where a run counts its hints in tokens the share of the solution."""
    tasks = by_task(output_dirs)
    names = list(dict.fromkeys(group for groups in tasks.values() for group in groups))
    styles = line_styles(names)
    figure = Figure(figsize=(1 + 4.2 * len(tasks), 6.4), dpi=100, layout="constrained")
    rows = figure.subplots(2, len(tasks), squeeze=False, height_ratios=[3, 2])
    for (task, groups), accuracy, hints in zip(tasks.items(), *rows, strict=True):
        lines = {group: [read_metrics(run) for run in runs] for group, runs in groups.items()}
        draw_groups(accuracy, lines, ACCURACY, styles)
        base = base_of(lines)
        constant = constant_accuracy(next(iter(groups.values()))[0])
        draw_levels(accuracy, base and base[ACCURACY], constant)
        accuracy.set(title=f"{task}, {seed_counts(groups)}", ylabel="accuracy, greedy, no hint")
        accuracy.set_ylim(bottom=0)
        hinted, in_tokens = that_have(lines, "hint_slices", "hint_share"), that_have(lines, "rollouts/hinted")
        zero = [group for group in lines if group not in hinted]
        draw_groups(hints, hinted, "hint_share" if in_tokens else "hint_slices", styles)
        hints.set(xlabel=textwrap.fill(f"step (no hints: {', '.join(zero)})", 60) if zero else "step",
                  ylabel="share of the solution shown" if in_tokens else "slices shown per problem")
    add_legend(figure, names, num_columns=len(tasks))
    save_small(figure, path)


def draw_levels(axes: Axes, base: float | None, constant: float | None) -> None:
    """What a method is held against: accuracies of the base and of the best constant answer."""
    if base is not None:
        axes.axhline(base, color="grey", linestyle=":", label="base")
    if constant is not None:
        axes.axhline(constant, color="grey", linestyle="-.", linewidth=1, label="best constant pattern")


def add_legend(figure: Figure, names: Sequence[str], num_columns: int) -> None:
    """One for all panels, below them; wide lines, whose dashes can be seen."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(),
                                                                              strict=True)}
    labels = [label for label in (*names, "base", "best constant pattern") if label in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center",
                  ncols=min(len(labels), 3 * num_columns), frameon=False, handlelength=3)


def comparison_table(output_dirs: Sequence[Path]) -> str:
    """Markdown: a row per group, a column per task; the mean of the last evaluations and the 95 % interval of all their
    answers together. Above them the base (see `base_of`), below them the best constant answer."""
    tasks = by_task(output_dirs)
    names = list(dict.fromkeys(group for groups in tasks.values() for group in groups))
    evaluations = {task: {group: [read_evaluations(run) for run in runs] for group, runs in groups.items()}
                   for task, groups in tasks.items()}

    def cell(lines: list[dict]) -> str:
        low, high = evaluation_interval(*lines)
        return f"{mean(line[ACCURACY] for line in lines):.1%} ({low:.1%} to {high:.1%})"

    rows = []
    bases = [base_of(groups) for groups in evaluations.values()]
    if any(bases):
        rows.append(["base", *("" if base is None else cell([base]) for base in bases)])
    for name in names:
        rows.append([name, *(cell([run[-1] for run in groups[name]]) if name in groups else ""
                             for groups in evaluations.values())])
    constants = [constant_accuracy(next(iter(groups.values()))[0]) for groups in tasks.values()]
    if any(constant is not None for constant in constants):
        rows.append(["best constant pattern", *("" if c is None else f"{c:.1%}" for c in constants)])
    header = [f"{task}, {seed_counts(groups)}" for task, groups in tasks.items()]
    return table(["final accuracy (95 % interval, pooled)", *header], rows)


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
