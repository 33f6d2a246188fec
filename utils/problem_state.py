"""Numbers that a run keeps of each training problem from step to step, and takes along in its checkpoints."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from utils.run import distributed
from utils.run.errors import RunStopped
from utils.types import Problem

FILE = "problems.json"  # in a checkpoint's state


class ProblemState:
    """`first` names the numbers of a problem, and what they are for the first ones. One that comes later begins with
    running means of what the steps have made of theirs. Equal on all ranks; it changes in `put` and `merge`
    alone."""

    def __init__(self, first: Mapping[str, float]):
        self.names = tuple(first)
        self.means = tuple(first.values())
        self.known: dict[int, tuple[float, ...]] = {}  # by the problem's row

    def of(self, problem: Problem) -> tuple[float, ...]:
        """The numbers of `problem`, in the order of their names."""
        return self.known.get(problem.index, self.means)

    def put(self, changed: Mapping[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
        """Take over numbers of problems, by their rows, from all ranks, which call together; returns them all."""
        of_all = {index: numbers for of_rank in distributed.gather([changed]) for index, numbers in of_rank.items()}
        self.known |= of_all
        return of_all

    def merge(self, changed: Mapping[int, tuple[float, ...]], mean_rate: float) -> dict[str, float]:
        """Take over the numbers of the step's problems, by their rows, from all ranks; the running means go `mean_rate`
        of the way to the means of these. Returns the running means for the step's metrics, and the number of problems
        met. All ranks call together, after the step's last update: a step that is given up before changes nothing."""
        of_step = self.put(changed)
        self.means = tuple(mean + mean_rate * (math.fsum(column) / len(of_step) - mean)  # fsum: whatever the order
                           for mean, column in zip(self.means, zip(*of_step.values(), strict=True), strict=True))
        return dict(zip(self.names, self.means, strict=True)) | {"problems_met": len(self.known)}

    def save(self, folder: Path) -> None:
        """Write `problems.json` in `folder`: each float as the shortest text that gives the same float again."""
        known = {str(index): self.known[index] for index in sorted(self.known)}
        (folder / FILE).write_text(json.dumps({"names": self.names, "means": self.means, "problems": known}))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            RunStopped: there is none, or one with other numbers: another script's checkpoint.
        """
        path = folder / FILE
        written = json.loads(path.read_text()) if path.is_file() else {"names": ()}
        if tuple(written["names"]) != self.names:
            raise RunStopped(f"--resume: {path} does not hold {', '.join(self.names)} of each problem: the checkpoint "
                             "is of another script. Start a new run with its hf folder as --model")
        self.means = tuple(written["means"])
        self.known = {int(index): tuple(numbers) for index, numbers in written["problems"].items()}
