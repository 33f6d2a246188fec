"""What each tracker's library is told. Metrics have the names of metrics.jsonl, their x axis is our `step`; samples are
tables of prompt, hint, response and reward. Project and name of a run are the last two folders of its output folder.

    tensorboard   event files in <output_dir>/tensorboard; `tensorboard --logdir runs` shows them
    wandb         Weights & Biases; WANDB_MODE=offline keeps the run in <output_dir>/wandb
    trackio       a database in TRACKIO_DIR (~/.cache/huggingface/trackio); `trackio show`. TRACKIO_SPACE_ID: a Space
"""

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

COLUMNS = ("step", "prompt", "hint", "response", "reward", "reason")  # of a table of samples
KEPT = 100  # rows of a table, the newest
TENSORBOARD = "tensorboard"  # its folder in an output folder


@dataclass(frozen=True)
class Run:
    """What a tracker is told at the start. A resumed run has the id that it had, and logs the steps after
    `resume_step` again."""

    output_dir: Path
    settings: Mapping[str, Any]
    id: str
    resume_step: int | None = None
    patience: float = 8.0

    @property
    def names(self) -> tuple[str, str]:
        folder = self.output_dir.resolve()
        return folder.parent.name or "runs", folder.name


class Backend(Protocol):
    """A run of a tracker; made, used and finished in the tracker's thread."""

    def log(self, metrics: dict[str, Any]) -> None: ...

    def sample(self, sample: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class TensorBoardRun:
    def __init__(self, run: Run):
        from torch.utils.tensorboard import SummaryWriter

        after = None if run.resume_step is None else run.resume_step + 1  # what was written of these is not shown
        self.writer = SummaryWriter(str(run.output_dir / TENSORBOARD), purge_step=after)
        self.writer.add_text("args", f"```json\n{json.dumps(run.settings, indent=2)}\n```", run.resume_step or 0)

    def log(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, metrics["step"])
        self.writer.flush()

    def sample(self, sample: dict[str, Any]) -> None:
        rows = (f"<tr><th>{name}</th><td><pre>{html.escape(str(sample[name]))}</pre></td></tr>" for name in COLUMNS)
        table = f"<table>{''.join(rows)}</table>".replace("\n", "&#10;")  # an empty line would end it for Markdown
        self.writer.add_text(f"samples/{sample['kind']}", table, sample["step"])
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


class Tables:
    """The rows of samples of each kind so far."""

    def __init__(self) -> None:
        self.rows: dict[str, list[list[Any]]] = {}

    def add(self, sample: Mapping[str, Any]) -> list[list[Any]]:
        rows = self.rows.setdefault(sample["kind"], [])
        rows.append([sample[name] for name in COLUMNS])
        return rows[-KEPT:]


class WandbRun:
    def __init__(self, run: Run):
        import wandb

        project, name = run.names
        self.table, self.tables = wandb.Table, Tables()
        self.run = wandb.init(
            project=project, name=name, dir=str(run.output_dir.resolve()), config=dict(run.settings), id=run.id,
            resume="allow", settings=wandb.Settings(console="off", silent=True, login_timeout=run.patience),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, Any]) -> None:
        self.run.log(metrics)

    def sample(self, sample: dict[str, Any]) -> None:
        table = self.table(columns=list(COLUMNS), data=self.tables.add(sample))
        self.run.log({"step": sample["step"], f"samples/{sample['kind']}": table})

    def finish(self) -> None:
        self.run.finish()


class TrackioRun:
    """The name has the id too: trackio knows a run by its name."""

    def __init__(self, run: Run):
        import trackio

        project, name = run.names
        self.table, self.tables = trackio.Table, Tables()
        self.run = trackio.init(project=project, name=f"{name}-{run.id}", config=dict(run.settings), resume="allow",
                                embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def log(self, metrics: dict[str, Any]) -> None:
        self.run.log({name: value for name, value in metrics.items() if name != "step"}, step=metrics["step"])

    def sample(self, sample: dict[str, Any]) -> None:
        table = self.table(columns=list(COLUMNS), data=self.tables.add(sample))
        self.run.log({f"samples/{sample['kind']}": table}, step=sample["step"])

    def finish(self) -> None:
        self.run.finish()


BACKENDS: dict[str, Callable[[Run], Backend]] = {
    "tensorboard": TensorBoardRun, "wandb": WandbRun, "trackio": TrackioRun,
}
