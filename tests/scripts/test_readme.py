"""The README's examples work as they stand."""

import re
import shlex
from types import ModuleType

import rewards
from launch_scripts import run
from rewards import score
from utils import ROOT
from utils.data import load_problems

READMES = "\n".join(path.read_text() for pattern in ("README.md", "*/README.md", "*/*/README.md")
                    for path in sorted(ROOT.glob(pattern)))
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
    allowed = {"training/mine.py", "rewards/chess.py"}  # the reader's own
    assert {name for name in named if not (ROOT / name).is_file()} == allowed
