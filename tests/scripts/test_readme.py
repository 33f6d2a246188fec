"""The README's examples work as they stand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rewards
from launch_scripts import run
from rewards import score
from utils import ROOT
from utils.data import load_problems

READMES = "\n".join(path.read_text() for pattern in ("README.md", "*/README.md", "*/*/README.md")
                    for path in sorted(ROOT.glob(pattern)))
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", READMES, re.DOTALL)


def test_the_smallest_data_set_loads_for_every_script_and_its_answer_is_right(tmp_path, monkeypatch):
    [example] = [text for text in EXAMPLES if "write_table" in text]
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # noqa: S102
    for split in ("train", "test"):
        [problem] = load_problems(str(tmp_path), split, needs=("hint", "answer"))
        assert len(problem.solution) == 2
        assert score(problem.data_source, problem.demonstration, problem.ground_truth).reward == 1.0


def test_the_verifier_of_ones_own_judges(monkeypatch):
    [example] = [text for text in EXAMPLES if "def verify" in text]
    module = ModuleType("chess")
    exec(example, vars(module))  # noqa: S102
    monkeypatch.setitem(rewards.VERIFIERS, "chess", module.verify)
    for completion, reward in (("<answer> e4 </answer>", 1.0), ("<answer> d4 </answer>", 0.1), ("e4", 0.0)):
        assert score("chess", completion, {"move": "e4"}).reward == reward


def test_the_command_lines_of_run_py_are_accepted(monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lines = re.findall(r"^ *python launch_scripts/run\.py (.*?)(?: *#.*)?$", READMES, re.MULTILINE)
    assert lines
    for line in lines:
        own, dashes, further = line.partition(" -- ")
        assert run.main([*shlex.split(own), "--dry_run", *shlex.split(dashes + further)]) == 0
        assert capsys.readouterr().out.startswith("# ")


def test_every_file_that_is_named_exists():
    folders = "launch_scripts|training|rewards|utils|inference|tests"
    named = set(re.findall(rf"(?:{folders})/[\w./]+\.(?:py|sh|png)", READMES))
    for module in re.findall(r"python -m ([\w.]+)", READMES):
        path = module.replace(".", "/")
        named.add(f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py")
    allowed = {"training/uft_linear.py", "launch_scripts/linear.sh", "rewards/chess.py"}  # the reader's own
    assert {name for name in named if not (ROOT / name).is_file()} == allowed


@pytest.mark.slow
def test_the_worked_example_goes_from_an_idea_to_the_page(tmp_path, base_model, countdown_data):
    """The commands as they stand, in a copy of the project; of two steps, two seeds, with a smaller base."""
    [example] = re.findall(r"```bash\n(source .*?)```", README, re.DOTALL)
    commands = example.replace("source .venv/bin/activate", "").replace("0 1 2", "0 1")
    copy, kept = tmp_path / "project", tmp_path / "quickstart"
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(base_model, kept / "base")
    shutil.copytree(countdown_data, kept / "data")
    python = Path(sys.executable).parent
    (copy / "launch_scripts" / "setup.sh").write_text(f'export VIRTUAL_ENV="{python.parent}"\n')  # nothing to install
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=copy, capture_output=True, text=True, timeout=400,
        env=os.environ | {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
                          "RUN": str(kept), "STEPS": "2", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    changed = [line for line in done.stdout.splitlines() if line.startswith(("< ", "> "))]
    assert len(changed) == 2 and "cos" in changed[0] and "(1 - step / args.hint_steps)" in changed[1]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert any("uft_linear" in row for row in rows)
    page = (copy / "runs" / "idea" / "page.html").read_text()
    assert all(f"{name}_seed{seed}" in page for name in ("uft", "uft_linear") for seed in (0, 1))
