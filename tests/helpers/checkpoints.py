"""Checkpoints without a model in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.manifest import files_in, hash_of

WEIGHTS = "hf/model.safetensors"


def write(folder: Path, step: int, run: Mapping[str, Any]) -> Path:
    """`folder` gets a whole one of `run`, as its latest."""
    path = folder / "checkpoints" / f"step_{step}"
    for name, text in (("state/ranks/0.pt", f"optimiser {step}"), (WEIGHTS, f"weights {step}")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    files = {str(file.relative_to(path)): [file.stat().st_size, hash_of(file)] for file in files_in(path)}
    (path / "manifest.json").write_text(json.dumps({"step": step, "run": run, "files": files}))
    (folder / "checkpoints" / "latest").write_text(f"step_{step}\n")
    return path
