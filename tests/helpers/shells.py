"""An environment for shell scripts in which nothing is installed, and a `deepspeed` that only writes down its words."""

import os
import subprocess
import sys
from pathlib import Path

from utils import ROOT


def make_environment(folder: Path, deepspeed: str) -> None:
    """What setup.sh finds complete, with the text of a script in the place of `deepspeed`."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "deepspeed").write_text(deepspeed)
    (folder / "bin" / "deepspeed").chmod(0o755)
    for name in ("requirements.txt", "requirements-cpu.txt"):  # with a GPU, and without
        with (ROOT / name).open() as file:
            stamp = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout
        (folder / f".installed-{name}").write_text(stamp)


def bash(words: list[str], folder: Path, gpu: str = "no_gpu", **variables: str) -> subprocess.CompletedProcess:
    """The words in `folder`, with little of the environment that the tests run in. `gpu` is what nvidia-smi says:
    "no_gpu", or "a_gpu" with $DRIVER and $CAPABILITY."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    inherited["PATH"] = f"{Path(__file__).parent / gpu}{os.pathsep}{inherited['PATH']}"
    return subprocess.run(["bash", *words], cwd=folder, env=inherited | variables, capture_output=True, text=True)
