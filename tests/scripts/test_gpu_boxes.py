"""Launch scripts on boxes with GPUs: which of them are taken, where processes meet, and a driver that is too old."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers import shells
from tests.helpers.launching import ROOT
from tests.helpers.shells import make_environment

STUB = """#!/usr/bin/env bash
printf '%s\\n' "$*" "${DS_ACCELERATOR-none}" >>"$RECORD"
"""
ON_GPUS = {"DS_ACCELERATOR": "cuda"}  # else the CPU build of PyTorch says that there are none


@pytest.fixture
def start(tmp_path):
    """start(script, *words, **variables) -> (the words before the training script of each `deepspeed` that it starts,
    DS_ACCELERATOR in the last, status, stderr)."""
    make_environment(tmp_path / "environment", STUB)

    def run(script: str, *words: str, **variables: str) -> tuple[list[str], str, int, str]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        own = {"VENV": str(tmp_path / "environment"), "RECORD": str(record), "PIP_NO_INDEX": "1"}
        result = shells.bash([str(ROOT / "launch_scripts" / f"{script}.sh"), *words], tmp_path, **(own | variables))
        lines = record.read_text().splitlines() if record.exists() else []
        started = [line.split(" training/")[0].removeprefix("--quiet ") for line in lines[::2]]
        return started, lines[-1] if lines else "", result.returncode, result.stderr

    return run


SCRIPTS = {  # script -> GPUs that it is meant for
    path.stem: 4 for path in (ROOT / "launch_scripts").glob("*_qwen3b.sh")
} | {"eval_qwen3b": 1, "uft_qwen1.5b": 2, "uft_qwen0.5b": 2, "uft_qwen0.5b_1gpu": 1, "uft_llama1b": 2, "uft_llama3b": 4}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_takes_the_gpus_that_are_visible_and_the_port_and_words_that_are_given(start, script):
    number, halves = SCRIPTS[script], 2 if script == "sft_rft_qwen3b" else 1
    for variables, words in (
        ({}, f"--num_gpus {number}"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, f"--include localhost:{'4,5,6,7'[: 2 * number - 1]}"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "--include localhost:3"),
        ({"MASTER_PORT": "31000"}, f"--master_port 31000 --num_gpus {number}"),
        ({"LAUNCH": "--hostfile my_hosts  --num_nodes 2", "CUDA_VISIBLE_DEVICES": "4,5"},
         "--hostfile my_hosts --num_nodes 2"),
        ({"LAUNCH": "--include h:1 --master_port 5", "MASTER_PORT": "4"}, "--master_port 4 --include h:1 "
                                                                          "--master_port 5"),  # the last one counts
        ({"LAUNCH": " "}, f"--num_gpus {number}"),
    ):
        assert start(script, "--check", **ON_GPUS, **variables) == ([words] * halves, "cuda", 0, "")


def test_no_recipe_starts_a_launcher_by_other_words():
    for path in (ROOT / "launch_scripts").glob("*.sh"):
        lines = [line.strip() for line in path.read_text().splitlines() if line.lstrip().startswith("deepspeed ")]
        of_user = [line for line in lines if "${launcher[*]}" in line]  # what quickstart.sh prints
        assert all('"${launcher[@]}" ' in line for line in lines if line not in of_user), path.name
    assert set(SCRIPTS) == {path.stem for path in (ROOT / "launch_scripts").glob("*.sh")
                            if '"${launcher[@]}" ' in path.read_text()} - {"quickstart", "compare_tiny", "launcher"}


def test_no_gpu_visible_is_the_wish_for_the_cpu(start):
    """The launcher would show GPUs 0, 1, .. to its processes."""
    for variables in ({"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"DS_ACCELERATOR": "cpu"},
                      {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cpu"}):
        assert start("uft_qwen1.5b", **variables) == (["--num_gpus 2"], "cpu", 0, "")


def test_gpus_that_the_launcher_cannot_read_are_told(start):
    started, _, status, error = start("uft_qwen3b", CUDA_VISIBLE_DEVICES="GPU-8f2e", **ON_GPUS)
    assert (started, status) == ([], 2)
    assert error == ("error: CUDA_VISIBLE_DEVICES=GPU-8f2e: DeepSpeed's launcher knows GPUs by number, as 0,1\n")


# ----- the driver -----


def setup(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """setup.sh with a GPU, up to where it would install: pip is not allowed to."""
    own = {"VENV": str(folder / "new"), "PIP_NO_INDEX": "1", "DRIVER": "580.65.06", "CAPABILITY": "9.0"}
    return shells.bash([str(ROOT / "launch_scripts" / "setup.sh"), *words], folder, gpu="a_gpu", **(own | variables))


@pytest.mark.parametrize(("variables", "said"), [
    ({"DRIVER": "535.183.01"},
     "the NVIDIA driver here is 535.183.01, and PyTorch from PyPI is built for CUDA 13, which needs 580 or newer. "
     "Install a newer driver; or, for a data-centre card, the package cuda-compat-13-0; or take PyTorch for CUDA 12.6 "
     "(without vLLM): export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126 (SKIP_DRIVER_CHECK=1 goes on"),
    ({"DRIVER": "575.57.08", "CAPABILITY": ""}, "the NVIDIA driver here is 575.57.08"),
    ({"CAPABILITY": "7.0"},
     "the GPU here has compute capability 7.0, and PyTorch from PyPI is built for CUDA 13, which needs 7.5 (Turing) or "
     "newer. Instead take PyTorch for CUDA 12.6"),
])
def test_a_box_that_cuda_13_does_not_support_is_refused_before_anything_is_installed(tmp_path, variables, said):
    for words in (["auto"], ["requirements.txt"], ["requirements-cpu.txt"]):
        result = setup(tmp_path, *words, **variables)
        assert result.returncode == 1 and result.stderr.startswith(f"[setup] error: {said}")
        assert result.stderr.count("\n") == 1 and not (tmp_path / "new").exists()


OLD = {"DRIVER": "535.183.01"}


@pytest.mark.parametrize(("variables", "file"), [
    ({}, "requirements.txt"), ({"CAPABILITY": "7.5"}, "requirements.txt"), ({"CAPABILITY": ""}, "requirements.txt"),
    ({"CAPABILITY": "12.0"}, "requirements.txt"), ({"DRIVER": "[N/A]"}, "requirements.txt"),
    (OLD | {"SKIP_DRIVER_CHECK": "1"}, "requirements.txt"),
    (OLD | {"DS_ACCELERATOR": "cpu"}, "requirements.txt"), (OLD | {"CUDA_VISIBLE_DEVICES": ""}, "requirements.txt"),
    (OLD | {"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cu126"}, "requirements-cpu.txt"),
    (OLD | {"PIP_INDEX_URL": "https://download.pytorch.org/whl/cpu"}, "requirements-cpu.txt"),
    (OLD | {"THERE": "2.13.0+cu126"}, "requirements-cpu.txt"), ({"THERE": "2.13.0+cu130"}, "requirements.txt"),
    ({"THERE": "2.13.0"}, "requirements.txt"),
])
def test_all_other_boxes_are_set_up_without_vllm_where_pytorch_is_not_for_cuda_13(tmp_path, variables, file):
    make_environment(tmp_path / "new", STUB)
    for name in ("requirements.txt", "requirements-cpu.txt"):
        (tmp_path / "new" / f".installed-{name}").unlink()
    there = variables.get("THERE")
    if there:
        (tmp_path / "new" / "lib" / "python3.11" / "site-packages" / f"torch-{there}.dist-info").mkdir(parents=True)
    python = tmp_path / "new" / "bin" / "python"
    python.unlink()
    python.write_text('#!/bin/sh\n[ "$2 $3" = "-m pip" ] && echo "$@" >>"$RECORD" || exec python3 "$@"\n')
    python.chmod(0o755)
    result = setup(tmp_path, "auto", RECORD=str(tmp_path / "record"), **variables)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "record").read_text().splitlines()[-1].endswith(f"/{file}")


def test_the_tests_are_set_up_whatever_the_driver_is(tmp_path):
    """They run on the CPU."""
    result = setup(tmp_path, "requirements-dev.txt", PYTHON="/nowhere", **OLD)
    assert "no Python 3.11 or newer found" in result.stderr  # which is looked for afterwards
