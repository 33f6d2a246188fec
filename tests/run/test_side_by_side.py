"""Two runs on one machine, started as README says, at the same time; and one that finds its port taken."""

import os
import socket
import subprocess

import pytest

from tests.helpers.launching import DEEPSPEED, ROOT, launch_words, to_words, training_lines
from utils.run import environment

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(base_model, countdown_data):
    return {"model": base_model, "data": countdown_data, "total_steps": 2, "prompts_per_step": 8,
            "mini_batch_prompts": 8, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8,
            "eval_problems": 4, "zero_stage": 2}


def test_two_runs_side_by_side_need_no_port_and_give_the_same_numbers(flags, tmp_path):
    path = f"{DEEPSPEED.parent}{os.pathsep}{os.environ['PATH']}"
    runs = [
        subprocess.Popen([str(DEEPSPEED), "--num_gpus", "2", "training/sft.py",
                          *to_words(flags | {"output_dir": tmp_path / name})],
                         cwd=ROOT, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
        for name in ("one", "other")
    ]
    for run in runs:
        output, _ = run.communicate(timeout=240)
        assert run.returncode == 0, output[-6000:]
    one, other = ([line["loss"] for line in training_lines(tmp_path / name)] for name in ("one", "other"))
    assert one == other and len(one) == 2
    assert not list(environment.extensions_root().glob(".port_*"))


def test_a_port_that_was_asked_for_and_is_taken_is_told_in_one_line(flags, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = launch_words("training/sft.py", to_words(flags | {"output_dir": tmp_path / "run"}), 2, port=port)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1] == (
        f"stopped: port {port} is taken, by another run perhaps; give this one another: deepspeed --master_port "
        f"{port + 1} ...")
