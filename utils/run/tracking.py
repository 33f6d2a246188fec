"""Trackers show metrics elsewhere while a run goes on. Each works in a thread of its own and is never fatal: where it
fails or hangs, one line is printed, it is off, and the run goes on. The metrics files do not depend on it."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from utils.run.errors import require
from utils.run.trackers import BACKENDS, Backend, Run

PATIENCE = 8.0  # seconds that one call of a tracker may take, and that the end of the run waits for it
RUN_FILE = "tracker.json"  # in the output folder: {tracker: which of its runs this is}, for --resume
NONE = "none"


def check_trackers(names: Sequence[str]) -> None:
    """Raises BadInput where a tracker's package is not installed, or one is named twice, or beside none."""
    words = " ".join(names)
    require(len(set(names)) == len(names), "--tracker", words, "must not name one twice")
    require(NONE not in names or len(names) == 1, "--tracker", words, "none stands alone")
    for name in wanted(names):
        spec = find_spec(name)  # of a mere folder of that name it has no origin; wandb leaves such folders
        require(spec is not None and spec.origin is not None, "--tracker", name,
                f"is not installed; pip install {name}")


def wanted(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != NONE]


def run_ids(output_dir: Path, names: Sequence[str], is_resumed: bool) -> dict[str, str]:
    """By tracker: of the run that is resumed, where it had this tracker; else a new one, which is written down."""
    path, known = output_dir / RUN_FILE, {}
    if is_resumed and path.is_file():
        known = json.loads(path.read_text())
        if known.keys() == {"tracker", "id"}:  # by an earlier version, which knew one tracker
            known = {known["tracker"]: known["id"]}
    ids = known | {name: uuid.uuid4().hex[:8] for name in names if name not in known}
    path.write_text(json.dumps(ids) + "\n")
    return ids


def start_trackers(names: Sequence[str], output_dir: Path, settings: Mapping[str, Any], resume_step: int | None,
                   say: Callable[[str], None]) -> list["Tracker"]:
    """Those of --tracker. `say` is given the line that tells of one that fails."""
    names = wanted(names)
    ids = run_ids(output_dir, names, resume_step is not None) if names else {}
    return [Tracker(name, Run(output_dir, settings, ids[name], resume_step, PATIENCE), say) for name in names]


class Tracker:
    """Hands metrics to a tracker's thread; no call waits for it but `close`, for at most PATIENCE seconds."""

    def __init__(self, name: str, run: Run, say: Callable[[str], None]):
        self.name, self.say = name, say
        self.is_off = False
        self.busy_since: float | None = None
        self.todo: SimpleQueue[Callable[[Backend], None] | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, with its `step`; what has no number is left out."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._put(lambda backend: backend.log(numbers))

    def sample(self, sample: Mapping[str, Any]) -> None:
        """A line of samples.jsonl."""
        self._put(lambda backend: backend.sample(dict(sample)))

    def end(self) -> None:
        """Nothing more will come."""
        self.todo.put(None)

    def close(self) -> None:
        self.end()
        if not self.is_off:
            self.thread.join(PATIENCE)
            if self.thread.is_alive():
                self._give_up(f"it did not finish within {PATIENCE:g} seconds")

    def _put(self, call: Callable[[Backend], None]) -> None:
        since = self.busy_since
        if since is not None and time.monotonic() - since > PATIENCE:
            self._give_up(f"it has not answered for {PATIENCE:g} seconds")
        if not self.is_off:
            self.todo.put(call)

    def _work(self, run: Run) -> None:
        try:
            backend = self._timed(lambda: BACKENDS[self.name](run))
            while (call := self.todo.get()) is not None and not self.is_off:
                self._timed(lambda call=call: call(backend))
            if not self.is_off:
                self._timed(backend.finish)
        except Exception as error:  # whatever a tracker does, the run goes on
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split()))

    def _timed(self, call: Callable[[], Any]) -> Any:
        self.busy_since = time.monotonic()
        result = call()
        self.busy_since = None
        return result

    def _give_up(self, why: str) -> None:
        with self.lock:
            was_off, self.is_off = self.is_off, True
        if not was_off:
            self.say(f"tracker {self.name} is off, the run goes on: {why}")
