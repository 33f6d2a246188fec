"""Tokens per second of an evaluation, greedy, one response a problem, beside those of a training rollout.

    python -m tests.bench.evaluation --model runs/quickstart/base --data runs/quickstart/data

Responses end when they do, as in runs; both take turns, and the median of the runs counts. A rollout computes a prompt
once for all samples of its group, an evaluation for one.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import tyro
from transformers import AutoTokenizer

from inference.hybrid_engine import load_engine
from utils.cpu_linear import set_matmul_precision
from utils.data import load_problems
from utils.pretrained import resolve_dtype
from utils.prompts import PromptBuilder
from utils.run import processes
from utils.types import Sampling


@dataclass
class Args:
    model: str  # folder
    data: str  # folder
    problems: int = 1_024  # of the test split, as often as it takes
    prompts: int = 64  # of a rollout
    group_size: int = 4  # samples a prompt
    tokens: int = 64  # at most
    repeats: int = 5  # the median counts
    threads: int = 2  # CPU threads
    matmul_precision: str = "highest"  # of float32 products
    output: str = ""  # JSON


def main(args: Args) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    set_matmul_precision(args.matmul_precision)
    device = processes.join()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    build = PromptBuilder(tokenizer, 10_000, True).build
    test = [build(problem) for problem in load_problems(args.data, "test")]
    train = [build(problem) for problem in load_problems(args.data, "train")[: args.prompts]]
    test = (test * (args.problems // len(test) + 1))[: args.problems]
    longest = max(len(prompt.prompt_ids) for prompt in test + train) + args.tokens
    engine = load_engine("torch", args.model, tokenizer, resolve_dtype("auto", device), device, max_length=longest,
                         tp_size=1, kv_cache_gb=2.0, memory_fraction=0.3)
    work = {"evaluation": (test, Sampling(1, args.tokens, 0.0)),
            "rollout": (train, Sampling(args.group_size, args.tokens, 1.0))}
    rates: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(args.repeats + 1):  # the first of each warms up
        for name, (prompts, sampling) in work.items():
            start = time.perf_counter()
            groups = engine.generate(prompts, sampling)
            tokens = sum(len(rollout.response_ids) for group in groups for rollout in group)
            rates[name] += [tokens / (time.perf_counter() - start)] if repeat else []
    medians = {name: median(values) for name, values in rates.items()}
    result = {f"{name} tokens/s": round(rate) for name, rate in medians.items()}
    result["ratio"] = round(medians["evaluation"] / medians["rollout"], 2)
    print(json.dumps(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
