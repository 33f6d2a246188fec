"""Seconds from the command to what a run does first, as a user starts it: by DeepSpeed's launcher, two processes.

    python -m tests.bench.start --model runs/quickstart/base --data runs/quickstart/data

Alternating runs, medians: of training/rft.py to the first line of its metrics (one problem evaluated before step 1), of
a Python that imports PyTorch, transformers and DeepSpeed, which no run can go below, and of one that imports nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

LIBRARIES = "import torch, transformers, deepspeed"


@dataclass
class Args:
    model: str  # folder
    data: str  # folder
    processes: int = 2  # that DeepSpeed's launcher starts
    repeats: int = 5  # the median counts
    output: str = ""  # JSON


def until_first_line(args: Args, folder: Path) -> float:
    words = ["deepspeed", "--quiet", "--num_gpus", str(args.processes), "training/rft.py", "--model", args.model,
             "--data", args.data, "--output_dir", str(folder), "--total_steps", "1", "--prompts_per_step", "4",
             "--group_size", "2", "--mini_batch_prompts", "4", "--max_prompt_length", "384",
             "--max_response_length", "2", "--eval_problems", "1"]
    start, metrics = time.perf_counter(), folder / "metrics.jsonl"
    with (folder.parent / "log").open("w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=log)
        while not (metrics.is_file() and metrics.stat().st_size):
            assert run.poll() is None, (folder.parent / "log").read_text()[-2000:]
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        run.wait()
    return seconds


def of_python(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main(args: Args) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    seconds: dict[str, list[float]] = {"first line": [], "libraries": [], "python": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats + 1):  # the first compiles, and reads files from the disk
            found = until_first_line(args, Path(folder, str(repeat))), of_python(LIBRARIES), of_python("")
            for name, value in zip(seconds, found, strict=True):
                seconds[name] += [value] if repeat else []
    result = {name: round(median(values), 2) for name, values in seconds.items()}
    print(json.dumps(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result | {"all": seconds}))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
