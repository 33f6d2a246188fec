"""Several machines: the Slurm script with stand-ins for srun and scontrol, two launchers of this machine as its nodes;
a run that is stopped before its time limit, loses a node, goes on, and gives the numbers of one machine."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import shells
from tests.helpers.launching import (
    DEEPSPEED,
    ROOT,
    evaluation_lines,
    launch,
    run,
    succeed,
    survivors,
    to_words,
    training_lines,
    wait_for,
    without_times,
)
from utils.manifest import damage
from utils.run import distributed, processes
from utils.run.errors import BadInput
from utils.run.launcher import stat

SCRIPT = "launch_scripts/slurm/uft_qwen3b.sbatch"
SRUN = """#!/usr/bin/env bash
echo "$PPID" >"$RECORD.shell"
while [[ "$1" == --* ]]; do shift; done
for node in 0 1; do
    [[ -z "${APART:-}" || $node == 0 ]] || export OUTPUT_DIR=$OUTPUT_DIR.other
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "${status:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$1" != show ]] || printf 'localhost\\n127.0.0.1\\n'
echo "$@" >>"$RECORD"
"""


@pytest.fixture
def slurm(tmp_path):
    """slurm(flags, fault=...) runs the batch script as Slurm would; in `tmp_path / "record"`: what it told scontrol."""
    shells.make_environment(tmp_path / "venv", f'#!/usr/bin/env bash\nexec "{DEEPSPEED}" "$@"\n')
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "venv" / "bin" / name).write_text(text)
        (tmp_path / "venv" / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{DEEPSPEED.parent}{os.pathsep}{os.environ['PATH']}"
    variables = {
        "VENV": str(tmp_path / "venv"), "RECORD": str(tmp_path / "record"), "PATH": path, "GPUS": "1",
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": str(20_000 + os.getpid() % 20_000), "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]", "OUTPUT_DIR": str(tmp_path / "run"), "OMP_NUM_THREADS": "1",
    }

    def start(flags: dict, **settings) -> subprocess.CompletedProcess:
        return run(["bash", SCRIPT, *to_words(flags)], **(variables | settings))

    return start


@pytest.mark.slow
def test_two_nodes_are_stopped_lose_one_go_on_and_give_the_numbers_of_one_machine(
    slurm, tmp_path, base_model, countdown_data
):
    flags = {
        "model": base_model, "data": countdown_data, "total_steps": 24, "eval_every": 6, "eval_problems": 8,
        "save_every": 2, "prompts_per_step": 8, "mini_batch_prompts": 4, "group_size": 4, "max_prompt_length": 64,
        "max_response_length": 32, "max_tokens_per_micro_batch": 400, "lr": 1e-3, "dtype": "float32", "hint_steps": 3,
    }
    folder, record = tmp_path / "run", tmp_path / "record"

    def wait_for_steps(count: int) -> None:
        """That many after the one that is resumed."""
        latest = folder / "checkpoints" / "latest"
        start = int(latest.read_text().strip().removeprefix("step_")) if latest.exists() else 0
        wait_for(folder / "metrics.jsonl", f'"step": {start + count}, "reward"')

    def near_the_limit(count: int) -> None:
        wait_for_steps(count)
        os.kill(int((tmp_path / "record.shell").read_text()), signal.SIGUSR1)

    stopped = succeed(slurm(flags, fault=lambda: near_the_limit(1)))
    assert "saved; go on with --resume" in stopped.stdout and survivors(stopped) == []
    assert record.read_text().splitlines()[-1].startswith("requeue ")

    killed_at = 0.0

    def a_node_dies() -> None:
        nonlocal killed_at
        wait_for_steps(2)
        rank = json.loads((folder / ".heartbeat" / "rank_1").read_text())["process"]
        launcher = int(stat(Path("/proc", str(rank)))[1])
        killed_at = time.monotonic()
        for process in (launcher, rank):
            os.kill(process, signal.SIGKILL)

    record.write_text("")
    killed = slurm(flags, fault=a_node_dies)
    assert time.monotonic() - killed_at < 60 and killed.returncode != 0 and survivors(killed) == []
    assert "resumed from " in killed.stdout
    assert "stopped: rank 1 (process " in killed.stderr and "was killed" in killed.stderr
    assert "requeue" not in record.read_text()

    # From here on each node has a folder of its own, at first with all that both had.
    other = tmp_path / "run.other"
    shutil.copytree(folder, other)
    (other / "metrics.jsonl").unlink()
    apart = flags | {"node_local_output": True}
    succeed(slurm(apart, APART="yes", fault=lambda: near_the_limit(4)))  # 2 or 3 are written down already
    name = (folder / "checkpoints" / "latest").read_text().strip()
    for one in (folder, other):
        assert (one / "checkpoints" / "latest").read_text().strip() == name
        assert damage(one / "checkpoints" / name, with_hashes=True) is None
    states = [{path.name for path in (one / "checkpoints" / name / "state").rglob("*.pt")} for one in (folder, other)]
    assert len(states[0]) == len(states[1]) == 2 and not states[0] & states[1]
    record.write_text("")
    assert f"resumed from {folder}/checkpoints/{name}:" in succeed(slurm(apart, APART="yes")).stdout
    assert "requeue" not in record.read_text() and not (other / "metrics.jsonl").exists()
    assert [(one / "checkpoints" / "step_24" / "hf").exists() for one in (folder, other)] == [True, False]

    here = tmp_path / "one_machine"
    own = {"zero_stage": 3, "output_dir": here}  # the rest is the script's default
    succeed(launch("training/uft.py", flags | own, 2, OMP_NUM_THREADS="1"))
    assert list(map(without_times, training_lines(folder))) == list(map(without_times, training_lines(here)))
    assert evaluation_lines(folder) == evaluation_lines(here)
    assert len(training_lines(here)) == 24


def test_machines_with_an_output_folder_each_are_told_so(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("17 on node1\n")
    seen = [["node1", "17 on node1\n"], ["node2", ""]]
    monkeypatch.setattr(distributed, "gather", lambda mine: seen)
    processes._check_shared(str(tmp_path))  # one machine
    monkeypatch.setenv("CROSS_SIZE", "2")
    with pytest.raises(BadInput, match="must lie on a disk that all machines share .node1, node2., and on node2 it is"):
        processes._check_shared(str(tmp_path))
    seen[1][1] = seen[0][1]
    processes._check_shared(str(tmp_path))


def test_the_scripts_for_several_machines_are_valid_bash_and_keep_the_recipe(tmp_path):
    """They call uft_qwen3b.sh, whose recipe is tested."""
    assert subprocess.run(["bash", "-n", SCRIPT], cwd=ROOT).returncode == 0
    shells.make_environment(tmp_path / "venv", '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"$RECORD"\n')
    variables = {"VENV": str(tmp_path / "venv"), "RECORD": str(tmp_path / "record"), "SEED": "7"}
    script = str(ROOT / "launch_scripts" / "uft_qwen3b_2nodes.sh")
    missing = shells.bash([script], tmp_path, HOSTS="/nowhere", **variables)
    assert missing.returncode == 2 and "error: HOSTS=/nowhere: no such file" in missing.stderr
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=4\nb slots=4\n")
    assert shells.bash([script, "--resume"], tmp_path, HOSTS=str(hosts), **variables).returncode == 0
    words = (tmp_path / "record").read_text().splitlines()
    start = ["--quiet", "--hostfile", str(hosts), "--num_nodes", "2", "--num_gpus", "4", "training/uft.py"]
    assert words[: len(start)] == start and words[-1] == "--resume"
    assert words[words.index("--output_dir") + 1] == "runs/uft_qwen3b_2nodes_seed7"
