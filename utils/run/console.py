"""What a run shows while it goes on. On a terminal: a progress bar, and a small table at each evaluation. Elsewhere, as
in a log file: plain lines. quiet shows warnings, evaluations and the end; verbose a line for every step."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from utils.run.terminal import DIM, GREEN, YELLOW, escaped, has_colours, paint

STEP_FIELDS = {  # metric -> how a step shows it, where the script logged it
    "loss": "loss {:.3f}",
    "reward": "reward {:.3f}",
    "accuracy": "accuracy {:.1%}",
    "hint_share": "hint {:.0%}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
VERBOSE_FIELDS = {
    "entropy": "entropy {:.3f}", "kl_loss": "kl {:.3f}", "sft_loss": "sft {:.3f}", "grad_norm": "grad norm {:.2f}",
    "response_tokens": "response {:.0f} tokens", "truncated": "truncated {:.1%}", "flat_groups": "flat {:.0%}",
    "memory_gib": "memory {:.2f} GiB",
}
EVALUATION_FIELDS = {  # columns of the table
    "eval/accuracy": ("accuracy", "{:.1%}"), "eval/format": ("format", "{:.1%}"), "eval/reward": ("reward", "{:.3f}"),
    "eval/response_tokens": ("response tokens", "{:.1f}"), "eval/truncated": ("truncated", "{:.1%}"),
}
SHOWN = 5  # rows of that table: the first evaluation and the last ones
SECONDS = 10.0  # between two lines of steps, where there is no bar
SAMPLE_COLOURS = {"prompt": DIM, "hint": YELLOW, "response": GREEN}


class Console:
    """`done` steps of `total_steps` were taken before; `evaluations` are the lines of those before a resume."""

    def __init__(self, total_steps: int, done: int = 0, verbosity: str = "normal",
                 evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
        self.total_steps, self.first, self.verbosity = total_steps, done, verbosity
        self.evaluations = list(evaluations)
        self.start, self.last_line = time.monotonic(), float("-inf")
        has_bar = sys.stderr.isatty() and verbosity != "quiet"
        self.bar = tqdm(total=total_steps, initial=done, desc="step", unit="step", dynamic_ncols=True,
                        disable=not has_bar)

    def print(self, message: str) -> None:
        """Above the progress bar; what must be seen."""
        tqdm.write(message)

    def note(self, message: str) -> None:
        """What is good to know."""
        if self.verbosity != "quiet":
            self.print(message)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Moves the bar; without one, or where every step is wanted, a line."""
        shown = ", ".join(words(STEP_FIELDS, metrics))
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(step - self.bar.n)
        if self.verbosity == "verbose":
            seconds = {name: f"{name.removeprefix('seconds/')} {{:.2f}} s" for name in metrics
                       if name.startswith("seconds/") and not name.endswith("_rank")}
            self.print(", ".join([f"{self.place(step)}: {shown}", *words(VERBOSE_FIELDS | seconds, metrics)]))
        elif self.bar.disable and time.monotonic() - self.last_line >= SECONDS:
            self.last_line = time.monotonic()
            self.note(f"{self.place(step)}: {shown}")

    def place(self, step: int) -> str:
        """Where the run is, and how long the rest will take at the pace of this process, its evaluations included."""
        pace = (time.monotonic() - self.start) / max(step - self.first, 1)
        left = timedelta(seconds=round(pace * (self.total_steps - step)))
        return f"step {step}/{self.total_steps}, {pace:.2f} s a step, {left} left"

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.evaluations.append({"step": step} | dict(metrics))
        if sys.stdout.isatty():
            self.print(evaluation_table(self.evaluations))
            return
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        shown = (f"{name.removeprefix('eval/')} {value:.4g}" for name, value in numbers.items())
        self.print(f"step {step}: evaluation: {', '.join(shown)}")

    def sample(self, step: int, kind: str, texts: Mapping[str, str], reward: float, reason: str) -> None:
        """Coloured on a terminal, with plain labels elsewhere."""
        if has_colours():
            body = "".join(paint(text, SAMPLE_COLOURS[name]) for name, text in texts.items())
        else:
            body = "\n".join(f"[{name}] {escaped(text)}" for name, text in texts.items())
        self.note(f"--- step {step}, {kind} sample: reward {reward:g}, {reason}\n{body}\n---")

    def close(self) -> None:
        self.bar.close()


def words(forms: Mapping[str, str], metrics: Mapping[str, Any]) -> list[str]:
    """What of `forms` is there, with NaN for null."""
    return [form.format(float("nan") if metrics[name] is None else metrics[name])
            for name, form in forms.items() if name in metrics]


def evaluation_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The first evaluation and the last ones; after each accuracy the points that it is over the first."""
    shown = [*lines[:1], *lines[1:][1 - SHOWN :]]
    columns = {name: form for name, form in EVALUATION_FIELDS.items() if all(line.get(name) is not None
                                                                             for line in shown)}
    rows = [["evaluation, step", *(title for title, _ in columns.values())]]
    for line in shown:
        cells = [form.format(line[name]) for name, (_, form) in columns.items()]
        if "eval/accuracy" in columns and line is not shown[0]:
            cells[0] = f"{100 * (line['eval/accuracy'] - shown[0]['eval/accuracy']):+.1f}  {cells[0]}"
        rows.append([str(line["step"]), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
