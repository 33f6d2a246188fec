"""How each phase of a step grows with prompts, group size, response length, model size and processes: rft.py as it is.

    python -m tests.bench.scale                                  # each size alone: a half, once and twice the middle
    python -m tests.bench.scale --what prompts ranks

A line per run: seconds of each phase, median of the steps after the first. `grew` is the seconds against those of the
run before over the growth of the work: 1 where a phase grows with the work, less where something is shared or fixed.
Ranks divide the work: 2 processes with one thread each under ZeRO-3 against 1 with one thread at stage 0.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import tyro

from tests.bench.step import PHASES
from tests.bench.workload import make_model, make_problems, read_times

What = Literal["prompts", "group_size", "response_length", "hidden_size", "num_layers", "ranks"]
SIZES: dict[What, tuple[int, ...]] = {
    "prompts": (16, 32, 64), "group_size": (2, 4, 8), "response_length": (32, 64, 128), "hidden_size": (128, 256, 512),
    "num_layers": (3, 6, 12), "ranks": (1, 2),
}


@dataclass
class Args:
    what: tuple[What, ...] = tuple(SIZES)
    steps: int = 3  # timed in each run, after one that warms up
    threads: int = 2  # CPU threads, where the ranks are not what changes
    output: str = ""  # JSON


def run(folder: Path, steps: int, threads: int, prompts: int = 32, group_size: int = 4, response_length: int = 64,
        hidden_size: int = 256, num_layers: int = 6, ranks: int = 0) -> dict[str, float]:
    """Seconds of each phase. `ranks` 0: a plain process at stage 0 with all threads; 1: with one; 2: ZeRO-3."""
    model = folder / f"model_{hidden_size}_{num_layers}"
    if not model.exists():
        make_model(model, hidden_size=hidden_size, num_layers=num_layers)
    data = folder / "data"
    if not data.exists():
        make_problems(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(port)]
    output_dir = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [
        *(launcher if ranks > 1 else [sys.executable]), "training/rft.py", "--model", str(model), "--data", str(data),
        "--output_dir", str(output_dir), "--total_steps", str(steps + 1), "--prompts_per_step", str(prompts),
        "--mini_batch_prompts", str(prompts), "--group_size", str(group_size), "--max_prompt_length", "384",
        "--max_response_length", str(response_length), "--eval_problems", "1", "--eval_every", "99", "--save_every",
        "99", "--zero_stage", "3" if ranks > 1 else "0", "--engine", "torch", "--kv_cache_gb", "4",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"OMP_NUM_THREADS": str(1 if ranks else threads), "TOKENIZERS_PARALLELISM": "false", "PATH": path}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = read_times(output_dir / "metrics.jsonl")
    return {phase: median(line[f"seconds/{phase}"] for line in lines) for phase in PHASES}


def main(args: Args) -> None:
    results = []
    with tempfile.TemporaryDirectory() as name:
        for what in args.what:
            before: tuple[int, dict[str, float]] | None = None
            for size in SIZES[what]:
                seconds = run(Path(name), args.steps, args.threads, **{what: size})
                line = {"what": what, "size": size, **{phase: round(value, 3) for phase, value in seconds.items()}}
                if before is not None:
                    growth = size / before[0] if what != "ranks" else before[0] / size
                    line["grew"] = {phase: round(seconds[phase] / before[1][phase] / growth, 2)
                                    for phase in ("rollout", "logprobs", "update")}
                before = size, seconds
                results.append(line)
                print(json.dumps(line), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
