"""Kill runs of every training script, resume them until they are done, and compare them with unbroken ones.

    bash tests/chaos/kill_resume.sh 26        # rounds; each kills one run of each script in turn, three times at most

Two processes, ZeRO-3, a tiny model made here, 8 steps over three epochs, a checkpoint every 2 steps and an evaluation
every 3. SIGKILL goes to every process of the run at once, soon after a phase begins that is drawn (AIMS), in one of the
five steps after the last checkpoint, or at any moment of a start, while libraries load too. After step 6 an evaluation
lies between the change of what is kept of each problem and the checkpoint that has it. A run that has no checkpoint yet
is started anew. All lines of metrics.jsonl, times apart, the last checkpoint's weights and what it keeps of problems
must equal the unbroken run's bit for bit.
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
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import tyro

from tests.helpers.launching import DEEPSPEED, IN_TURN, MARK, ROOT, in_words, marked, outcome, to_words
from training import tiny_base
from utils.run.watchdog import FOLDER as HEARTBEATS
from utils.tasks import countdown

DEMONSTRATED = {"max_demonstration_length": 48}
OWN = {  # flags of each script
    "uft": {"hint_steps": 6}, "rft": {"old_logprobs": "engine"}, "stage": {"hint_steps": 6}, "r3": {},
    "sft": {"max_length": 96}, "luffy": DEMONSTRATED, "chord": DEMONSTRATED | {"mu_decay": 8, "phi": True},
    "hpt": DEMONSTRATED, "srft": DEMONSTRATED, "adaback": {}, "ghpo": {"hint_rounds": 2}, "prefix_rft": {},
    "uft_adaptive": {"sft_coef": 0.1}, "dapo": {"max_refills": 2}, "self_distillation": {},
    "relift": DEMONSTRATED | {"buffer_size": 6, "sft_lr": 1e-3},
}
AIMS = ("any moment", "rollout", "update", "evaluation", "checkpoint")  # phases of a heartbeat
STEPS = 8
SOON, LIFE = 0.2, 20  # seconds: after a phase begins, at most; of a start


@dataclass
class Args:
    rounds: int = len(OWN)  # runs that are killed
    kills: int = 3  # of each, at most: a start that ends before its moment is not killed
    seed: int = 0  # of the moments
    scripts: tuple[str, ...] = tuple(OWN)  # in turn
    folder: str = ""  # where; left out: a temporary one
    background_save: bool = False  # of the runs that are killed; what they are compared with saves as it goes


def flags_of(name: str, base: Path, data: Path) -> dict:
    flags = {
        "model": base, "data": data, "seed": 1, "total_steps": STEPS, "eval_every": 3, "eval_problems": 16,
        "save_every": 2, "keep_last": 2, "prompts_per_step": 16, "mini_batch_prompts": 8, "max_prompt_length": 64,
        "max_response_length": 32, "max_tokens_per_micro_batch": 320, "lr": 1e-3, "zero_stage": 3,
    }
    return flags | ({} if name == "sft" else {"group_size": 4, "kl_coef": 0.1}) | OWN[name]


def start(script: str, words: list[str], log: Path) -> tuple[subprocess.Popen, str]:
    """The launch, and the mark of its processes."""
    mark = uuid.uuid4().hex
    port = str(random.SystemRandom().randrange(20_000, 60_000))
    command = [str(DEEPSPEED), "--num_gpus", "2", "--master_port", port, script, *words]
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


def heartbeat(output_dir: Path) -> tuple[int, str]:
    """Step and phase of the second process; of a start that has none yet, 0 and nothing."""
    try:
        record = json.loads((output_dir / HEARTBEATS / "rank_1").read_text())
    except (OSError, ValueError):  # not there, or about to be written
        return 0, ""
    return record["step"], record["phase"]


def saved_step(output_dir: Path) -> int:
    latest = output_dir / "checkpoints" / "latest"
    return int(latest.read_text().removeprefix("step_")) if latest.exists() else 0


def wait_to_kill(process: subprocess.Popen, output_dir: Path, draw: random.Random) -> bool:
    """Whether the moment that is drawn came before the end of the process."""
    aim, delay = draw.choice(AIMS), draw.uniform(0, SOON)
    first_step = min(saved_step(output_dir) + draw.randrange(1, 6), STEPS)
    if aim == AIMS[0]:
        first_step, delay = 0, draw.uniform(0, LIFE)
    phases = {AIMS[0]: ("",), "rollout": ("rollout", "batch")}.get(aim, (aim,))  # a batch is what sft.py has
    while process.poll() is None:
        step, phase = heartbeat(output_dir)
        if step >= first_step and phase in phases:
            time.sleep(delay)
            return process.poll() is None
        time.sleep(0.005)
    return False


def main(args: Args) -> None:
    folder = Path(args.folder or tempfile.mkdtemp())
    base, data, draw = folder / "base", folder / "data", random.Random(args.seed)
    if not base.exists():
        kind = {"test_problems": 16, "min_numbers": 2, "max_numbers": 2, "max_number": 15, "min_target": 3,
                "max_target": 40, "operators": "+-*"}
        countdown.build(data, train_problems=40, **kind)
        countdown.build(folder / "more_data", train_problems=200, **kind)
        tiny_base.main(tiny_base.Args(
            data=str(folder / "more_data"), output_dir=str(base), solved_fraction=1.0, steps=600, batch_size=8, lr=4e-3,
            warmup_steps=10, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2,
            max_position_embeddings=192, tokenizer_texts=300, eval_problems=0,
        ))
    flags = {name: flags_of(name, base, data) for name in args.scripts[: args.rounds]}
    whole = [(f"training/{name}.py", of_script | {"output_dir": folder / f"{name}_whole", "overwrite": True})
             for name, of_script in flags.items()]
    process, _ = start(IN_TURN, [in_words(whole)], folder / "whole.txt")
    assert process.wait() == 0, f"see {folder}/whole.txt"
    own = {"background_save": True} if args.background_save else {}
    kills, differing, phases = Counter(), Counter(), {name: Counter() for name in flags}
    for number in range(args.rounds):
        name = args.scripts[number % len(args.scripts)]
        expected = outcome(folder / f"{name}_whole", STEPS)
        output_dir, killed_at, starts = folder / f"{name}_killed", [], 0
        shutil.rmtree(output_dir, ignore_errors=True)
        while True:
            how = "resume" if saved_step(output_dir) else "overwrite"
            shutil.rmtree(output_dir / HEARTBEATS, ignore_errors=True)  # of the start before
            words = to_words(flags[name] | own | {"output_dir": output_dir, how: True})
            process, mark = start(f"training/{name}.py", words, folder / f"{name}_killed.txt")
            starts += 1
            if len(killed_at) < args.kills and wait_to_kill(process, output_dir, draw):
                kill(process, mark)
                killed_at.append(heartbeat(output_dir))
                continue
            assert process.wait(1200) == 0, f"see {folder}/{name}_killed.txt"
            break
        num_differing = sum(one != other for one, other in zip_longest(outcome(output_dir, STEPS), expected))
        kills[name] += len(killed_at)
        differing[name] += num_differing
        phases[name] += Counter(phase or "start" for _, phase in killed_at)
        print(json.dumps({"round": number + 1, "script": name, "starts": starts, "lines": len(expected),
                          "killed_at": [f"{step} {phase or 'start'}" for step, phase in killed_at],
                          "differing": num_differing}), flush=True)
    for name in phases:
        where = ", ".join(f"{phase} {count}" for phase, count in phases[name].most_common())
        print(f"| {name} | {kills[name]} | {differing[name]} | {where} |")
    print(f"{args.rounds} runs, {kills.total()} kills, {differing.total()} lines differ; in {folder}")
    assert not differing.total()


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
