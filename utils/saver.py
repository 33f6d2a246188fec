"""When a run saves besides every so many steps, what it does meanwhile, and how it ends when it is asked to."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from utils import checkpoint
from utils.actor import Actor
from utils.manifest import settled
from utils.problem_state import ProblemState
from utils.run import distributed, processes, stopping, watchdog
from utils.run.logger import Logger
from utils.run.output_dir import writing


class BackgroundSave:
    """Checkpoint `step` on its way, written by a thread from copies in CPU memory while the run goes on. All ranks make
    it, and call its methods, together.

    What the ranks do together (copying, and at the end the manifest, the name and `latest`) is done by their main
    threads, between two steps; the threads only write, hash and force to the disk what is this rank's own. So the
    promise of checkpoint.py holds: nothing counts before all of it is there.

    DeepSpeed's own engine for that (0.19.8, `decoupled`) sends all states to another process, goes on without a word
    where that has died, and knows of no manifest.
    """

    def __init__(self, output_dir: str, step: int, actor: Actor, tokenizer: PreTrainedTokenizerBase,
                 run: Mapping[str, Any], state: ProblemState | None = None) -> None:
        watchdog.phase("checkpoint")
        self.step, self.run, self.actor = step, run, actor
        self.final, self.partial = checkpoint.places(output_dir, step)
        self.error: BaseException | None = None
        self.files: dict[str, list] = {}
        with writing(self.final, remove=self.partial):
            checkpoint.start_partial(self.partial)
            copies, model = actor.copy_state(self.partial / "state"), checkpoint.model_copies(actor)
            if state is not None and distributed.is_keeper():
                state.save(self.partial / "state")
            if distributed.is_main():  # not by the thread: a tokenizer that is in use cannot be saved
                tokenizer.save_pretrained(self.partial / checkpoint.MODEL)
        self.thread = threading.Thread(target=self._write, args=(copies, model), name="checkpoint", daemon=True)
        self.thread.start()

    def _write(self, copies: list, model: tuple[dict, dict]) -> None:
        try:
            self.actor.write_state(copies)
            if distributed.is_main():
                checkpoint.write_weights(self.partial, self.actor, *model)
            self.files = settled(self.partial)
        except BaseException as error:  # told by the main thread
            self.error = error

    def is_written(self) -> bool:
        """Whether the threads of all ranks are done. Raises what went wrong in this one's, as `finish` does."""
        is_busy = self.thread.is_alive()
        self._check()
        return not distributed.maximum(float(is_busy))

    def finish(self, keep_last: int, keep_every: int) -> None:
        """Wait until it is written, and let it count; then older ones are dropped, as by checkpoint.save."""
        watchdog.phase("checkpoint, waiting for the thread that writes it")
        self.thread.join()
        self._check()
        with writing(self.final, remove=self.partial):
            checkpoint.make_whole(self.partial, self.final, self.step, self.run, self.files)
        checkpoint.drop(self.final.parent, self.step, keep_last, keep_every)

    def _check(self) -> None:
        if self.error is not None:
            with writing(self.final, remove=self.partial):
                raise self.error


@dataclass
class Saver:
    """Writes checkpoints of the run that `run` describes; `saved` is the step of the newest, -1 where there is none.
    `state` is what the run keeps of each problem, if it does.

    With `in_background` those before the last step are written while the run goes on, one at a time: `on_its_way`. It
    is looked after between two steps (`is_due`); the next one, the last one and the end of the run wait for it.
    """

    output_dir: str
    actor: Actor
    tokenizer: PreTrainedTokenizerBase
    run: Mapping[str, Any]
    logger: Logger
    keep_last: int
    keep_every: int
    save_minutes: float
    in_background: bool
    last_step: int
    saved: int
    state: ProblemState | None = None
    on_its_way: BackgroundSave | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        stopping.listen(self.finish)
        stopping.is_saved(self.saved)

    def is_due(self) -> bool:
        """Whether `save_minutes` are over, by the clock of the first process; 0 are never. All ranks call together."""
        if self.on_its_way is not None and self.on_its_way.is_written():
            self.settle()
        if not self.save_minutes:
            return False
        return bool(distributed.maximum(float(distributed.is_main() and self.minutes() >= self.save_minutes)))

    def minutes(self) -> float:
        return (time.monotonic() - self.saved_at) / 60

    def save(self, step: int) -> None:
        """All ranks call together."""
        self.settle()
        if self.in_background and step != self.last_step:
            self.on_its_way = BackgroundSave(self.output_dir, step, self.actor, self.tokenizer, self.run, self.state)
        else:
            self.save_now(step)
        self.saved_at = time.monotonic()

    def save_now(self, step: int) -> None:
        checkpoint.save(self.output_dir, step, self.actor, self.tokenizer, self.run, self.keep_last, self.keep_every,
                        self.state)
        self.has(step)

    def settle(self) -> None:
        """What is on its way counts after this. All ranks call together."""
        if self.on_its_way is not None:
            self.on_its_way.finish(self.keep_last, self.keep_every)
            self.has(self.on_its_way.step)
            self.on_its_way = None

    def has(self, step: int) -> None:
        self.saved = step
        stopping.is_saved(step)

    def finish(self, num_done: int) -> None:
        """The end of a run that is interrupted after `num_done` steps. All ranks call together."""
        self.settle()
        if num_done != self.saved:
            self.save_now(num_done)
        self.logger.close()
        if distributed.is_main():
            print(f"interrupted after step {num_done}, saved; go on with --resume", flush=True)
        processes.end()
