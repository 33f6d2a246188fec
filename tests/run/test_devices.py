"""What a process computes on: a GPU that answers, else one line; the CPU where it is asked for."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist

from tests.conftest import wants_gpu
from tests.helpers.launching import ON_CPU, ROOT, run, start, succeed
from training import sft
from utils.pretrained import resolve_dtype
from utils.run import cli, devices, processes
from utils.run.errors import BadInput, BadMachine
from utils.setup.plan import make_plan
from utils.types import LongestGroup

# A machine with a GPU, for what starts here: nvidia-smi tells of one, and PyTorch finds none of number 99.
BROKEN = {"CUDA_VISIBLE_DEVICES": "99", "DS_ACCELERATOR": None,
          "PATH": f"{ROOT / 'tests' / 'helpers' / 'a_gpu'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
                  f"{os.environ['PATH']}"}


@pytest.fixture
def machine(monkeypatch):
    """machine(capabilities, **variables): GPUs that answer, and the environment."""
    for name in (*ON_CPU, "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def has(*capabilities: tuple[int, int], **variables: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return has


# ----- a GPU that does not answer -----


@pytest.mark.slow
@pytest.mark.parametrize("script", ["tiny_base", "generate", "uft"])
def test_a_gpu_that_does_not_answer_ends_every_script_with_one_line(script, tmp_path):
    if script == "generate":
        result = start("inference/generate.py", {"model": "m", "prompt": "p"}, **BROKEN)
    else:
        flags = {"model": "m", "data": "d"} if script == "uft" else {}
        result = start(f"training/{script}.py", flags | {"output_dir": tmp_path / "run"}, **BROKEN)
    assert result.returncode == 2 and "Traceback" not in result.stderr and not (tmp_path / "run").exists()
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"error: an NVIDIA GPU is here, and PyTorch {torch.__version__} cannot use it: ")
    assert line.endswith(" (CUDA_VISIBLE_DEVICES is 99). See launch_scripts/README.md, or compute on the CPU: "
                         "DS_ACCELERATOR=cpu")


@pytest.mark.slow
def test_data_is_made_whatever_the_gpu_says(tmp_path):
    words = ["--output_dir", str(tmp_path / "data"), "--train_problems", "8", "--test_problems", "2"]
    succeed(run([sys.executable, "-m", "utils.tasks.countdown", *words], **BROKEN))


def test_the_reason_is_told_and_an_advice_that_comes_after_it_is_not(machine, monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
                           "driver by downloading\nand more")

    machine((9, 0))
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(BadMachine, match=r"cannot use it: The NVIDIA driver on your system is too old \(found version "
                                         r"12020\)\. See launch_scripts/README\.md, or compute on the CPU"):
        devices.settle()


@pytest.mark.parametrize("variables", [
    {"DS_ACCELERATOR": "cpu"}, {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"},
    {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"},
])
def test_who_asks_for_the_cpu_gets_it_whatever_the_launcher_says_is_visible(machine, monkeypatch, variables):
    machine(**variables)
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("a GPU is looked for"))
    devices.settle()
    assert os.environ["CUDA_VISIBLE_DEVICES"] in devices.NONE_VISIBLE


def test_a_machine_without_a_gpu_needs_none(machine, monkeypatch):
    machine()
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("a GPU is looked for"))
    devices.settle()


LAUNCHED = """
import subprocess, sys
code = "from utils.run import launcher; print(launcher.variable('CUDA_VISIBLE_DEVICES'))"
subprocess.run([sys.executable, "-c", code], env=dict(__import__('os').environ, CUDA_VISIBLE_DEVICES="0,1"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("given", "name", "found"), [
    ("", "deepspeed.launcher.launch", ""), ("3", "deepspeed.launcher.launch", "3"),
    (None, "deepspeed.launcher.launch", "None"), ("", "a_shell", "None"),
])
def test_what_the_launcher_was_given_is_known_to_what_it_starts(given, name, found):
    result = succeed(run([sys.executable, "-c", LAUNCHED, name], CUDA_VISIBLE_DEVICES=given))
    assert result.stdout == f"{found}\n"


def test_the_launcher_that_would_show_gpus_to_who_wants_none_is_told_so(machine, monkeypatch):
    machine((9, 0), CUDA_VISIBLE_DEVICES="0")
    monkeypatch.setattr(devices.launcher, "variable", {"CUDA_VISIBLE_DEVICES": ""}.get)
    with pytest.raises(BadMachine, match="CUDA_VISIBLE_DEVICES names no GPU, .* give DS_ACCELERATOR=cpu too$"):
        devices.settle()


def test_more_processes_than_gpus_are_refused(machine):
    machine((9, 0), (9, 0), LOCAL_SIZE="2", WORLD_SIZE="8")
    devices.settle()
    machine((9, 0), (9, 0), LOCAL_SIZE="4", WORLD_SIZE="8")
    with pytest.raises(BadMachine, match="^4 processes are started on this machine, and it has 2 GPUs for them: give "
                                         "deepspeed --num_gpus 2$"):
        devices.settle()


@pytest.mark.parametrize(("rank", "local_rank", "told"), [("0", "0", True), ("1", "1", False), ("4", "0", True)])
def test_the_first_process_of_each_machine_tells(machine, monkeypatch, capsys, rank, local_rank, told):
    machine((9, 0), RANK=rank, LOCAL_RANK=local_rank, LOCAL_SIZE="4")
    monkeypatch.setattr(sys, "argv", ["sft.py", "--model", "m", "--data", "d", "--output_dir", "o"])
    with pytest.raises(SystemExit) as end:
        cli.run_script(sft.main, sft.Args)
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: 4 processes are started") == told


# ----- its type of numbers, its threads -----


def test_bfloat16_is_for_gpus_that_have_it(machine):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    machine((8, 0))
    assert resolve_dtype("auto", gpu) == resolve_dtype("bfloat16", gpu) == torch.bfloat16
    machine((9, 0), (7, 5))
    assert resolve_dtype("auto", gpu) == torch.bfloat16  # one process computes on the first only
    machine((9, 0), (7, 5), LOCAL_SIZE="2")
    assert resolve_dtype("auto", gpu) == resolve_dtype("float32", gpu) == torch.float32
    with pytest.raises(BadInput, match="^flag --dtype bfloat16: needs a GPU of compute capability 8.0 or newer, and "
                                       "here is one of 7.5; give --dtype float32$"):
        resolve_dtype("bfloat16", gpu)
    assert resolve_dtype("auto", cpu) == torch.float32 and resolve_dtype("bfloat16", cpu) == torch.bfloat16


def test_a_type_that_the_gpu_lacks_is_found_before_anything_is_read(machine):
    machine((7, 5))
    with pytest.raises(BadInput, match="^flag --dtype bfloat16: "):
        make_plan(sft.Args("no model", "no data", "", dtype="bfloat16"), LongestGroup(9, 0, 0, True))


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, 6), ({"LOCAL_SIZE": "2", "WORLD_SIZE": "4"}, 3), ({"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}, 2),
    ({"WORLD_SIZE": "4"}, 1), ({"LOCAL_SIZE": "8"}, 1), ({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "5"}, None),
])
@pytest.mark.parametrize("capabilities", [[], [(9, 0)] * 2])
def test_cores_are_divided_over_the_processes_of_a_machine(machine, monkeypatch, variables, expected, capabilities):
    machine(*capabilities, **variables)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(6)))
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    devices.divide_threads()
    assert given == ([] if expected is None else [expected])


# ----- what DeepSpeed says -----

ON_A_GPU_WITHOUT_NVCC = """
import torch
torch.cuda.is_available, torch.cuda.device_count, torch.version.cuda = lambda: True, lambda: 1, "13.0"
import deepspeed.ops
from deepspeed.comm.torch import build_shm_op
from utils.run import processes
assert deepspeed.accelerator.get_accelerator().device_name() == "cuda" and build_shm_op() is None
if {probe}:
    deepspeed.ops.__compatible_ops__
"""


@pytest.mark.slow
def test_deepspeed_does_not_warn_of_ops_that_nobody_asked_for():
    """Each rank would, of every op that needs nvcc, if something looked at the list of what can be built."""
    own = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": None, "CUDA_HOME": "/nowhere", "PYTHONPATH": str(ROOT)}
    said = [succeed(run([sys.executable, "-c", ON_A_GPU_WITHOUT_NVCC.format(probe=probe)], **own)).stdout
            for probe in (False, True)]
    assert said[0] == "" and said[1].count("compatibility check failed") > 3  # else this would show nothing


# ----- tests -----


def test_tests_are_on_the_cpu_unless_those_for_gpus_are_asked_for():
    assert {words: wants_gpu(words) for words in ("", "slow", "not gpu", "gpu", "gpu and not slow", "slow or gpu")} == {
        "": False, "slow": False, "not gpu": False, "gpu": True, "gpu and not slow": True, "slow or gpu": True}
    if os.environ.get("SHOW_GPUS") != "1":
        assert {name: os.environ.get(name) for name in ON_CPU} == ON_CPU and not torch.cuda.is_available()


# ----- the process group -----


@pytest.mark.parametrize(("device", "world_size", "variables", "bound"), [
    ("cuda:1", "2", {}, True), ("cuda:1", "2", {"BIND_DEVICE": "0"}, False), ("cuda:0", "1", {}, False),
    ("cpu", "2", {}, False),
])
def test_nccl_is_told_its_gpu_unless_that_is_not_wanted(machine, monkeypatch, device, world_size, variables, bound):
    machine(RANK="1", WORLD_SIZE=world_size, MASTER_PORT="31000", **variables)
    made = []
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **settings: made.append((*words, settings)))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda *words, **_settings: made.append(words))
    processes._join(torch.device(device), timedelta(minutes=1))
    backend, settings = made[0]
    assert (backend, *settings) == ("gloo" if device == "cpu" else "nccl", "timeout", "device_id")
    assert settings["device_id"] == (torch.device(device) if bound else None)
    assert made[1:] == [(backend,)]  # DeepSpeed takes the group that is there


FREED = """
import sys
from pathlib import Path
import torch
from utils.run import devices

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def make(mib):
    return torch.empty(mib * 2**18).zero_()

if sys.argv[1] == "give back":
    devices.give_back_freed_tensors()
make(30)  # from here on glibc keeps by itself what is no larger
before = resident()
some = [make(16) for _ in range(8)]
last = make(1)  # what lies behind them in memory
some.clear()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.sysconf("SC_PAGE_SIZE") != 4096, reason="glibc, and statm's pages")
@pytest.mark.parametrize("how, is_kept", [("leave", True), ("give back", False)])
def test_freed_tensors_go_back_to_the_system(how, is_kept):
    command = [sys.executable, "-c", FREED, how]
    done = succeed(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100))
    assert (float(done.stdout) > 64) == is_kept
