"""Start and end of the processes of a run."""

import contextlib
import fcntl
import importlib
import io
import os
import platform
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.runtime import compiler

from utils.cpu_linear import set_matmul_precision
from utils.run import devices, distributed, environment, watchdog
from utils.run.errors import RunStopped, require
from utils.run.launcher import launcher_folder, stat
from utils.run.output_dir import LOCK, lock_output_dir

DEFAULT_PORT = "29500"  # of DeepSpeed's launcher
ANY_PORT = "0"
MARGIN = 1.0  # minutes: the watchdog, which can tell who is behind, speaks before a collective gives up

_in_use: list[TextIO] = []  # open as long as the process lives


def start(output_dir: str, timeout_minutes: float, matmul_precision: str) -> torch.device:
    """Take the output folder for this run, join the other ranks, and watch over them; returns this rank's device.
    `matmul_precision` is that of float32 products from here on (utils/cpu_linear.py).

    Raises:
        BadInput: another run has the folder, or several machines have a folder each.
    """
    lock_output_dir(output_dir)
    device = join(timeout_minutes)
    set_matmul_precision(matmul_precision)
    _check_shared(output_dir)
    watchdog.start(output_dir, timeout_minutes, on_gpu=device.type == "cuda")
    return device


def _check_shared(output_dir: str) -> None:
    """Raises BadInput on all ranks where one does not see the lock of the first: what each of them would write of a
    checkpoint, nobody could resume. Not on one machine."""
    if os.environ.get("CROSS_SIZE", "1") == "1" or distributed.is_node_local():
        return
    folder, mine = Path(output_dir), [platform.node(), ""]
    with contextlib.suppress(OSError):
        os.listdir(folder)  # so that a network's disk looks again
        mine[1] = (folder / LOCK).read_text()
    seen = distributed.gather([mine])
    expected = seen[0][1]
    apart = sorted({host for host, text in seen if not text or text != expected})
    hosts = sorted({host for host, _ in seen})
    require(not apart, "--output_dir", output_dir, f"must lie on a disk that all machines share ({', '.join(hosts)}), "
            f"and on {', '.join(apart)} it is another folder than on that of the first process; or give "
            "--node_local_output")


def join(timeout_minutes: float = 30) -> torch.device:
    """Join the other ranks (nccl with CUDA, gloo without) and return this rank's device.

    Works under the `deepspeed` launcher and alone (`python training/...`). The cores are divided over the ranks.

    Raises:
        BadMachine: a GPU is here and cannot be used.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=ANY_PORT)
    devices.settle()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    devices.divide_threads()
    _quieten()
    _import_muon()
    _forget_abandoned_locks()
    if not dist.is_initialized():
        _join(device, timedelta(minutes=timeout_minutes + MARGIN))
        _unlink_shared_memory()
    return device


def _import_muon() -> None:
    """DeepSpeed looks whether an optimiser is its Muon, whose kernels want to be compiled as they are imported: that
    alone loads PyTorch's compiler, a second of every start. They are left as they are; nobody calls them."""
    own, compiler.compile = compiler.compile, lambda: lambda kernel: kernel
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = own


def _join(device: torch.device, timeout: timedelta) -> None:
    """Form the process group, which DeepSpeed then takes. Raises RunStopped where the port that the ranks should meet
    at is another program's.

    NCCL is told its GPU, as DeepSpeed would; every later group is then a split of this one. BIND_DEVICE=0: it is not.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    port, launcher = os.environ["MASTER_PORT"], _launcher()
    is_bound = backend == "nccl" and int(os.environ["WORLD_SIZE"]) > 1 and os.environ.get("BIND_DEVICE") != "0"
    settings: dict = {"timeout": timeout, "device_id": device if is_bound else None}
    try:
        if port == ANY_PORT or port == DEFAULT_PORT and launcher is not None:
            settings |= {"store": _store_at_free_port(launcher, timeout), "rank": int(os.environ["RANK"]),
                         "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group(backend, **settings)
        with contextlib.redirect_stdout(io.StringIO()):  # "... built successfully", from each rank
            deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise RunStopped(f"port {port} is taken, by another run perhaps; give this one another: deepspeed "
                         f"--master_port {int(port) + 1} ...") from error


def _launcher() -> str | None:
    """What no other process on this machine is called: the number and start of the DeepSpeed launcher that started this
    one. None where it was not started so, or is one of several nodes."""
    folder = launcher_folder() if os.environ.get("CROSS_SIZE") == "1" else None
    return None if folder is None else f"{folder.name}_{stat(folder)[19]}"


def _store_at_free_port(launcher: str | None, timeout: timedelta) -> dist.TCPStore:
    """The default port may be another run's. So rank 0 takes a free one, and a file tells it to the other ranks, if
    there are any. MASTER_PORT has it then too: DeepSpeed names its shared memory by it."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    file = environment.extensions_root() / f".port_{platform.node()}_{launcher}"
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        os.environ["MASTER_PORT"] = str(store.port)
        if world_size > 1:
            whole = file.with_suffix(".partial")
            whole.write_text(str(store.port))
            whole.replace(file)
            store.wait([f"met_{other}" for other in range(1, world_size)], timeout)
            file.unlink()
        return store
    end = time.monotonic() + timeout.total_seconds()
    while not file.exists():
        if time.monotonic() > end:
            raise RunStopped(f"rank 0 has not come: {file} was not written in {timeout}")
        time.sleep(0.02)
    os.environ["MASTER_PORT"] = file.read_text()
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), world_size, is_master=False, timeout=timeout)
    store.set(f"met_{rank}", "")
    return store


def _unlink_shared_memory() -> None:
    """On a CPU DeepSpeed's ranks reduce through 66 MB of shared memory each, which it never removes. Once all have
    opened it, it needs no name, and is gone with the processes, however they end."""
    distributed.barrier()
    name = "_".join((str(os.getuid()), os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["RANK"]))
    Path("/dev/shm", f"deepspeed_allreduce_buffer_{name}").unlink(missing_ok=True)


def _forget_abandoned_locks() -> None:
    """PyTorch guards the building and loading of DeepSpeed's C++ ops by lock files, and waits for ever where a killed
    process has left one. If no other process of ours is alive on this machine, whatever lies there is abandoned."""
    root = environment.extensions_root()
    in_use = (root / ".in_use").open("a")
    with contextlib.suppress(OSError):  # another process is alive
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for abandoned in (*root.glob("**/lock"), *root.glob(".port_*")):  # the latter: see _store_at_free_port
            abandoned.unlink(missing_ok=True)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    _in_use.append(in_use)


def _quieten() -> None:
    """What libraries say at every start of every rank, and nobody needs."""
    transformers.utils.logging.disable_progress_bar()
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.utils.logger.addFilter(lambda record: "OVERFLOW!" not in record.getMessage())  # UpdateGuard tells it
    for module in ("torch.distributed", "vllm"):
        warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning, module=module)


def end() -> None:
    """Leave the group, so that the process ends without the warnings of an abandoned one."""
    watchdog.stop()
    if dist.is_initialized():
        dist.destroy_process_group()
