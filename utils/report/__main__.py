"""What runs come to: curves and closing table of one, tables and a figure of several.

    python -m utils.report RUN              writes RUN/curves.png, prints base against trained, and what was wrong
    python -m utils.report RUN RUN ...      prints one row per run and writes a figure with a panel per task;
                                            NAME_seed0, NAME_seed1, ... of one folder share a row and a line; where
                                            folders have runs of one name, the folder is part of it
    python -m utils.report RUN RUN ... --over_seeds --against A B     prints intervals over seeds, what each method has
                                            cost, and its differences from the methods A and B, paired by seed
    python -m utils.report RUN RUN ... --mean_over model     prints and draws each method's accuracy for each model that
                                            runs began with, and its mean over models
    python -m utils.report RUN ... --csv FILE                writes a row for each run, too
    python -m utils.report RUN ... --html FILE    writes one page that needs nothing else: curves, hints, samples
    python -m utils.report RUN ... --watch        shows that page on this machine while the runs go on
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from utils.report import comparison, over_models, over_seeds
from utils.report.closing import closing_table
from utils.report.comparison import several_runs_table
from utils.report.curves import plot_curves
from utils.report.page import watch, write_page
from utils.report.record import write_csv
from utils.report.runs import has_evaluation, read_metrics
from utils.run.doctor import diagnoses
from utils.run.errors import BadInput, require


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # output folders of training runs
    # Accuracy (0 to 1) of the best constant answer on the test set; left out: found from the run's data, if there.
    pattern_accuracy: float | None = None
    # Where the figure of several runs is written; left out: comparison.png (mean_over_models.png) beside the first run.
    figure: Path | None = None
    # Tables with intervals over seeds instead of those that pool all answers. By request: one seed has no interval.
    over_seeds: bool = False
    against: tuple[str, ...] = ()  # with over_seeds: the methods that all are held against; left out: each by each
    mean_over: Literal["none", "model"] = "none"  # draw the mean over models; two models or more on each task
    csv: Path | None = None  # where a row for each run is written: last and best evaluation, tokens
    html: Path | None = None  # where the page is written, instead of the above
    watch: bool = False  # serve the page on 127.0.0.1 and keep it up to date; runs need not have begun
    port: int = 8123  # of watch; 0 is a free one


def main(args: Args) -> None:
    if not args.runs:
        sys.exit("RUNS (none) must name at least one output_dir of a training run")
    if args.watch:
        for run in args.runs:
            if not run.is_dir():
                sys.exit(f"RUNS {run} must be a folder; a run makes it when it starts")
        return watch(args.runs, args.port)
    for run in args.runs:
        if not (run / "metrics.jsonl").is_file():
            sys.exit(f"RUNS {run} must be the output_dir of a training run, and it has no metrics.jsonl")
        if args.html is None and not has_evaluation(run):
            sys.exit(f"RUNS {run} has no evaluation yet, and nothing can be said of it")
    if args.html is not None:
        write_page(args.runs, args.html)
        return print(f"page: {args.html}")
    try:
        print_runs(args)
    except BadInput as error:
        sys.exit(str(error))


def print_runs(args: Args) -> None:
    """Raises BadInput where the runs are not what a flag needs."""
    constant = args.pattern_accuracy
    require(args.over_seeds or not args.against, "--against", " ".join(args.against), "needs --over_seeds")
    if args.csv is not None:
        write_csv(args.runs, args.csv)
        print(f"a row for each run: {args.csv}\n")
    if len(args.runs) == 1 and not args.over_seeds and args.mean_over == "none":
        constant = comparison.constant_accuracy(args.runs[0]) if constant is None else constant
        extra = None if constant is None else ("best constant pattern", constant, "")
        print(closing_table(args.runs[0], extra))
        print(f"\ncurves: {plot_curves(args.runs[0])}")
        for step, said in diagnoses(read_metrics(args.runs[0])):
            print(f"step {step}: {said}")
        return
    beside = args.runs[0].resolve().parent
    if args.over_seeds:
        print(over_seeds.report(args.runs, args.against, constant))
    if args.mean_over == "model":
        print("\n" * args.over_seeds + over_models.report(args.runs, constant))
        figure = args.figure or beside / "mean_over_models.png"
        over_models.plot_over_models(args.runs, figure)
    else:
        if not args.over_seeds:
            print_pooled(args.runs, constant)
        figure = args.figure or beside / "comparison.png"
        comparison.plot_comparison(args.runs, figure)
    print(f"\nfigure: {figure}")


def print_pooled(output_dirs: Sequence[Path], constant: float | None) -> None:
    """Tables whose intervals pool the answers of all seeds."""
    for task, groups in comparison.by_task(output_dirs).items():
        runs = [run for of_group in groups.values() for run in of_group]
        accuracy = comparison.constant_accuracy(runs[0]) if constant is None else constant
        print(f"{task}\n\n{several_runs_table(runs, accuracy)}\n")
    print(comparison.comparison_table(output_dirs))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
