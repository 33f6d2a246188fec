"""`manifest.json` of a checkpoint: the run it belongs to, and size and hash of every file."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.run import distributed, watchdog

NAME = "manifest.json"
OF_RANK = re.compile(r"_pp_rank_(\d+)_")  # in the names of DeepSpeed's files; those without are of a folder's first


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)


def own_files(folder: Path) -> list[Path]:
    """Those that this rank has written. Those of another machine may not be seen here yet."""
    ranks = {path: OF_RANK.search(path.name) for path in files_in(folder)}
    first = distributed.keeper()
    return [path for path, found in ranks.items() if (int(found[1]) if found else first) == distributed.rank()]


def hash_of(path: Path) -> str:
    watchdog.progress()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settled(folder: Path) -> dict[str, list]:
    """Size and hash of each file in `folder` that this rank has written, by name; forced to the disk."""
    return facts_of(own_files(folder), folder)


def facts_of(paths: Iterable[Path], root: Path) -> dict[str, list]:
    """Size and hash of each file, by its name below `root`; forced to the disk."""
    facts = {}
    for path in paths:
        facts[str(path.relative_to(root))] = [path.stat().st_size, hash_of(path)]
        force_to_disk(path)
    return facts


def write_manifest(folder: Path, step: int, run: Mapping[str, Any], mine: Mapping[str, list]) -> None:
    """Write the manifest of what all ranks have in `folder`, `mine` being the `settled` files of this one; one for each
    folder where machines have one each. All ranks call together."""
    of_ranks = distributed.gather([(distributed.keeper(), mine)])
    if distributed.is_keeper():
        here = [part for keeper, part in of_ranks if keeper == distributed.rank()]
        files = dict(sorted((name, facts) for part in here for name, facts in part.items()))
        (folder / NAME).write_text(as_text({"step": step, "run": run, "files": files}))
        for path in (folder / NAME, *(path for path in folder.rglob("*") if path.is_dir()), folder):
            force_to_disk(path)


def as_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def add_to_manifest(folder: Path, part: Path) -> None:
    """Move the folder `part` into `folder` as it is called, forced to the disk, and its files into the manifest there,
    which is as before until all of it is done."""
    files = facts_of(files_in(part), part.parent)
    shutil.rmtree(folder / part.name, ignore_errors=True)  # of a run that was killed here
    part.rename(folder / part.name)
    manifest = json.loads((folder / NAME).read_text())
    manifest["files"] = dict(sorted((manifest["files"] | files).items()))
    new = folder / f".{NAME}.partial"
    new.write_text(as_text(manifest))
    for path in (new, *(path for path in (folder / part.name).rglob("*") if path.is_dir()), folder / part.name):
        force_to_disk(path)
    new.replace(folder / NAME)
    force_to_disk(folder)


def has_part(folder: Path, part: str) -> bool:
    """Whether the manifest in `folder` has files of the folder `part`."""
    return any(name.startswith(f"{part}/") for name in json.loads((folder / NAME).read_text())["files"])


def damage(folder: Path, with_hashes: bool, part: str = "") -> str | None:
    """What is wrong with the checkpoint in `folder`, in words; None where its files are those of its manifest. `part`
    is what the names of those that matter begin with."""
    if not folder.is_dir():
        return "there is no such checkpoint"
    try:
        files = json.loads((folder / NAME).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{NAME} is missing or damaged"
    for name, (size, digest) in files.items():
        if not name.startswith(part):
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and had {size}"
        if with_hashes and hash_of(path) != digest:
            return f"{name} is not what was written (its hash differs)"
    return None


def force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
