"""environment.json."""

import json
import os
import sys
from types import SimpleNamespace

import torch

from tests.helpers.launching import ROOT
from utils.run import environment
from utils.run.environment import git_state, gpus, versions
from utils.run.logger import Logger

OF_CUDA = ("cuda", "cudnn", "nccl", "driver")


def start(output_dir, **options) -> Logger:
    return Logger(output_dir, {"lr": 1e-3, "model": "tiny"}, is_main=True, total_steps=100, **options)


def test_args_and_environment_tell_how_to_run_it_again(tmp_path):
    start(tmp_path).close()
    assert json.loads((tmp_path / "args.json").read_text()) == {"lr": 1e-3, "model": "tiny"}
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["deepspeed"]
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["command"] == sys.argv and found["world_size"] == 1
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gib"] > 0


def test_the_build_of_pytorch_is_told_where_the_packages_metadata_leave_it_out(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert versions()["torch"] == "2.13.0+cu130"


def test_without_a_gpu_there_is_none_and_nothing_of_its_software(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus() == [] and {versions()[name] for name in OF_CUDA} - {torch.version.cuda} <= {None}


def test_gpus_are_told_with_all_that_numbers_depend_on(monkeypatch):
    """As PyTorch and nvidia-smi tell of them."""
    monkeypatch.setenv("PATH", f"{ROOT / 'tests' / 'helpers' / 'a_gpu'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DRIVER", "580.65.06")
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=85_017_493_504)
    for owner, name, value in ((torch.cuda, "is_available", True), (torch.cuda, "device_count", 2),
                               (torch.backends.cudnn, "version", 92_000), (torch.cuda.nccl, "version", (2, 29, 7))):
        monkeypatch.setattr(owner, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: card)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert {name: versions()[name] for name in OF_CUDA} == {
        "cuda": "13.0", "cudnn": "92000", "nccl": "2.29.7", "driver": "580.65.06"}
    assert gpus() == [{"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory_gib": 79.2}] * 2
    monkeypatch.setenv("PATH", f"{ROOT / 'tests' / 'helpers' / 'no_gpu'}{os.pathsep}{os.environ['PATH']}")
    assert versions()["driver"] is None


def test_a_run_that_an_earlier_version_began_is_resumed_beside_its_environment(tmp_path):
    old = '{"versions": {"torch": "2.13.0"}, "hardware": {"gpus": ["NVIDIA H100 80GB HBM3"]}}'
    (tmp_path / "environment.json").write_text(old)
    start(tmp_path, resume_step=3).close()
    assert (tmp_path / "environment.json").read_text() == old
    found = json.loads((tmp_path / "environment.resumed_at_3.json").read_text())
    assert found["versions"]["torch"] == torch.__version__


def test_the_diff_in_environment_is_bounded(monkeypatch):
    class Result:
        returncode, stdout = 0, "x" * 1000

    monkeypatch.setattr(environment.subprocess, "run", lambda *_arguments, **_options: Result)
    monkeypatch.setattr(environment, "MAX_DIFF_CHARACTERS", 10)
    state = git_state()
    assert state["dirty"] and state["diff"] == "x" * 10 + "\n[cut: the diff has 1000 characters]\n"
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    assert git_state()["commit"] is None
