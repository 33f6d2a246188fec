"""What this process computes on: a GPU that answers; or the CPU, where there is no GPU or the user asked for it."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

from utils.run import launcher
from utils.run.errors import BadMachine

NONE_VISIBLE = ("", "-1")  # CUDA_VISIBLE_DEVICES that asks for the CPU
AMPERE = (8, 0)  # compute capability
MMAP_THRESHOLD = -3  # glibc's number of that setting
LARGE_TENSOR = 8 << 20  # bytes


def settle() -> None:
    """Before anything asks PyTorch for a GPU: with DS_ACCELERATOR=cpu none is visible from here on.

    Raises:
        BadMachine: PyTorch cannot use the GPU that is here, or there are fewer than processes. Not where the CPU is
            asked for.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed's launcher names GPUs 0, 1, .. there for a CPU too
    if os.environ.get("CUDA_VISIBLE_DEVICES") in NONE_VISIBLE:
        return
    if not (torch.cuda.is_available() or has_nvidia_gpu()):
        return
    if launcher.variable("CUDA_VISIBLE_DEVICES") in NONE_VISIBLE:
        raise BadMachine("CUDA_VISIBLE_DEVICES names no GPU, but DeepSpeed's launcher shows its processes the first "
                         "ones all the same; give DS_ACCELERATOR=cpu too")
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().split("\n")[0].split(". ")[0]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible})"
        raise BadMachine(f"an NVIDIA GPU is here, and PyTorch {torch.__version__} cannot use it: {why}{visible}. See "
                         "launch_scripts/README.md, or compute on the CPU: DS_ACCELERATOR=cpu") from error
    there, processes = torch.cuda.device_count(), num_processes()
    if there < processes:
        raise BadMachine(f"{processes} processes are started on this machine, and it has {there} GPUs for them: give "
                         f"deepspeed --num_gpus {there}")


def has_nvidia_gpu() -> bool:
    """Whether the machine has one, whatever PyTorch says."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    program = shutil.which("nvidia-smi")  # Windows' subsystem for Linux has no such files
    try:
        return program is not None and "GPU 0" in subprocess.run([program, "-L"], capture_output=True, text=True,
                                                                 timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def give_back_freed_tensors() -> None:
    """From here on the memory of large tensors on a CPU goes back to the system as they are freed, which takes up to a
    fifth more time. By itself glibc keeps those below 32 MiB, and being aligned the next one of that size often does
    not fit where the last one was: of checkpointed layers several times as much is kept as is alive."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # in glibc; others have nothing of the kind
        mallopt(MMAP_THRESHOLD, LARGE_TENSOR)


def num_processes() -> int:
    """How many processes of the run are on this machine, as DeepSpeed's launcher or torchrun says."""
    environ = os.environ
    return int(environ.get("LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or environ.get("WORLD_SIZE") or 1)


def before_ampere() -> str:
    """Compute capability, as "7.5", of the oldest GPU that these processes compute on, if that is too old for bfloat16
    and vLLM; else "". The same for all of them."""
    if not torch.cuda.is_available():
        return ""
    used = range(min(num_processes(), torch.cuda.device_count()))
    oldest = min(map(torch.cuda.get_device_capability, used))
    return "" if oldest >= AMPERE else ".".join(map(str, oldest))


def divide_threads() -> None:
    """Divide the cores over the processes of this machine: more threads than cores make them fight. With GPUs too:
    --offload's optimiser runs on cores."""
    if "OMP_NUM_THREADS" in os.environ:  # the user has decided
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // num_processes()))
