"""When a run saves besides every so many steps, and how it ends when it is asked to."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from utils import checkpoint
from utils.actor import Actor
from utils.problem_state import ProblemState
from utils.run import distributed, processes, stopping
from utils.run.logger import Logger


@dataclass
class Saver:
    """Writes checkpoints of the run that `run` describes; `saved` is the step of the newest, -1 where there is none.
    `state` is what the run keeps of each problem, if it does."""

    output_dir: str
    actor: Actor
    tokenizer: PreTrainedTokenizerBase
    run: Mapping[str, Any]
    logger: Logger
    keep_last: int
    keep_every: int
    save_minutes: float
    saved: int
    state: ProblemState | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        stopping.listen(self.finish)
        stopping.is_saved(self.saved)

    def is_due(self) -> bool:
        """Whether `save_minutes` are over, by the clock of the first process; 0 are never. All ranks call together."""
        if not self.save_minutes:
            return False
        return bool(distributed.maximum(float(distributed.is_main() and self.minutes() >= self.save_minutes)))

    def minutes(self) -> float:
        return (time.monotonic() - self.saved_at) / 60

    def save(self, step: int) -> None:
        """All ranks call together."""
        checkpoint.save(self.output_dir, step, self.actor, self.tokenizer, self.run, self.keep_last, self.keep_every,
                        self.state)
        self.saved, self.saved_at = step, time.monotonic()
        stopping.is_saved(step)

    def finish(self, num_done: int) -> None:
        """The end of a run that is interrupted after `num_done` steps. All ranks call together."""
        if num_done != self.saved:
            self.save(num_done)
        self.logger.close()
        if distributed.is_main():
            print(f"interrupted after step {num_done}, saved; go on with --resume", flush=True)
        processes.end()
