"""A tracker shows metrics elsewhere while a run goes on. It works in a thread of its own and is never fatal: where it
fails or hangs, one line is printed, it is off, and the run goes on. The metrics files do not depend on it."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from utils.run.errors import require

PATIENCE = 8.0  # seconds that one call of the tracker may take, and that the end of the run waits for it
RUN_FILE = "tracker.json"  # in the output folder: which run of the tracker it is, for --resume


class Backend(Protocol):
    """A run of a tracker; made, used and finished in the tracker's thread."""

    def log(self, metrics: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class WandbRun:
    """Weights & Biases. Project and name of the run are the last two folders of the output folder. The x axis is our
    `step`: a resumed run logs the steps after its checkpoint again."""

    def __init__(self, output_dir: Path, settings: Mapping[str, Any], run_id: str):
        import wandb

        folder = output_dir.resolve()
        self.run = wandb.init(
            project=folder.parent.name or "runs", name=folder.name, dir=str(folder), config=dict(settings), id=run_id,
            resume="allow", settings=wandb.Settings(console="off", silent=True, login_timeout=PATIENCE),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, Any]) -> None:
        self.run.log(metrics)

    def finish(self) -> None:
        self.run.finish()


BACKENDS: dict[str, Callable[[Path, Mapping[str, Any], str], Backend]] = {"wandb": WandbRun}


def check_tracker(name: str) -> None:
    """Raises BadInput where the tracker's package is not installed."""
    if name != "none":
        spec = find_spec(name)  # of a mere folder of that name it has no origin; wandb leaves such folders
        require(spec is not None and spec.origin is not None, "--tracker", name,
                f"is not installed; pip install {name}")


def run_id(output_dir: Path, name: str, is_resumed: bool) -> str:
    """Of the run that is resumed, if it had this tracker; else a new one, which is written down."""
    path = output_dir / RUN_FILE
    if is_resumed and path.is_file():
        known = json.loads(path.read_text())
        if known["tracker"] == name:
            return known["id"]
    new = uuid.uuid4().hex[:8]
    path.write_text(json.dumps({"tracker": name, "id": new}) + "\n")
    return new


class Tracker:
    """Hands metrics to a tracker's thread; no call waits for it but `close`, for at most PATIENCE seconds."""

    def __init__(self, name: str, output_dir: Path, settings: Mapping[str, Any], is_resumed: bool,
                 say: Callable[[str], None]):
        self.name, self.say = name, say
        self.is_off = False
        self.busy_since: float | None = None
        self.todo: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.lock = threading.Lock()

        def begin() -> Backend:
            return BACKENDS[name](output_dir, settings, run_id(output_dir, name, is_resumed))

        self.thread = threading.Thread(target=self._work, args=(begin,), daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, with its `step`; what has no number is left out."""
        since = self.busy_since
        if since is not None and time.monotonic() - since > PATIENCE:
            self._give_up(f"it has not answered for {PATIENCE:g} seconds")
        if not self.is_off:
            self.todo.put({name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def close(self) -> None:
        self.todo.put(None)
        if not self.is_off:
            self.thread.join(PATIENCE)
            if self.thread.is_alive():
                self._give_up(f"it did not finish within {PATIENCE:g} seconds")

    def _work(self, begin: Callable[[], Backend]) -> None:
        try:
            backend = self._timed(begin)
            while (metrics := self.todo.get()) is not None and not self.is_off:
                self._timed(lambda metrics=metrics: backend.log(metrics))
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
