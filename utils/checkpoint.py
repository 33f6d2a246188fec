"""Checkpoints: `<output_dir>/checkpoints/step_N/` with `hf/` (for transformers and vLLM) and `state/` (for resuming).

A checkpoint is written under a temporary name and renamed when it is whole; `latest` names it after that. Whatever
moment a run is killed at, `latest` names a whole checkpoint.
"""

import os
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from utils import distributed
from utils.zero import Actor

RUN_FILES = ("metrics.jsonl", "samples.jsonl", "args.json", "environment.json", "curves.png")

def save(output_dir: str, step: int, actor: Actor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write checkpoint `step`. All ranks call together."""
    folder = Path(output_dir) / "checkpoints"
    final, partial = folder / f"step_{step}", folder / f".step_{step}.partial"
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    actor.save(partial / "state")
    weights = {}
    for bucket in actor.whole_weights():
        if distributed.is_main():
            weights |= {name: weight.to("cpu", copy=True) for name, weight in bucket.items()}
    if distributed.is_main():
        actor.policy.model.save_pretrained(partial / "hf", state_dict=weights)
        tokenizer.save_pretrained(partial / "hf")
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        name = folder / ".latest.partial"
        name.write_text(f"step_{step}\n")
        os.replace(name, folder / "latest")
    distributed.barrier()

def load_latest(output_dir: str, actor: Actor) -> int:
    """Restore the newest checkpoint into `actor`; returns its step. `check_output_dir` has seen that there is one."""
    folder = Path(output_dir) / "checkpoints"
    name = (folder / "latest").read_text().strip()
    actor.load(folder / name / "state")
    if distributed.is_main():
        print(f"resumed from {folder / name}: weights, optimiser states and step", flush=True)
    return int(name.removeprefix("step_"))

def clear(output_dir: str) -> None:
    """Remove what an earlier run left in `output_dir` (its known files only)."""
    if distributed.is_main():
        for name in RUN_FILES:
            (Path(output_dir) / name).unlink(missing_ok=True)
        for pattern in ("args.resumed_at_*.json", "environment.resumed_at_*.json"):
            for path in Path(output_dir).glob(pattern):
                path.unlink()
        shutil.rmtree(Path(output_dir) / "checkpoints", ignore_errors=True)
    distributed.barrier()

