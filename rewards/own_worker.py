"""A process of rewards/pool.py with a verifier of the user's: `python -m rewards.own_worker FILE DIGEST`.
[ground truth as JSON, completion, seconds] as JSON in; [reward, correct, reason] out.

FILE is the user's own code and is imported as such: it may do what the user may. What a model wrote reaches its
`verify` as a text, and nothing here executes it. What the file prints is lost; where it raises, the reason says so.
"""

import importlib.util
import json
import math
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.answer import Score
from rewards.limits import limit_memory, serve, silence
from rewards.own_file import digest_of
from rewards.pool import RAISED


class Refused(Exception):
    """The file is no verifier; the message says why."""


def load(path: str, digest: str) -> Callable[[str, dict[str, Any]], Score]:
    """The function `verify` of the file, which must still be the one with that digest."""
    if digest_of(Path(path)) != digest:
        raise Refused(f"{path} has changed since the start; put it back, and go on with --resume")
    sys.path.append(str(Path(path).parent))  # last: what lies beside it can be imported, and hides nothing
    spec = importlib.util.spec_from_file_location("own_verifier", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refused(f"importing it raised {fault(error, path)}: {error}") from error
    if not callable(vars(module).get("verify")):
        raise Refused("it has no function verify(completion, ground_truth)")
    return module.verify


def fault(error: Exception, path: str) -> str:
    """The kind of error, and the last line of the file that was on its way."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return type(error).__name__ + (f" in line {lines[-1]}" if lines else "")


def judge(verify: Callable, completion: str, ground_truth: dict[str, Any], path: str) -> list:
    """Reward, correct, reason; those of a fault where the function raises, or returns anything but a Score."""
    try:
        found = verify(completion, ground_truth)
        reward, correct, reason = float(found.reward), bool(found.correct), str(found.reason)
        if not math.isfinite(reward):
            raise ValueError(f"a reward of {reward}")
        return [reward, correct, reason]
    except MemoryError:
        raise
    except Exception as error:
        return [0.0, False, f"{RAISED} {fault(error, path)}"]


def taken() -> int:
    """Bytes of address space that the process has by now, imports and all."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(path: str, digest: str) -> None:
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    silence()
    try:
        verify = load(path, digest)
    except Refused as error:
        print(json.dumps({"refused": " ".join(str(error).split())}), file=output, flush=True)
        return
    limit_memory(taken())
    serve(lambda ground_truth, completion: judge(verify, completion, json.loads(ground_truth), path), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
