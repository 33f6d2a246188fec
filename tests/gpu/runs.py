"""Starting scripts as a user does, from within a check: its process group ends with it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers.launching import MARK, marked, to_words
from training import tiny_base
from utils import ROOT
from utils.tasks import countdown

WAIT = 150  # seconds for a run, or for something to happen in it


def deepspeed() -> list[str]:
    """The command; where it lies elsewhere than this Python, what it would call."""
    beside = Path(sys.executable).parent / "deepspeed"
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "deepspeed.launcher.runner"]


def start(words: Sequence[str], log: Path, **variables: str) -> subprocess.Popen:
    """The command from the repository root; what it prints goes to the file."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies there
    with log.open("a") as output:
        return subprocess.Popen(words, cwd=ROOT, env=os.environ | {"PATH": path} | variables, stdout=output,
                                stderr=subprocess.STDOUT)


def launch(script: str, words: Sequence[str], log: Path, num_processes: int = 1, **variables: str) -> subprocess.Popen:
    """Under the launcher, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return start([*deepspeed(), "--num_gpus", str(num_processes), "--master_port", str(port), script, *words], log,
                 **variables)


def train(flags: dict, log: Path, by_launcher: bool = True) -> subprocess.Popen:
    """uft.py on one process, which by itself starts in half the time."""
    words = to_words(flags)
    return launch("training/uft.py", words, log) if by_launcher else start(
        [sys.executable, "training/uft.py", *words], log)


def wait(process: subprocess.Popen, log: Path) -> int:
    """Its exit status; the end of what it printed is printed where that is not 0."""
    status = process.wait(WAIT)
    if status:
        print(f"--- {log.name}, status {status} ---\n{log.read_text(errors='replace')[-3000:]}", flush=True)
    return status


def wait_until(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert process.poll() is None, f"the run ended first, with status {process.returncode}"
        assert time.monotonic() < end, f"nothing for {WAIT} s"
        time.sleep(0.02)


def last_process_of(output_dir: Path) -> int:
    """Of those that this check started, the youngest whose command line names the folder: the script itself."""
    return max(number for number, words in marked(os.environ[MARK]).items() if str(output_dir) in words)


def make_base(folder: Path, steps: int, hidden_size: int = 64) -> tuple[Path, Path]:
    """A tiny model that knows the form of a solution, and its easy Countdown problems."""
    data, base = folder / "data", folder / "base"
    countdown.build(data, train_problems=200, test_problems=32, min_numbers=2, max_numbers=2, max_number=15,
                    min_target=3, max_target=40, operators="+-*")
    tiny_base.main(tiny_base.Args(
        data=str(data), output_dir=str(base), solved_fraction=1.0, steps=steps, batch_size=8, lr=2e-3, warmup_steps=10,
        hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_layers=2, num_heads=2,
        max_position_embeddings=192, tokenizer_texts=300, eval_problems=0, threads=1))
    return base, data
