"""Checkpoints: `<output_dir>/checkpoints/step_N/` with `hf/` (for transformers and vLLM), `state/` (for resuming) and
`manifest.json` (manifest.py): the run it belongs to, and size and hash of every file.

`state/` is written under a temporary name, forced to the disk and renamed when it is whole; `latest` names it after
that. Then `hf/` is added in the same way: a run that is killed between the two can be resumed, which adds it. Whatever
moment a run is killed at, `latest` names a checkpoint to resume. What is damaged later is found by the manifest, before
anything is loaded.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from utils.actor import Actor
from utils.adapters import save_adapters
from utils.manifest import NAME as MANIFEST
from utils.manifest import add_to_manifest, damage, force_to_disk, has_part, settled, write_manifest
from utils.problem_state import ProblemState
from utils.run import distributed, watchdog
from utils.run.errors import RunStopped, require
from utils.run.output_dir import plain, writing
from utils.run.trackers import TENSORBOARD

RUN_FILES = ("metrics.jsonl", "samples.jsonl", "args.json", "environment.json", "curves.png", "tracker.json")
MODEL, ADAPTER = "hf", "adapter"  # folders of a checkpoint
DISCARDED = "discarded_"  # before the names of checkpoints of a past that is now another
FREE = {  # settings that no number depends on but by way of the data: they may differ when a run is resumed
    "output_dir", "node_local_output", "resume", "resume_step", "reshape", "overwrite", "allow_changes", "check",
    "dump_batch", "timeout_minutes", "save_every", "save_minutes", "keep_last", "keep_every", "background_save",
    "max_skipped_updates", "probe_memory", "tracker", "verbosity", "profile_steps", "test_data", "prompt_column",
    "solution_column", "answer_column", "verifier",
}
CUT = ("processes", "--zero_stage", "--offload")  # what the files of a state are cut for

# ----- which run -----


def describe_run(settings: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a resumed run must have in common with the one that wrote the checkpoint. `fingerprints` are those of its
    data, by split."""
    return {
        "settings": plain({name: value for name, value in settings.items() if name not in FREE}),
        "data": dict(fingerprints),
        "processes": distributed.world_size(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The settings, data and processes in which two runs differ, by name, each in words."""

    def flat(run: Mapping[str, Any]) -> dict[str, Any]:
        settings = {f"--{name}": value for name, value in run["settings"].items()}
        data = {f"{split} problems (fingerprint)": value for split, value in run["data"].items()}
        return settings | data | {"processes": run["processes"]}

    old, new = flat(before), flat(now)
    return {name: f"{name} was {old.get(name, 'not there')} and is {new.get(name, 'not there')}"
            for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)}


def find(
    output_dir: str, resume: bool, resume_step: int, total_steps: int, run: Mapping[str, Any], allow_changes: bool,
    reshape: bool = False,
) -> tuple[int, list[str]]:
    """The step of the checkpoint to resume (`resume_step`, or the latest where that is 0), and in words what has
    changed since; step 0 without `resume`. Its files are checked against the manifest, in the first process. With
    `reshape` its state may be cut for another number of processes, ZeRO stage or place of the optimiser.

    Raises:
        BadInput: there is none, it is damaged, cut otherwise, or it belongs to another run.
    """
    if not resume:
        require(not resume_step, "--resume_step", resume_step, "needs --resume")
        require(not allow_changes, "--allow_changes", allow_changes, "needs --resume")
        require(not reshape, "--reshape", reshape, "needs --resume")
        return 0, []
    folder = Path(output_dir) / "checkpoints"
    latest = folder / "latest"
    if not resume_step:
        require(latest.is_file(), "--resume", output_dir, f"there is no checkpoint to resume ({latest} is missing)"
                + offer(folder))
    name = f"step_{resume_step}" if resume_step else latest.read_text().strip()
    step = int(name.removeprefix("step_"))
    require(step <= total_steps, "--total_steps", total_steps, f"the checkpoint to resume is at step {step}")
    problem = damage(folder / name, with_hashes=distributed.is_keeper())
    require(problem is None, "--resume", folder / name, f"{problem}{offer(folder, besides=name)}")
    before = json.loads((folder / name / MANIFEST).read_text())["run"]
    changes = differences(before, run)
    cut = [change for what, change in changes.items() if what in CUT]
    require(reshape or not cut, "--resume", folder / name, "its optimiser states are cut for the run that wrote it: "
            + "; ".join(cut) + ". Resume with the same, or give --reshape, which cuts them anew")
    others = [change for what, change in changes.items() if what not in CUT]
    require(allow_changes or not others, "--resume", folder / name,
            "the run that wrote it had other settings or data: " + "; ".join(others)
            + ". Resume with the same, or give --allow_changes")
    return step, list(changes.values())


def offer(folder: Path, besides: str = "") -> str:
    """The newest checkpoint whose files have the sizes of its manifest, as an offer; nothing where there is none."""
    whole = (step for step in reversed(steps_in(folder)) if f"step_{step}" != besides
             and damage(folder / f"step_{step}", with_hashes=False) is None)
    step = next(whole, None)
    return "" if step is None else f"; the newest other one is step_{step}, resume it with --resume_step {step}"


# ----- writing and reading one -----


def save(output_dir: str, step: int, actor: Actor, tokenizer: PreTrainedTokenizerBase, run: Mapping[str, Any],
         keep_last: int, keep_every: int, state: ProblemState | None = None) -> None:
    """Write checkpoint `step` of the run that `describe_run` describes, its state (the actor's, and that of problems
    where there is one) before its model; then drop the older ones but the `keep_last` newest (0: none is dropped) and
    the multiples of `keep_every` (0: no multiples). All ranks call together."""
    watchdog.phase("checkpoint")
    final, partial = places(output_dir, step)
    with writing(final, remove=partial):
        start_partial(partial)
        actor.save(partial / "state")
        if state is not None and distributed.is_keeper():
            state.save(partial / "state")
        make_whole(partial, final, step, run, settled(partial))
    add_model(output_dir, step, actor, tokenizer)
    drop(final.parent, step, keep_last, keep_every)


def places(output_dir: str, step: int) -> tuple[Path, Path]:
    """The folder of checkpoint `step`, and the one that it, or a part of it, is written in."""
    folder = Path(output_dir) / "checkpoints"
    return folder / f"step_{step}", folder / f".step_{step}.partial"


def make_whole(partial: Path, final: Path, step: int, run: Mapping[str, Any], mine: Mapping[str, list]) -> None:
    """What lies in `partial`, of which `mine` are the files of this rank, becomes checkpoint `step`. All ranks call
    together."""
    write_manifest(partial, step, run, mine)
    if distributed.is_keeper():
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        write_latest(final.parent, step)
    distributed.barrier()


def drop(folder: Path, step: int, keep_last: int, keep_every: int) -> None:
    """Remove the checkpoints before `step` that are not kept. All ranks call together."""
    with writing(folder / f"step_{step}"):
        for old in superfluous(folder, step, keep_last, keep_every) if distributed.is_keeper() else []:
            gone = old.rename(folder / f".{old.name}.partial")  # whole or away, never half there
            shutil.rmtree(gone)
    distributed.barrier()


def start_partial(partial: Path) -> None:
    """An empty folder for what is being written; what killed runs have left of theirs goes. All ranks call together."""
    if distributed.is_keeper():
        for abandoned in partial.parent.glob(".step_*.partial"):
            shutil.rmtree(abandoned)
        partial.mkdir(parents=True)
    distributed.barrier()


def add_model(output_dir: str, step: int, actor: Actor, tokenizer: PreTrainedTokenizerBase) -> None:
    """`hf/`, and `adapter/` where there are some, in checkpoint `step` of the first process, whose state is there, and
    is the actor's. All ranks call together."""
    final, partial = places(output_dir, step)
    with writing(final / MODEL, remove=partial):
        start_partial(partial)
        write(partial, actor, tokenizer)
        if distributed.is_main():
            for part in (ADAPTER, MODEL):  # the model last: it says that all is there
                if (partial / part).is_dir():
                    add_to_manifest(final, partial / part)
        if distributed.is_keeper():
            partial.rmdir()
        distributed.barrier()


def write(folder: Path, actor: Actor, tokenizer: PreTrainedTokenizerBase) -> None:
    """`hf/`, and `adapter/` where there are some, in `folder`. All ranks call together."""
    weights, adapters = model_copies(actor)
    if distributed.is_main():
        write_weights(folder, actor, weights, adapters)
        tokenizer.save_pretrained(folder / MODEL)
    distributed.barrier()


def model_copies(actor: Actor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and adapters where there are some, as `copies_of` has them."""
    return copies_of(actor.whole_weights()), copies_of(actor.adapter_weights() if actor.has_adapters else ())


def copies_of(buckets: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """On the CPU, in the first process; nothing in the others. All ranks call together."""
    copies = {}
    for bucket in buckets:
        if distributed.is_main():
            copies |= {name: weight.to("cpu", copy=True) for name, weight in bucket.items()}
    return copies


def write_weights(folder: Path, actor: Actor, weights: dict[str, Tensor], adapters: dict[str, Tensor]) -> None:
    """The folders MODEL, without its tokenizer, and ADAPTER, if there are adapters, in `folder`."""
    actor.model.save_pretrained(folder / MODEL, state_dict=weights)
    if adapters:
        save_adapters(folder / ADAPTER, actor.model, adapters)


def write_latest(folder: Path, step: int) -> None:
    name = folder / ".latest.partial"
    name.write_text(f"step_{step}\n")
    force_to_disk(name)
    os.replace(name, folder / "latest")
    force_to_disk(folder)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, in order."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_[0-9]*"))


def superfluous(folder: Path, step: int, keep_last: int, keep_every: int) -> list[Path]:
    """Of the checkpoints up to `step`, the newest, those that are neither among the `keep_last` newest nor at a
    multiple of `keep_every`."""
    steps = [number for number in steps_in(folder) if number <= step]
    old = steps[:-keep_last] if keep_last else []
    return [folder / f"step_{number}" for number in old if not (keep_every and number % keep_every == 0)]


def load(output_dir: str, step: int, actor: Actor, state: ProblemState | None = None, reshape: bool = False) -> None:
    """Restore checkpoint `step` into `actor`, and into `state`; `find` has seen that it is whole. With `reshape` the
    state may be cut otherwise than the actor's."""
    watchdog.phase("loading a checkpoint")
    folder = Path(output_dir) / "checkpoints"
    steps = sorted(set(distributed.gather([step])))
    if len(steps) > 1:  # killed between two machines' renaming
        raise RunStopped(f"{folder}: the latest checkpoints of the machines are of steps {steps}; give --resume_step "
                         f"{steps[0]}")
    actor.load(folder / f"step_{step}" / "state", reshape)
    if state is not None:
        state.load(folder / f"step_{step}" / "state")
    if distributed.is_main():
        print(f"resumed from {folder / f'step_{step}'}: weights, optimiser states and step", flush=True)
    if distributed.is_keeper():
        write_latest(folder, step)
        discard_later(Path(output_dir), step)


def complete(output_dir: str, step: int, actor: Actor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the model to checkpoint `step`, just loaded, where its run had no time left to write it."""
    folder = Path(output_dir) / "checkpoints" / f"step_{step}"
    if distributed.maximum(float(distributed.is_main() and not has_part(folder, MODEL))):
        add_model(output_dir, step, actor, tokenizer)


def discard_later(output_dir: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which the resumed run will take anew, so that nothing counts or offers them.
    The lines of their steps in metrics.jsonl and samples.jsonl, which the run is about to cut, are kept beside them."""
    folder = output_dir / "checkpoints"
    later = [number for number in steps_in(folder) if number > step]
    if not later:
        return
    for number in later:
        discarded = folder / f"{DISCARDED}step_{number}"
        shutil.rmtree(discarded, ignore_errors=True)  # of a past before that
        (folder / f"step_{number}").rename(discarded)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(output_dir / name, folder / f"{DISCARDED}{name}")
    names = ", ".join(f"{DISCARDED}step_{number}" for number in later)
    print(f"later checkpoints are kept as {names}, and the metrics of their steps beside them; nothing reads them",
          flush=True)


def clear(output_dir: str) -> None:
    """Remove what an earlier run left in `output_dir` (its known files only)."""
    if distributed.is_keeper():
        for name in RUN_FILES:
            (Path(output_dir) / name).unlink(missing_ok=True)
        for pattern in ("args.resumed_at_*.json", "environment.resumed_at_*.json", "bad_batch_step_*.safetensors"):
            for path in Path(output_dir).glob(pattern):
                path.unlink()
        for folder in ("checkpoints", "profile", TENSORBOARD):
            shutil.rmtree(Path(output_dir) / folder, ignore_errors=True)
    distributed.barrier()
