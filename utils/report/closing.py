"""The end of a run: its closing table, and its curves."""

from pathlib import Path

from utils.report.runs import ACCURACY, evaluation_interval, read_evaluations, table
from utils.run import distributed
from utils.tasks.registry import best_constant_answer
from utils.types import Problem


def closing_table(output_dir: str | Path, extra: tuple[str, float, str] | None = None) -> str:
    """Markdown: the first evaluation (base, where it is at step 0), the last (trained), and `extra` = (name, accuracy,
    description), such as the best constant answer pattern. Accuracies carry the 95 % interval."""
    evaluations = read_evaluations(output_dir)
    rows = []
    for line in evaluations[:1] + evaluations[1:][-1:]:
        name = "trained" if line["step"] else "base"
        low, high = evaluation_interval(line)
        rows.append([
            f"{name} (step {line['step']})",
            f"{line[ACCURACY]:.1%} ({low:.1%} to {high:.1%})",
            f"{line['eval/format']:.1%}",
            f"{line['eval/response_tokens']:.1f}",
        ])
    if extra:
        name, accuracy, description = extra
        rows.append([f"{name}: {description}" if description else name, f"{accuracy:.1%}", "", ""])
    header = ["", f"accuracy on {evaluations[-1]['eval/n']} problems (95 % interval)", "format", "response tokens"]
    return table(header, rows)


def close_run(output_dir: str, test_problems: list[Problem]) -> None:
    """The last words of a finished run, from the first process: its curves and table."""
    if not distributed.is_main():
        return
    from utils.report.curves import plot_curves  # only here: matplotlib takes a third of a second at every start

    table_of_run = closing_table(output_dir, best_constant_answer(test_problems))
    print(f"curves: {plot_curves(output_dir)}\n\n{table_of_run}", flush=True)
