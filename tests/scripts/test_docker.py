"""The image, which no test builds: its versions are those of requirements.txt, and it installs by setup.sh alone."""

import re
import subprocess

from tests.helpers import shells
from utils import ROOT

TEXT = (ROOT / "launch_scripts" / "docker" / "Dockerfile").read_text()
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", "".join(
    (ROOT / name).read_text() for name in ("requirements.txt", "requirements-cpu.txt")), re.MULTILINE))


def test_its_label_names_the_versions_of_requirements_txt():
    label = dict(re.findall(r'(\w+)="([^"]*)"', re.search("^LABEL (.*)$", TEXT, re.MULTILINE)[1]))
    python = label.pop("python")
    assert set(label) == {"torch", "deepspeed", "transformers", "vllm"}
    assert label == {name: PINS[name] for name in label}
    assert f"python{python} python{python}-venv" in TEXT and f"PYTHON=python{python} " in TEXT
    assert python in (ROOT / "tests" / "README.md").read_text()


def test_nothing_is_installed_beside_requirements_txt():
    commands = [line for line in TEXT.splitlines() if not line.startswith("#")]
    assert not [line for line in commands if "pip install" in line]
    assert commands.index("RUN bash launch_scripts/setup.sh requirements.txt") > next(
        number for number, line in enumerate(commands) if line.startswith("COPY requirements"))
    [copied] = [line.split()[1:-1] for line in commands if line.startswith("COPY requirements")]
    included = re.findall(r"^-r (\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert copied == ["requirements.txt", *included]


def test_a_machine_with_a_gpu_finds_the_image_complete(tmp_path):
    """With what setup.sh leaves where it installed requirements.txt, a script that asks for `auto` installs nothing."""
    shells.make_environment(tmp_path / "venv", "")
    result = shells.bash([str(ROOT / "launch_scripts" / "setup.sh"), "auto"], tmp_path, gpu="a_gpu", PIP_NO_INDEX="1",
                         VENV=str(tmp_path / "venv"), DRIVER="580.65.06", CAPABILITY="9.0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_it_says_that_it_was_not_built():
    for text in (TEXT, (ROOT / "launch_scripts" / "README.md").read_text()):
        assert "not built" in " ".join(text.replace("#", " ").split())


def test_what_it_copies_is_the_checkout_without_what_runs_have_made():
    ignored = (ROOT / "launch_scripts" / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv*", "runs", "data", "models"} <= set(ignored)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [path for path in tracked for name in ignored if path.startswith(f"{name}/") or path == name]
