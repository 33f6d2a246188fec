"""Launch scripts on a stranger's machine: exported variables, another folder, an older bash, a path with spaces."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launch_scripts.compare_tiny import METHODS
from tests.helpers import shells
from tests.helpers.launching import ROOT
from tests.helpers.shells import make_environment
from tests.scripts.test_compare_tiny import evaluated

STUB = """#!/usr/bin/env bash
printf '%s\\n' "$PWD" "$(command -v python)" "${DS_ACCELERATOR-none}" "$*" >>"$RECORD"
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout in a folder with a space, whose .venv setup.sh finds complete; its `deepspeed` writes down where it
    stands, which python is there, DS_ACCELERATOR and its words."""
    folder = tmp_path / "my checkout"
    shutil.copytree(ROOT / "launch_scripts", folder / "launch_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    make_environment(folder / ".venv", STUB)
    for name in ("requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def bash(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    own = {"RECORD": str(folder / "record"), "PIP_NO_INDEX": "1"}  # a broken setup.sh must not download
    return shells.bash(words, folder, **(own | variables))


STRANGE = {
    "nothing": {},
    "CDPATH": {"CDPATH": ".:/"},
    "CDPATH that has another checkout": {"CDPATH": "{other}"},
    "POSIXLY_CORRECT": {"POSIXLY_CORRECT": "1"},
    "GREP_OPTIONS": {"GREP_OPTIONS": "--color=always"},
    "BASH_ENV": {"BASH_ENV": "{other}/speaks"},
    "PYTHONHOME": {"PYTHONHOME": "/nowhere"},
    "PYTHONPATH": {"PYTHONPATH": "{other}"},
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("script", ["uft_qwen3b", "sft_rft_qwen3b", "eval_qwen3b"])
def test_scripts_run_here_with_this_environment_whatever_is_exported(checkout, tmp_path, name, script):
    (tmp_path / "other" / "launch_scripts").mkdir(parents=True)
    (tmp_path / "other" / "speaks").write_text("echo spoken\n")
    variables = {key: value.format(other=tmp_path / "other") for key, value in STRANGE[name].items()}
    result = bash([f"launch_scripts/{script}.sh", "--check"], checkout, **variables)
    assert result.returncode == 0 and "[setup]" not in result.stdout + result.stderr, result.stderr
    lines = [line for line in (checkout / "record").read_text().splitlines() if line != "spoken"]
    assert len(lines) == (8 if script == "sft_rft_qwen3b" else 4)
    for here, python, _, words in zip(*(lines[i::4] for i in range(4)), strict=True):
        assert (here, python) == (str(checkout), str(checkout / ".venv" / "bin" / "python"))
        assert words.startswith("--quiet --num_gpus ") and words.endswith(" --check")


def test_scripts_run_from_any_folder(checkout, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    result = bash(["../my checkout/launch_scripts/uft_qwen3b.sh"], tmp_path / "elsewhere", CDPATH=str(tmp_path))
    assert result.returncode == 0
    assert (tmp_path / "elsewhere" / "record").read_text().splitlines()[0] == str(checkout)


def test_setup_sourced_names_its_environment_and_leaves_the_shell_as_it_was(checkout):
    line = 'source launch_scripts/setup.sh && echo "$VIRTUAL_ENV|$CDPATH|$PWD|$-"'
    result = bash(["-uc", line], checkout, CDPATH=".:/")
    assert result.stdout == f"{checkout}/.venv|.:/|{checkout}|huBc\n", result.stderr


@pytest.mark.parametrize(("build", "gpu", "exported", "accelerator"), [
    ("2.13.0+cpu", "no_gpu", {}, "cpu"), ("2.13.0", "no_gpu", {}, "none"), ("", "no_gpu", {}, "none"),
    ("2.13.0+cpu", "no_gpu", {"DS_ACCELERATOR": "xpu"}, "xpu"), ("2.13.0+cpu", "a_gpu", {}, "none"),
])
def test_deepspeed_looks_for_no_gpu_where_there_is_none_and_pytorch_is_the_cpu_build(
    checkout, build, gpu, exported, accelerator
):
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    (checkout / f"torch-{build or 0}.dist-info").mkdir()
    if build:
        (checkout / f"torch-{build}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {build}\n")
    else:
        python.write_text("#!/bin/sh\nexit 1\n")
    bash(["launch_scripts/uft_qwen3b.sh"], checkout, gpu=gpu, PYTHONPATH=str(checkout), **exported)
    assert (checkout / "record").read_text().splitlines()[2] == accelerator


def test_quickstart_takes_the_gpus_that_are_visible(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text('#!/bin/sh\n[ "$1" != -c ] || echo "$GPUS"\n')  # every other call succeeds, and does nothing
    python.chmod(0o755)
    for gpus, visible, words in (("0", "", "--num_gpus 2"), ("0", "1", "--num_gpus 2"), ("1", "", "--num_gpus 1"),
                                 ("8", "", "--num_gpus 2"), ("1", "3", "--include localhost:3"),
                                 ("3", "5,6,7", "--include localhost:5,6")):
        (checkout / "record").unlink(missing_ok=True)
        variables = {"GPUS": gpus, "CUDA_VISIBLE_DEVICES": visible, "DS_ACCELERATOR": "cuda"}
        result = bash(["launch_scripts/quickstart.sh"], checkout, **variables)
        assert result.returncode == 0 and f"deepspeed --quiet {words} training/eval.py " in result.stdout
        assert (checkout / "record").read_text().splitlines()[3].startswith(f"--quiet {words} training/uft.py ")


def stand_in_for_python(checkout):
    """Every call succeeds, does nothing and leaves its words in `calls`; what is to run is listed by a real one, no
    tuning being kept."""
    (checkout / "launch_scripts" / "compare_tiny_tuned.json").write_text("{}")
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text('#!/bin/sh\necho "$*" >>calls\n'
                      f'[ "$1" != launch_scripts/compare_tiny.py ] || PYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)


def commands(checkout) -> list[str]:
    """What deepspeed was called with. Calls side by side write their lines between each other's."""
    return [line for line in (checkout / "record").read_text().splitlines() if " training/" in line]


def test_compare_tiny_starts_its_methods_with_this_deepspeed(checkout, tmp_path):
    """Also where shells that are started read a file that puts another one on PATH."""
    stand_in_for_python(checkout)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "deepspeed").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "other" / "deepspeed").chmod(0o755)
    (tmp_path / "other" / "start").write_text(f"PATH='{tmp_path}/other':$PATH\n")
    variables = {"BASH_ENV": str(tmp_path / "other" / "start"), "STAGES": "depths", "SEEDS": "0"}
    result = bash(["launch_scripts/compare_tiny.sh"], checkout, **variables)
    assert result.returncode == 0, result.stderr
    words = [line.split(" training/") for line in commands(checkout)]
    started = [of_script.split(".py")[0] for _, of_script in words]
    assert Counter(started) == dict.fromkeys(("rft", "r3", "stage", "uft", "adaback"), 5)
    assert {of_launcher for of_launcher, _ in words} == {"--num_gpus 1"}  # their processes find a free port
    assert "utils.tasks.tree --output_dir runs/compare_tiny/tree5/data --seed 0 --depth 5 --branching 4 " \
           "--train_problems 512 --test_problems 256" in (checkout / "calls").read_text()
    assert bash(["launch_scripts/compare_tiny.sh"], checkout, TASKS="tree7").returncode == 2


def test_compare_tiny_tunes_each_method_by_four_runs_and_says_what_it_then_lacks(checkout):
    stand_in_for_python(checkout)
    result = bash(["launch_scripts/compare_tiny.sh"], checkout, STAGES="tune", TASKS="sudoku")
    folders = {re.search(r"--output_dir (\S+) --overwrite", of_run)[1] for of_run in commands(checkout)}
    assert folders == {f"runs/compare_tiny/sudoku/tuning/{name}_{i}" for name in METHODS if name != "sft_rft"
                       for i in range(4)}
    assert result.returncode != 0 and "sudoku/tuning/sft_0" in result.stderr  # no metrics: nothing was trained here


def test_compare_tiny_reports_what_there_is(checkout):
    """The comparison alone: no sweep, no other bases, though the lists of both have runs of the comparison."""
    stand_in_for_python(checkout)
    root = checkout / "runs" / "compare_tiny"
    for name in METHODS:
        for i in range(4):
            evaluated(root / "countdown" / "tuning" / f"{name}_{i}", 0.5)
    complete = [f"runs/compare_tiny/countdown/{name}_seed0" for name in METHODS]
    for run in complete:
        (checkout / run).mkdir()
        (checkout / run / ("restored" if "rft" in run else "curves.png")).touch()
    result = bash(["launch_scripts/compare_tiny.sh"], checkout, STAGES="compare", TASKS="countdown", SEEDS="0")
    assert result.returncode == 0, result.stderr
    calls = (checkout / "calls").read_text().splitlines()
    assert not (checkout / "record").exists()  # nothing is trained again
    reports = [call for call in calls if call.startswith("-m utils.report ")]
    assert reports == [f"-m utils.report {' '.join(complete)} --figure runs/compare_tiny/comparison.png "
                       "--csv runs/compare_tiny/runs.csv --over_seeds --against rft sft_rft uft"]
    (root / "countdown" / "small" / "sft_seed0").mkdir(parents=True)
    (root / "countdown" / "small" / "sft_seed0" / "curves.png").touch()
    bash(["launch_scripts/compare_tiny.sh"], checkout, STAGES="compare", TASKS="countdown", SEEDS="0")
    assert "--mean_over model" in (checkout / "calls").read_text().splitlines()[-1]


def test_of_compare_tinys_methods_those_side_by_side_have_a_gpu_and_a_port_each(checkout):
    stand_in_for_python(checkout)
    for own, form in (({"MASTER_PORT": "31000"}, "--master_port {} --num_gpus 1"),
                      ({"CUDA_VISIBLE_DEVICES": "31000,31001,7"}, "--include localhost:{}")):
        bash(["launch_scripts/compare_tiny.sh"], checkout, DS_ACCELERATOR="cuda", STAGES="depths", SEEDS="0 1 2", **own)
        started = {line.split(" training/")[0] for line in commands(checkout)}
        assert started == {form.format(31000), form.format(31001)}
        (checkout / "record").unlink()


def bare_python(words: list[str]) -> subprocess.CompletedProcess:
    """A Python without any package, such as the system's."""
    return subprocess.run([sys.executable, "-S", *words], capture_output=True, text=True)


def test_run_py_goes_on_as_the_environments_python(checkout):
    """Started by any `python`, as the authors' README has it."""
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    script = str(checkout / "launch_scripts" / "run.py")
    assert bare_python([script, "--model", "a b", "--eval"]).stdout == f"{script} --model a b --eval\n"


def test_run_py_says_that_there_is_no_environment(checkout):
    shutil.rmtree(checkout / ".venv")
    result = bare_python([str(checkout / "launch_scripts" / "run.py")])
    assert result.returncode == 2 and "has no DeepSpeed; first: source launch_scripts/setup.sh auto" in result.stderr
    assert bare_python([str(checkout / "launch_scripts" / "run.py"), "--dry_run"]).stdout.count("\n") == 2


def test_setup_makes_an_environment_whatever_is_exported(checkout, tmp_path):
    """From a Python in a folder with a space; included files count, what PYTHONPATH and PIP_USER say does not."""
    (tmp_path / "my python").mkdir()
    (tmp_path / "my python" / "python").write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    (tmp_path / "my python" / "python").chmod(0o755)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "venv.py").write_text("raise SystemExit('another venv')\n")
    (tmp_path / "broken" / "pip.py").write_text("raise SystemExit('another pip')\n")
    (checkout / "some.txt").write_text("# none\n-r more.txt")
    (checkout / "more.txt").write_text("# none\n")
    shutil.rmtree(checkout / ".venv")
    variables = {"PYTHON": str(tmp_path / "my python" / "python"), "PYTHONPATH": str(tmp_path / "broken"),
                 "PIP_USER": "1", "PYTHONHOME": "/nowhere", "CDPATH": ".:/", "GREP_OPTIONS": "--color=always",
                 "POSIXLY_CORRECT": "1"}
    result = bash(["launch_scripts/setup.sh", "some.txt"], checkout, **variables)
    assert result.returncode == 0, result.stderr
    stamps = {path.name for path in (checkout / ".venv").glob(".installed-*")}
    assert stamps == {".installed-some.txt", ".installed-more.txt"}
    assert sorted(path.name for path in checkout.iterdir()) == [".venv", "launch_scripts", "more.txt",
        "requirements-cpu.txt", "requirements.txt", "some.txt"]
    assert bash(["launch_scripts/setup.sh", "some.txt"], checkout, **variables).stdout == ""  # nothing left to do


NEWER = {  # than bash 3.2, which macOS has, or an error there and in 4.3 under set -u
    "associative arrays": r"declare -A|local -A",
    "mapfile": r"\b(mapfile|readarray)\b",
    "upper and lower case": r"\$\{\w+(\^\^?|,,?)\}",
    "&>>": r"&>>",
    "[[ -v": r"\[\[ -v",
    "negative index": r"\$\{\w+\[-",
    "an array that may be empty": r'(?<!\+)"\$\{start\[@\]\}"',
}


@pytest.mark.parametrize("feature", NEWER)
def test_scripts_need_no_newer_bash(feature):
    for script in (ROOT / "launch_scripts").glob("*.sh"):
        assert not re.search(NEWER[feature], script.read_text()), script.name


def test_scripts_go_to_their_checkout_without_cdpath():
    for script in (ROOT / "launch_scripts").glob("*.sh"):
        assert not re.search(r'(?<!CDPATH="" )\bcd "', script.read_text()), script.name
