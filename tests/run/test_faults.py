"""What ends a run from outside, for real: one of two processes that stops, dies or fails; a disk that is full."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, launch, survivors, wait_for
from utils import manifest
from utils.run.errors import BadInput
from utils.run.output_dir import check_output_dir, lock_output_dir, writing

FAULTS = {"PYTHONPATH": str(ROOT / "tests" / "helpers" / "faults")}


@pytest.fixture
def flags(base_model, countdown_data, tmp_path):
    """Long enough to be in the middle for a while."""
    return {
        "model": base_model, "data": countdown_data, "output_dir": tmp_path / "run", "seed": 1, "total_steps": 500,
        "eval_every": 500, "eval_problems": 4, "save_every": 500, "prompts_per_step": 16, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": 32, "max_tokens_per_micro_batch": 320, "lr": 1e-4,
        "zero_stage": 2, "group_size": 4,
    }


class Fault:
    """`signal` for a rank, as soon as two steps are logged; afterwards `seconds()` says how long ago."""

    def __init__(self, output_dir: Path, rank: int, number: int) -> None:
        self.output_dir, self.rank, self.number, self.at = output_dir, rank, number, 0.0

    def process(self, rank: int) -> int:
        return json.loads((self.output_dir / ".heartbeat" / f"rank_{rank}").read_text())["process"]

    def __call__(self) -> None:
        wait_for(self.output_dir / "metrics.jsonl", '"step": 2, "reward"')
        os.kill(self.process(self.rank), self.number)
        self.at = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.at


def last_line(result: subprocess.CompletedProcess) -> str:
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run_at_the_limit_with_the_stacks_of_the_others(flags):
    fault = Fault(flags["output_dir"], 1, signal.SIGSTOP)
    result = launch("training/uft.py", flags | {"timeout_minutes": 0.2}, 2, fault=fault)
    assert 12 <= fault.seconds() < 12 + 20 and result.returncode != 0 and survivors(result) == []
    assert last_line(result).startswith("stopped: rank 1 (process ")
    assert "(--timeout_minutes 0.2), and does not answer" in last_line(result)
    stacks = (flags["output_dir"] / "stall_rank_0.txt").read_text()
    assert "rank 0 in step " in stacks and "training/uft.py" in stacks and stacks in result.stderr


@pytest.mark.parametrize(("number", "said"), [
    (signal.SIGKILL, "was killed (out of memory? see dmesg) or crashed"),
    (signal.SIGUSR1, "ValueError: a bug of one rank"),
], ids=["killed", "failed"])
@pytest.mark.slow
def test_a_rank_that_is_killed_or_fails_ends_the_run_and_is_told_last(flags, number, said):
    fault = Fault(flags["output_dir"], 1, number)
    result = launch("training/rft.py", flags, 2, fault=fault, **FAULTS)
    assert fault.seconds() < 30 and result.returncode != 0 and survivors(result) == []
    assert last_line(result).startswith("stopped: rank 1 (process ") and last_line(result).endswith(said)
    assert ("Traceback" in result.stderr) == (number == signal.SIGUSR1)  # the other rank's would hide the cause


# ----- disks -----


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_no_half_of_itself(flags):
    """From the first checkpoint on no file may get longer than 200 kB, for one rank: the other only waits."""
    folder = flags["output_dir"] / "checkpoints"

    def forbid_long_files() -> None:
        wait_for(folder / "latest", "step_2")
        process = json.loads((flags["output_dir"] / ".heartbeat" / "rank_1").read_text())["process"]
        resource.prlimit(process, resource.RLIMIT_FSIZE, (200_000, 200_000))

    result = launch("training/sft.py", for_sft(flags) | {"save_every": 2, "keep_last": 1}, 2, fault=forbid_long_files)
    assert result.returncode == 1 and survivors(result) == [] and "Traceback" not in result.stderr
    line = last_line(result)
    assert line.startswith(f"stopped: {folder}/step_") and "cannot be written: " in line and "--resume goes on" in line
    [whole] = folder.glob("*step_*")
    assert (folder / "latest").read_text().strip() == whole.name != Path(line.split()[1]).name
    assert manifest.damage(whole, with_hashes=True) is None


def for_sft(flags: dict) -> dict:
    return {name: value for name, value in flags.items() if name != "group_size"} | {"max_length": 96}


# In a process of its own, which may not make files of more than 500 bytes.
FULL_DISK = """
import json, resource, sys
from pathlib import Path
import safetensors.torch, torch
from utils.run.errors import RunStopped
from utils.run.output_dir import writing
from utils.run.logger import Logger
folder, many = Path(sys.argv[1]), torch.zeros(10_000)
logger = Logger(folder, {}, True, total_steps=9)
ways = {
    "python": lambda path: path.write_text("a" * 10_000),
    "torch": lambda path: torch.save(many, path),
    "safetensors": lambda path: safetensors.torch.save_file({"a": many}, path),
    "metrics.jsonl": lambda _: [logger.log_training(step, {}) for step in range(9)],
}
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
said = {}
for name, write in ways.items():
    try:
        with writing(folder / name):
            write(folder / name)
    except RunStopped as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.mark.slow
def test_every_way_to_say_that_a_disk_is_full_names_the_file(tmp_path):
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    said = json.loads(result.stdout)
    assert list(said) == ["python", "torch", "safetensors", "metrics.jsonl"], result.stderr
    for name, message in said.items():
        assert message.startswith(f"{tmp_path}/{name} cannot be written: ") and "--resume goes on" in message
        assert "GiB are free there" in message


def test_errors_that_are_not_the_disks_are_left_alone(tmp_path):
    for error in (KeyError("a"), RuntimeError("[../gloo/transport/tcp/pair.cc:525] Connection closed by peer")):
        with pytest.raises(type(error)), writing(tmp_path / "x"):
            raise error


def test_an_output_folder_that_cannot_be_written_to_is_bad_input(tmp_path):
    mounted = tmp_path / "read_only"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mounted], capture_output=True).returncode:
        if os.geteuid() == 0:
            pytest.skip("root, and cannot mount")
        mounted.chmod(0o500)
    try:
        with pytest.raises(BadInput, match=r"flag --output_dir .*/run: .*/read_only cannot be written to"):
            check_output_dir(str(mounted / "run"), resume=False, overwrite=False)
        with pytest.raises(BadInput, match=r"flag --output_dir .*/run: cannot be written to \("):
            lock_output_dir(str(mounted / "run"))
    finally:
        subprocess.run(["umount", mounted], capture_output=True)
    check_output_dir(str(tmp_path / "run"), resume=False, overwrite=False)
