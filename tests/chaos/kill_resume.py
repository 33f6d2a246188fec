"""Kill a run at random moments, resume it until it is done, and compare its metrics with the unbroken run's.

    bash tests/chaos/kill_resume.sh 30        # rounds; each kills one run of each algorithm in turn about three times

Two processes, ZeRO-3, a tiny model made here, 12 steps over more than one epoch, a checkpoint every 2 steps and an
evaluation every 3. SIGKILL goes to every process of the run at once, at a moment drawn from the whole life of a start:
while libraries load, in a rollout, an update, an evaluation, or while a checkpoint is written. A run that has no
checkpoint yet is started anew. All lines of metrics.jsonl, times apart, must equal the unbroken run's bit for bit.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.helpers.launching import DEEPSPEED, MARK, ROOT, marked, to_words, without_times
from training import tiny_base
from utils.report.runs import read_metrics
from utils.tasks import countdown

ALGORITHMS = ("uft", "rft", "stage", "r3", "sft", "adaback", "uft_adaptive")


@dataclass
class Args:
    rounds: int = 5  # runs that are killed
    kills: int = 3  # of each, at most: a start that ends before its moment is not killed
    seed: int = 0  # of the moments
    folder: str = ""  # where; left out: a temporary one
    background_save: bool = False  # of the runs that are killed; what they are compared with saves as it goes


def flags_of(name: str, base: Path, data: Path) -> dict:
    flags = {
        "model": base, "data": data, "seed": 1, "total_steps": 12, "eval_every": 3, "eval_problems": 16,
        "save_every": 2, "keep_last": 2, "prompts_per_step": 16, "mini_batch_prompts": 8, "max_prompt_length": 64,
        "max_response_length": 32, "max_tokens_per_micro_batch": 320, "lr": 1e-3, "zero_stage": 3,
    }
    if name == "sft":
        return flags | {"max_length": 96}
    return flags | {"group_size": 4, "kl_coef": 0.1} | ({"hint_steps": 6} if name in ("uft", "stage") else {})


def start(name: str, flags: dict, log: Path) -> tuple[subprocess.Popen, str]:
    """The run, and the mark of its processes."""
    mark = uuid.uuid4().hex
    port = str(random.SystemRandom().randrange(20_000, 60_000))
    command = [str(DEEPSPEED), "--num_gpus", "2", "--master_port", port, f"training/{name}.py", *to_words(flags)]
    environment = os.environ | {MARK: mark, "PATH": f"{DEEPSPEED.parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("a") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT), mark


def kill(process: subprocess.Popen, mark: str) -> None:
    while alive := marked(mark):
        for number in alive:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


def numbers_of(output_dir: Path) -> list[dict]:
    return list(map(without_times, read_metrics(output_dir)))


def main(args: Args) -> None:
    folder = Path(args.folder or tempfile.mkdtemp())
    base, data, draw = folder / "base", folder / "data", random.Random(args.seed)
    if not base.exists():
        countdown.build(data, train_problems=100, test_problems=16, min_numbers=2, max_numbers=2, max_number=15,
                        min_target=3, max_target=40, operators="+-*")
        tiny_base.main(tiny_base.Args(
            data=str(data), output_dir=str(base), solved_fraction=1.0, steps=300, batch_size=8, lr=8e-3,
            warmup_steps=10, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2,
            max_position_embeddings=192, tokenizer_texts=300, eval_problems=0,
        ))
    unbroken: dict[str, tuple[list[dict], float]] = {}
    differing = total_kills = 0
    for number in range(args.rounds):
        name = ALGORITHMS[number % len(ALGORITHMS)]
        flags, own = flags_of(name, base, data), {"background_save": True} if args.background_save else {}
        if name not in unbroken:
            began = time.monotonic()
            process, _ = start(name, flags | {"output_dir": folder / f"{name}_whole", "overwrite": True},
                               folder / f"{name}_whole.txt")
            assert process.wait() == 0, f"see {folder}/{name}_whole.txt"
            unbroken[name] = numbers_of(folder / f"{name}_whole"), time.monotonic() - began
        expected, duration = unbroken[name]
        output_dir, kills, starts = folder / f"{name}_killed", 0, 0
        shutil.rmtree(output_dir, ignore_errors=True)
        while True:
            how = "resume" if (output_dir / "checkpoints" / "latest").exists() else "overwrite"
            process, mark = start(name, flags | own | {"output_dir": output_dir, how: True},
                                  folder / f"{name}_killed.txt")
            starts += 1
            try:
                status = process.wait(draw.uniform(0, duration) if kills < args.kills else 600)
            except subprocess.TimeoutExpired:
                assert kills < args.kills, f"hung: see {folder}/{name}_killed.txt"
                kill(process, mark)
                kills += 1
                continue
            assert status == 0, f"see {folder}/{name}_killed.txt"
            break
        total_kills += kills
        is_same = numbers_of(output_dir) == expected
        differing += not is_same
        print(json.dumps({"round": number + 1, "algorithm": name, "kills": kills, "starts": starts,
                          "lines": len(expected), "equal": is_same}), flush=True)
    print(f"{args.rounds} runs, {total_kills} kills, {differing} differing; in {folder}")
    assert not differing


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
