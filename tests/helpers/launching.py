"""Starting the scripts as a user does: `deepspeed --num_gpus N training/uft.py ...` from the repository root."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import ROOT
from utils.checkpoint import DISCARDED
from utils.report.runs import read_metrics
from utils.run.logger import depends_on_machine
from utils.run.output_dir import read_jsonl

DEEPSPEED = Path(sys.executable).parent / "deepspeed"
IN_TURN = "tests/workers/in_turn.py"
TIMEOUT = 240  # seconds; a run that takes longer hangs
EQUAL = ("hf/model.safetensors", "state/problems.json")  # files of a checkpoint that are the same on every run
may_start = True  # whether the present test is marked slow, as one that starts processes must be (conftest.py)
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # both: the launcher overwrites the first
MARK = "LAUNCHED_BY_TEST"  # environment variable, inherited by every process of a launch


def to_words(flags: dict) -> list[str]:
    """{"lr": 1e-3, "resume": True, "share_prefix": False} as `--lr 0.001 --resume --no_share_prefix`."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def launch(
    script: str, flags: dict, num_processes: int, interrupt: tuple[Path, str] | None = None,
    fault: Callable[[], None] | None = None, **variables: str | None
) -> subprocess.CompletedProcess:
    """The script under the real `deepspeed` launcher on `num_processes` processes of this machine."""
    return launch_words(script, to_words(flags), num_processes, interrupt, fault, **variables)


def launch_words(
    script: str, words: list[str], num_processes: int, interrupt: tuple[Path, str] | None = None,
    fault: Callable[[], None] | None = None, port: int = 0, **variables: str | None
) -> subprocess.CompletedProcess:
    """The same with the words of the command line as they are. The ranks meet at `port`, 0 for a free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    command = [str(DEEPSPEED), "--num_gpus", str(num_processes), "--master_port", str(port), script]
    shared = f"deepspeed_*_{port}_*"
    for abandoned in Path("/dev/shm").glob(shared):  # by a killed run of another day that had this port
        abandoned.unlink()
    result = run(command + words, interrupt, fault, **variables)
    assert not list(Path("/dev/shm").glob(shared)), "shared memory is left behind"
    return result


def start(script: str, flags: dict, **variables: str | None) -> subprocess.CompletedProcess:
    """The script as one plain process, no launcher."""
    return run([sys.executable, script, *to_words(flags)], **variables)


def launch_in_turn(
    runs: Sequence[tuple[str, dict]], num_processes: int, fault: Callable[[], None] | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Several (script, flags), one after another in the same processes; ends with the first that fails."""
    return launch_words(IN_TURN, [in_words(runs)], num_processes, fault=fault, **variables)


def start_in_turn(runs: Sequence[tuple[str, dict]], **variables: str) -> subprocess.CompletedProcess:
    """The same as one plain process."""
    return run([sys.executable, IN_TURN, in_words(runs)], **variables)


def in_words(runs: Sequence[tuple[str, dict]]) -> str:
    return json.dumps([[script, *to_words(flags)] for script, flags in runs])


def run(
    command: list[str], interrupt: tuple[Path, str] | None = None,
    fault: Callable[[], None] | None = None, **variables: str | None
) -> subprocess.CompletedProcess:
    """The command from the repository root, with the environment of the tests and the `variables`, without those that
    are None. On a timeout all its processes are killed, and the output is shown.
    `interrupt` = (file, text): SIGTERM goes to the last process started, as soon as the file has the text. `fault` is
    called once the processes have been started, to do something to them.

    The result carries `mark`, for `survivors`.
    """
    assert may_start, "a test that starts a run, itself or by a fixture, must be marked slow"
    mark = uuid.uuid4().hex
    path = f"{DEEPSPEED.parent}{os.pathsep}{os.environ['PATH']}"  # the launcher finds ninja there
    environment = {name: value for name, value in (os.environ | {"PATH": path, MARK: mark} | variables).items()
                   if value is not None}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        if interrupt is not None:
            wait_for(*interrupt)
            os.kill(max(marked(mark)), signal.SIGTERM)
        if fault is not None:
            fault()
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"{' '.join(command)} hung for {TIMEOUT} s\n{stdout}\n{stderr}") from None
    result = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    result.mark = mark
    return result


def wait_for(file: Path, text: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not (file.is_file() and text in file.read_text()):
        assert time.monotonic() < end, f"{file} does not get {text}"
        time.sleep(0.02)


def marked(mark: str) -> dict[int, str]:
    """Number and command line of the processes of a launch that live (Linux)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def survivors(result: subprocess.CompletedProcess) -> list[str]:
    """Command lines of the processes of a launch that still live."""
    return list(marked(result.mark).values())


def succeed(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The same result; an AssertionError with the end of its output where it failed."""
    assert result.returncode == 0, f"{' '.join(result.args)}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result


def training_lines(output_dir: Path) -> list[dict]:
    return [line for line in read_metrics(output_dir) if "loss" in line]


def evaluation_lines(output_dir: Path) -> list[dict]:
    return [line for line in read_metrics(output_dir) if "eval/accuracy" in line]


def without_times(line: dict) -> dict:
    """A line of metrics.jsonl without what depends on the machine: the same on every run."""
    return {name: value for name, value in line.items() if not depends_on_machine(name)}


def outcome(output_dir: Path, step: int, before_going_back: bool = False) -> list[dict]:
    """Lines of metrics without times, and hashes of what checkpoint `step` has of EQUAL, by its manifest; with
    `before_going_back` those that a run with --resume_step has set aside."""
    folder, prefix = output_dir / "checkpoints", DISCARDED if before_going_back else ""
    metrics = folder / f"{DISCARDED}metrics.jsonl" if before_going_back else output_dir / "metrics.jsonl"
    files = json.loads((folder / f"{prefix}step_{step}" / "manifest.json").read_text())["files"]
    return [*map(without_times, read_jsonl(metrics)), *({name: files[name]} for name in EQUAL if name in files)]
