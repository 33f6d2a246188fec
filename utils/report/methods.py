"""The runs of an experiment by task, model, method and seed."""

from collections.abc import Sequence
from pathlib import Path

from utils.report.comparison import by_task
from utils.report.lineage import origin, seed_of
from utils.report.runs import distinct_names, named_groups
from utils.run.errors import BadInput


def by_task_and_model(output_dirs: Sequence[Path]) -> dict[str, dict[str, dict[str, dict[int, Path]]]]:
    """{task: {model: {method: {seed: run}}}}. A model is named by what tells it from the task's others, a method by its
    folder without _seedN; runs that go on from another belong to the model that this began with.

    Raises:
        BadInput: two runs of a method have one seed.
    """
    tasks: dict[str, dict[str, dict[str, dict[int, Path]]]] = {}
    for task, groups in by_task(output_dirs).items():
        models: dict[Path, list[Path]] = {}
        for run in (run for runs in groups.values() for run in runs):
            models.setdefault(origin(run), []).append(run)
        names = distinct_names(list(models))
        tasks[task] = {names[model]: {method: by_seed(of_method) for method, of_method in named_groups(runs).items()}
                       for model, runs in models.items()}
    return tasks


def by_seed(runs: Sequence[Path]) -> dict[int, Path]:
    seeds: dict[int, Path] = {}
    for run in runs:
        seed = seed_of(run)
        if seed in seeds and seeds[seed].resolve() != run.resolve():
            raise BadInput(f"RUNS {seeds[seed]} and {run} both have --seed {seed}: they are no two seeds")
        seeds[seed] = run
    return dict(sorted(seeds.items()))
