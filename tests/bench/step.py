"""Seconds of a training step, ours against TRL's GRPOTrainer: same model, prompts, group size, response length, beta
and reward, one process each, alternating runs, medians.

    pip install trl==1.16.0      # beside requirements-cpu.txt, in an environment of its own if you like
    python -m tests.bench.step                                   # 4.9 M parameters, 64 prompts of 140 tokens, 4 x 64
    python -m tests.bench.step --shown 2 --group_size 8          # part of the solution as hint
    python -m tests.bench.step --model runs/quickstart/base --data runs/quickstart/data
    python -m tests.bench.step --shape 0.5B --prompts 128 --response_length 512 --max_tokens_per_micro_batch 16384 \
        --trl_micro_batches 16 32 64 --trl generate vllm         # on a GPU; a step should take a third of TRL's

Ours is `training/rft.py` as it stands (uft.py where something of the solution is shown), its times are those of
metrics.jsonl. TRL runs in tests/bench/trl_step.py, by transformers' generate or by vLLM in its process, with the
fastest of the micro-batch sizes given; where it or vLLM is not installed, that is said and left out.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro

from tests.bench.cards import present_card
from tests.bench.shapes import ShapeName, save_model
from tests.bench.workload import make_model, make_problems, read_times

GOAL = 3.0  # of TRL's seconds over ours, on a GPU
PHASES = ("sync", "rollout", "reward", "logprobs", "update")


@dataclass
class Args:
    model: str = ""  # folder; left out: random weights, 4.9 M parameters
    shape: ShapeName = ""  # without --model: random weights of that shape, for a GPU
    data: str = ""  # folder; left out: random prompts of about 140 tokens
    prompts: int = 64  # a step
    group_size: int = 4  # responses a prompt
    response_length: int = 64  # tokens
    shown: int = 0  # of five chunks of the solution, after the prompt
    max_tokens_per_micro_batch: int = 4_096  # ours
    trl_micro_batches: tuple[int, ...] = (64, 256)  # completions; each is timed, the fastest counts
    trl: tuple[Literal["generate", "vllm"], ...] = ("generate",)  # how it generates; none: ours alone
    engine: str = "torch"  # ours
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # ours; below highest TRL has bf16=True
    steps: int = 2  # timed in each run, after one that warms up
    repeats: int = 5  # runs of each
    threads: int = 2  # CPU threads
    output: str = ""  # JSON with all times


def start(words: list[str], threads: int) -> None:
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.getcwd(), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *words], env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def ours(args: Args, model: str, data: str, folder: Path) -> list[dict[str, float]]:
    """A training line for each timed step."""
    script, p = ["training/rft.py"], str(args.shown / 5)
    if args.shown:
        script = ["training/uft.py", "--p_high", p, "--p_low", p, "--hint_steps", "99"]
    start([
        *script, "--model", model, "--data", data, "--output_dir", str(folder), "--total_steps", str(args.steps + 1),
        "--prompts_per_step", str(args.prompts), "--mini_batch_prompts", str(args.prompts), "--group_size",
        str(args.group_size), "--max_prompt_length", "384", "--max_response_length", str(args.response_length),
        "--max_tokens_per_micro_batch", str(args.max_tokens_per_micro_batch), "--eval_problems", "1", "--eval_every",
        "99", "--save_every", "99", "--zero_stage", "0", "--engine", args.engine, "--kv_cache_gb", "4",
        "--matmul_precision", args.matmul_precision,
    ], args.threads)
    return read_times(folder / "metrics.jsonl")


def theirs(args: Args, model: str, data: str, folder: Path, how: str, micro_batch: int) -> list[float]:
    output = folder.with_suffix(".json")
    start([
        "-m", "tests.bench.trl_step", "--model", model, "--data", data, "--output", str(output), "--steps",
        str(args.steps + 1), "--prompts", str(args.prompts), "--group_size", str(args.group_size), "--response_length",
        str(args.response_length), "--micro_batch", str(micro_batch), "--shown", str(args.shown), "--how", how,
        *["--bf16"] * (args.matmul_precision != "highest"),
    ], args.threads)
    return json.loads(output.read_text())[1:]


def main(args: Args) -> None:
    missing = {"generate": [name for name in ("trl", "datasets") if find_spec(name) is None]}
    missing["vllm"] = missing["generate"] + ["vllm"] * (find_spec("vllm") is None)
    variants = []
    for how in args.trl:
        if missing[how]:
            print(f"TRL by {how} is left out: {', '.join(missing[how])} not installed", flush=True)
        else:
            variants += [(how, size) for size in args.trl_micro_batches]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = save_model(args.shape, folder / "model") if args.shape else folder / "model"
        model = args.model or str(made if args.shape else make_model(made))
        data = args.data or str(make_problems(folder / "data"))
        lines: list[dict[str, float]] = []
        seconds: dict[tuple[str, int], list[float]] = {variant: [] for variant in variants}
        for repeat in range(args.repeats):
            lines += ours(args, model, data, folder / f"ours{repeat}")
            for how, size in variants:
                seconds[how, size] += theirs(args, model, data, folder / f"trl{repeat}_{how}_{size}", how, size)
    phases = {phase: median(line[f"seconds/{phase}"] for line in lines) for phase in PHASES}
    step = median(sum(line[f"seconds/{phase}"] for phase in PHASES) for line in lines)
    trl = {f"{how} {size}": round(median(values), 2) for (how, size), values in seconds.items()}
    result = {
        "ours": round(step, 2), **{phase: round(value, 2) for phase, value in phases.items()}, "TRL": trl,
        "ratio": {how: round(min(median(values) for (other, _), values in seconds.items() if other == how) / step, 2)
                  for how in dict(variants)},
        "response tokens": {"ours": round(median(line["response_tokens"] for line in lines), 1)},
    }
    if card := present_card(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        result |= {"card": card[0], "goal of the ratio to generate": GOAL}
    print(json.dumps(result))
    if args.output:
        whole = {"result": result, "lines": lines, "trl": {" ".join(map(str, key)): seconds[key] for key in seconds}}
        Path(args.output).write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
