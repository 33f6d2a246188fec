"""A verifier in a Python file of the user's: its `verify(completion, ground_truth) -> Score` runs in processes of its
own (own_worker.py), with the limit on time of all comparisons. Only the user names such a file; data never do."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rewards import pool


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


class OwnFile(NamedTuple):
    """`digest` tells two versions of the file apart: answers that another one judged are other data."""

    path: str
    digest: str

    @classmethod
    def of(cls, path: str) -> "OwnFile":
        """ValueError: no such file, or no worker starts with it."""
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise ValueError("no such file")
        verifier = cls(str(file), digest_of(file))
        workers = pool.pool_of(verifier.command)
        try:
            workers.start_one()
        except (pool.WorkerRefuses, RuntimeError) as error:
            raise ValueError(str(error)) from error
        return verifier

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "rewards.own_worker", self.path, self.digest)

    def verify(self, completion: str, ground_truth: Mapping[str, Any]) -> pool.Comparison:
        """ValueError: `ground_truth` cannot be written as JSON."""
        try:
            return pool.Comparison(json.dumps(ground_truth), completion, self.command)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"ground_truth cannot be given to {self.name} as JSON ({error})") from error
