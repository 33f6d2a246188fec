"""The raw record of an experiment: a CSV file with a row for each run."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from utils.report.cost import tokens_of
from utils.report.lineage import lineage
from utils.report.methods import by_task_and_model
from utils.report.runs import ACCURACY, read_evaluations


def write_csv(output_dirs: Sequence[Path], path: Path) -> None:
    """A row for each run: what its last and its best evaluation say, and its tokens, empty where it does not tell."""
    rows = [row_of(run) | {"task": task, "model": model, "method": method, "seed": seed}
            for task, models in by_task_and_model(output_dirs).items() for model, methods in models.items()
            for method, seeds in methods.items() for seed, run in seeds.items()]
    names = list(dict.fromkeys(["task", "model", "method", "seed", *rows[0]]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row_of(run: Path) -> dict[str, str | float | None]:
    evaluations, tokens = read_evaluations(run), tokens_of(run)
    last, best = evaluations[-1], max(evaluations, key=lambda line: line[ACCURACY])
    before = [f"{folder.name} step {step}" if math.isfinite(step) else folder.name for folder, step in lineage(run)[1:]]
    return {
        "goes_on_from": ", ".join(before), "step": last["step"], "final_accuracy": last[ACCURACY],
        "test_problems": last["eval/n"], "best_accuracy": best[ACCURACY], "best_step": best["step"],
        "sampled_tokens": tokens and int(tokens.sampled), "trained_response_tokens": tokens and int(tokens.response),
        "trained_hint_tokens": tokens and int(tokens.hint),
        "trained_demonstration_tokens": tokens and int(tokens.demonstration),
        "forward_passes": tokens and int(tokens.forward_passes),
    }
