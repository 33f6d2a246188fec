"""Tables of an experiment over methods and seeds: means with intervals over seeds, cost, differences in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from utils.report.comparison import base_of, constant_accuracy
from utils.report.cost import tokens_of
from utils.report.methods import by_task_and_model
from utils.report.runs import ACCURACY, read_evaluations, table
from utils.report.student import interval_over_seeds, p_value, shown_interval, stand_together
from utils.run.errors import require

Seeds = Mapping[int, Path]  # the runs of a method
ABOUT = """\
Final accuracy: the interval is over seeds (Student's t on their accuracies), what other seeds may bring on these test \
problems; none where all are alike. Tokens are means over seeds, in thousands, with those of the run that a run goes \
on from; cost is forward passes of a token, in thousands: one to sample it, three to train it."""
ABOUT_TASKS = "Means over seeds, in brackets the lowest and the highest; cost is the mean ratio, explained below."
ABOUT_DIFFERENCES = """\
Differences: row less column, percentage points of final accuracy, paired by seed, 95 % interval over seeds \
(Student's t). \\* leaves out 0 taken alone, as 5 % of a table's comparisons would by chance; \\*\\* also by Holm's \
correction for all comparisons of the table; (all seeds): each has this difference, so there is no interval, no test."""


def final_accuracies(seeds: Seeds) -> dict[int, float]:
    """By the last evaluation of each seed."""
    return {seed: read_evaluations(run)[-1][ACCURACY] for seed, run in seeds.items()}


def methods_table(methods: Mapping[str, Seeds], against: str = "", constant: float | None = None) -> str:
    """Markdown: base, a row for each method, and the best constant answer. Costs are relative to the method `against`,
    if it is there."""
    costs = {method: mean_tokens(seeds) for method, seeds in methods.items()}
    unit = (costs.get(against) or [0.0])[-1]
    rows = [] if (base := base_row(methods)) is None else [base]
    for method, seeds in methods.items():
        accuracies = list(final_accuracies(seeds).values())
        steps = sorted({read_evaluations(run)[-1]["step"] for run in seeds.values()})
        cost = costs[method]
        rows.append([
            method, str(len(seeds)), str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
            f"{fmean(accuracies):.1%}", shown_interval(accuracies),
            *([""] * 5 if cost is None else (f"{number / 1000:,.0f}" for number in cost)),
            *([f"{cost[-1] / unit:.2f}" if cost else ""] if unit else []),
        ])
    constant = constant_accuracy(next(run for seeds in methods.values() for run in seeds.values())) \
        if constant is None else constant
    if constant is not None:
        rows.append(["best constant pattern", "", "", f"{constant:.1%}", *[""] * 6])
    header = ["method", "seeds", "step", "final accuracy", "95 % interval over seeds", "sampled", "trained: responses",
              "hints", "demonstrations", "cost", *([f"cost / {against}"] if unit else [])]
    return table(header, [row + [""] * (len(header) - len(row)) for row in rows])


def tasks_table(settings: Mapping[str, Mapping[str, Seeds]], against: str = "") -> str:
    """Markdown: a row for each method, the best mean first, a column for each setting with the mean and the range of
    its seeds, and of those methods that every setting has the means over settings."""
    of_each = {setting: {method: list(final_accuracies(seeds).values()) for method, seeds in methods.items()}
               for setting, methods in settings.items()}
    names = dict.fromkeys(method for of_setting in of_each.values() for method in of_setting)
    costs = [{method: mean_tokens(seeds) for method, seeds in methods.items()} for methods in settings.values()]
    means = {name: fmean(fmean(of_setting[name]) for of_setting in of_each.values()) for name in names
             if all(name in of_setting for of_setting in of_each.values())}
    has_costs = against in means and all(cost[name] and cost[against] for cost in costs for name in means)
    rows = []
    for name in sorted(names, key=lambda name: -means.get(name, -1.0)):
        row = [name, *(shown_range(of_setting.get(name, [])) for of_setting in of_each.values())]
        if name in means:
            row.append(f"{means[name]:.1%}")
            row += [f"{fmean(cost[name][-1] / cost[against][-1] for cost in costs):.2f}"] if has_costs else []
        rows.append(row)
    rows.append(["base", *(row[-1] if (row := base_row(methods)) else "" for methods in settings.values())])
    header = ["final accuracy", *settings, "mean of these", *([f"cost / {against}"] if has_costs else [])]
    return table(header, [row + [""] * (len(header) - len(row)) for row in rows])


def shown_range(accuracies: Sequence[float]) -> str:
    """Mean, and lowest to highest where whole percents tell them apart."""
    if not accuracies:
        return ""
    low, high = (f"{100 * accuracy:.0f}" for accuracy in (min(accuracies), max(accuracies)))
    return f"{fmean(accuracies):.1%}" + (f" ({low} to {high})" if low != high else "")


def base_row(methods: Mapping[str, Seeds]) -> list[str] | None:
    base = base_of({method: [read_evaluations(run) for run in seeds.values()] for method, seeds in methods.items()})
    return None if base is None else ["base", "", "0", f"{base[ACCURACY]:.1%}"]


def mean_tokens(seeds: Seeds) -> list[float] | None:
    """Means over seeds: sampled, trained of responses, hints, demonstrations; forward passes."""
    tokens = [tokens_of(run) for run in seeds.values()]
    if None in tokens:
        return None
    numbers = [(one.sampled, one.response, one.hint, one.demonstration, one.forward_passes) for one in tokens]
    return [fmean(of_kind) for of_kind in zip(*numbers, strict=True)]


# ----- differences -----


@dataclass(frozen=True)
class Difference:
    """Of the final accuracies of two methods, seed by seed; those of seeds that both have."""

    by_seed: tuple[float, ...]

    @property
    def is_tested(self) -> bool:
        """Whether t says anything: two seeds or more, and a spread. Seeds with one difference, as where both methods
        solve all or nothing, would give an interval of no width."""
        return len(self.by_seed) > 1 and max(self.by_seed) - min(self.by_seed) > 1e-12

    def shown(self, mark: str = "") -> str:
        """Percentage points."""
        if not self.by_seed:
            return "no seed of both"
        mean = f"{100 * fmean(self.by_seed):+.1f}"
        if not self.is_tested:
            return f"{mean} (all seeds)" if len(self.by_seed) > 1 else f"{mean} (one seed)"
        low, high = interval_over_seeds(self.by_seed, -1.0, 1.0)
        return f"{mean} ({100 * low:+.1f} to {100 * high:+.1f}){mark}"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    return Difference(tuple(first[seed] - second[seed] for seed in first if seed in second))


def differences_table(methods: Mapping[str, Seeds], against: Sequence[str]) -> str:
    """Markdown: a row for each method, a column for each of `against`, or for every method before it where that is
    empty. ABOUT_DIFFERENCES says what the marks mean."""
    accuracies = {method: final_accuracies(seeds) for method, seeds in methods.items()}
    names = list(methods)
    columns = [name for name in against if name in methods] or names[:-1]
    rows = [name for name in names if against or name != names[0]]
    pairs = {(row, column): difference(accuracies[row], accuracies[column]) for row in rows for column in columns
             if row != column and (against or names.index(column) < names.index(row))}
    once = {frozenset(pair): p_value(one.by_seed) for pair, one in pairs.items() if one.is_tested}
    together = dict(zip(once, stand_together(list(once.values())), strict=True))

    def cell(row: str, column: str) -> str:
        pair = frozenset((row, column))
        mark = " **" if together.get(pair) else " *" if once.get(pair, 1.0) < 0.05 else ""
        return pairs[row, column].shown(mark) if (row, column) in pairs else ""

    rows_shown = [[row, *(cell(row, column) for column in columns)] for row in rows]
    return table([f"less that of ({len(once)} comparisons)", *columns], rows_shown)


def report(output_dirs: Sequence[Path], against: Sequence[str], constant: float | None = None) -> str:
    """A table over tasks (and models), where there are several, and both others for each. BadInput where a method of
    `against` is in no task."""
    tasks = by_task_and_model(output_dirs)
    known = dict.fromkeys(method for models in tasks.values() for methods in models.values() for method in methods)
    for method in against:
        require(method in known, "--against", method, f"must be one of the methods: {', '.join(known)}")
    settings = {f"{task}, {model}" if len(models) > 1 else task: methods
                for task, models in tasks.items() for model, methods in models.items()}
    parts = [tasks_table(settings, *against[:1]), ABOUT_TASKS] if len(settings) > 1 else []
    for name, methods in settings.items():
        parts += [name, methods_table(methods, *against[:1], constant=constant)]
        if len(methods) > 1:
            parts.append(differences_table(methods, [name for name in against if name in methods]))
    has_differences = any(len(methods) > 1 for methods in settings.values())
    return "\n\n".join([*parts, ABOUT, *([ABOUT_DIFFERENCES] if has_differences else [])])
