"""What runs come to: curves and closing table of one, tables and a figure of several.

    python -m utils.report RUN              writes RUN/curves.png, prints base against trained, and what was wrong
    python -m utils.report RUN RUN ...      prints one row per run and writes a figure with a panel per task;
                                            NAME_seed0, NAME_seed1, ... of one folder share a row and a line; where
                                            folders have runs of one name, the folder is part of it
    python -m utils.report RUN ... --html FILE    writes one page that needs nothing else: curves, hints, samples
    python -m utils.report RUN ... --watch        shows that page on this machine while the runs go on
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from utils.report import comparison
from utils.report.closing import closing_table
from utils.report.comparison import several_runs_table
from utils.report.curves import plot_curves
from utils.report.page import watch, write_page
from utils.report.runs import has_evaluation, read_metrics
from utils.run.doctor import diagnoses


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # output folders of training runs
    # Accuracy (0 to 1) of the best constant answer on the test set; left out: found from the run's data, if there.
    pattern_accuracy: float | None = None
    # Where the figure of several runs is written; left out: comparison.png beside the first run.
    figure: Path | None = None
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
    constant = args.pattern_accuracy
    if len(args.runs) == 1:
        constant = comparison.constant_accuracy(args.runs[0]) if constant is None else constant
        extra = None if constant is None else ("best constant pattern", constant, "")
        print(closing_table(args.runs[0], extra))
        print(f"\ncurves: {plot_curves(args.runs[0])}")
        for step, said in diagnoses(read_metrics(args.runs[0])):
            print(f"step {step}: {said}")
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
