"""Accuracy averaged over models, as in the UFT paper's first figure: a panel for each model, then one of their mean.

A method's mean is over models of each model's mean over its seeds, at the steps that all of them have. A method that
lacks a model is in the panels of those it has, and in no mean.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from utils.report.comparison import (
    add_legend,
    base_of,
    constant_accuracy,
    draw_curve,
    draw_groups,
    draw_levels,
    mean_curve,
)
from utils.report.figures import line_styles, save_small
from utils.report.methods import by_task_and_model
from utils.report.runs import ACCURACY, read_evaluations, seed_counts, table
from utils.report.student import shown_interval
from utils.run.errors import require

Lines = dict[str, dict[str, dict[int, list[dict]]]]  # {model: {method: {seed: evaluations}}}


def read_tasks(output_dirs: Sequence[Path]) -> dict[str, Lines]:
    """The evaluations of runs by task. BadInput where a task has one model, or no method has all of them."""
    tasks = {task: {model: {method: {seed: read_evaluations(run) for seed, run in seeds.items()}
                            for method, seeds in methods.items()} for model, methods in models.items()}
             for task, models in by_task_and_model(output_dirs).items()}
    for task, models in tasks.items():
        require(len(models) > 1, "--mean_over", "model", "needs two models or more on each task, and all runs on "
                f"{task} begin with {next(iter(models))}")
        require(bool(whole(models)), "--mean_over", "model", f"no method has runs of all models on {task}: "
                + "; ".join(f"{model} has {', '.join(methods)}" for model, methods in models.items()))
    return tasks


def methods_of(tasks: Iterable[Lines]) -> list[str]:
    return list(dict.fromkeys(method for models in tasks for methods in models.values() for method in methods))


def whole(models: Lines) -> list[str]:
    """The methods that have a run of every model."""
    return [method for method in methods_of([models]) if all(method in methods for methods in models.values())]


def common_seeds(models: Lines, method: str) -> list[int]:
    """The seeds of the method where all models have the same; none otherwise."""
    seeds = [sorted(methods[method]) for methods in models.values()]
    return seeds[0] if all(of_model == seeds[0] for of_model in seeds) else []


def mean_of_curves(curves: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """At the steps that all have."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, values)))
    return steps, [fmean(of_curve[step] for of_curve in values) for step in steps]


def mean_over_models(models: Lines, method: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps; there the mean over models of their means over seeds; the least and the greatest that a seed's mean over
    models is, where all models have the same seeds, otherwise the mean itself."""
    steps, middle = mean_of_curves([mean_curve(list(methods[method].values()), ACCURACY)[:2]
                                    for methods in models.values()])
    of_seeds = [dict(zip(*mean_of_curves([mean_curve([methods[method][seed]], ACCURACY)[:2]
                                          for methods in models.values()]), strict=True))
                for seed in common_seeds(models, method)]
    at = [[of_seed[step] for of_seed in of_seeds] or [mean] for step, mean in zip(steps, middle, strict=True)]
    return steps, middle, list(map(min, at)), list(map(max, at))


def bases(models: Lines) -> list[float | None]:
    """Accuracies of the models as they were."""
    firsts = [base_of({method: list(seeds.values()) for method, seeds in methods.items()})
              for methods in models.values()]
    return [first and first[ACCURACY] for first in firsts]


def mean_if_whole(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(values)


def constants(output_dirs: Sequence[Path]) -> list[float | None]:
    """Of each task, the accuracy of the best constant answer."""
    return [constant_accuracy(next(run for methods in models.values() for seeds in methods.values()
                                   for run in seeds.values())) for models in by_task_and_model(output_dirs).values()]


def plot_over_models(output_dirs: Sequence[Path], path: Path) -> None:
    """Writes the figure: a row for each task, its panels one for each model and one for the mean."""
    tasks = read_tasks(output_dirs)
    names = methods_of(tasks.values())
    styles, num_columns = line_styles(names), 1 + max(map(len, tasks.values()))
    height = 0.6 + 0.1 * len(names) / num_columns + 3.6 * len(tasks)
    figure = Figure(figsize=(1 + 4.2 * num_columns, height), dpi=100, layout="constrained")
    rows = figure.subplots(len(tasks), num_columns, squeeze=False, sharey="row")
    for (task, models), constant, row in zip(tasks.items(), constants(output_dirs), rows, strict=True):
        of_models = bases(models)
        for axes, (model, methods), base in zip(row, models.items(), of_models, strict=False):
            groups = {method: list(seeds.values()) for method, seeds in methods.items()}
            draw_groups(axes, groups, ACCURACY, styles)
            draw_levels(axes, base, constant)
            axes.set(title=f"{task}, {model}, {seed_counts(groups)}", xlabel="step (band: all seeds)")
        for axes in row[len(models) :]:
            axes.set_axis_off()
        last = row[len(models)]
        last.set_axis_on()
        for method in whole(models):
            draw_curve(last, *mean_over_models(models, method), method, styles)
        draw_levels(last, mean_if_whole(of_models), constant)
        last.grid(alpha=0.25)
        last.set(title=f"{task}, mean of {len(models)} models", xlabel="step (band: all seeds' means over models)")
        row[0].set(ylabel="accuracy, greedy, no hint")
        row[0].set_ylim(bottom=0)
    add_legend(figure, names, num_columns)
    save_small(figure, path)


def models_table(task: str, models: Lines, constant: float | None = None) -> str:
    """Markdown: by the last evaluation of each run, a row for each method, its mean over seeds for each model, and the
    mean of these; then the methods that lack a model."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    def final(model: str, method: str) -> dict[int, float]:
        return {seed: lines[-1][ACCURACY] for seed, lines in models[model].get(method, {}).items()}

    of_models = bases(models)
    rows = [] if not any(base is not None for base in of_models) else [
        ["base", "", *map(shown, of_models), shown(mean_if_whole(of_models)), ""]]
    for method in methods_of([models]):
        finals = [final(model, method) for model in models]
        means = [fmean(of_model.values()) if of_model else None for of_model in finals]
        seeds = common_seeds(models, method) if all(finals) else []
        counts = sorted({len(of_model) for of_model in finals if of_model})
        of_seeds = [fmean(of_model[seed] for of_model in finals) for seed in seeds]
        rows.append([method, " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))), *map(shown, means),
                     shown(mean_if_whole(means)), shown_interval(of_seeds) if of_seeds else ""])
    if constant is not None:
        rows.append(["best constant pattern", "", *[shown(constant)] * len(models), shown(constant), ""])
    missing = {method: [model for model in models if method not in models[model]] for method in methods_of([models])}
    steps = sorted({lines[-1]["step"] for methods in models.values() for seeds in methods.values()
                    for lines in seeds.values()})
    notes = [f"Last evaluations are of steps {steps[0]} to {steps[-1]}."] if len(steps) > 1 else []
    left_out = "; ".join(f"{method} (no run of {', '.join(lacks)})" for method, lacks in missing.items() if lacks)
    header = [f"final accuracy, {task}", "seeds", *models, f"mean of {len(models)}", "95 % interval over seeds"]
    notes += [f"Not in the mean: {left_out}."] if left_out else []
    return "\n\n".join([table(header, rows), *notes])


def report(output_dirs: Sequence[Path], constant: float | None = None) -> str:
    """A table for each task."""
    tasks = read_tasks(output_dirs)
    return "\n\n".join(models_table(task, models, found if constant is None else constant)
                       for (task, models), found in zip(tasks.items(), constants(output_dirs), strict=True))
