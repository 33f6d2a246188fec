"""Tokens per second of the engines and of transformers' generate: same model, prompts, samples and lengths.

    python -m tests.bench.rollout                            # 4.9 M parameters at random, 64 prompts of 140 tokens
    python -m tests.bench.rollout --who torch vllm generate --samples 1 4 8 16 --tokens 32 128 512
    python -m tests.bench.rollout --model runs/quickstart/base --data runs/quickstart/data --ends
    python -m tests.bench.rollout --shape 3B --samples 4 --tokens 256 --kv_cache_gb 16 --who torch generate  # a GPU

Sampling at temperature 1; all take turns, and the median of the runs counts. The end of sequence is switched off, so
that all make exactly prompts x samples x tokens; with --ends responses end when they do, as in training, and tokens up
to the end count. vLLM is what --engine vllm starts. Run it with nothing else on the machine.

On a GPU also the share of its bandwidth: the bytes of weights, keys and values that each token has to read, prefill
counted as nothing, over what the card can move. The goal for "torch" is a half.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inference.hybrid_engine import load_engine
from tests.bench.cards import present_card
from tests.bench.shapes import ShapeName, decode_bytes, save_model
from tests.bench.workload import make_model, make_problems
from utils.cpu_linear import set_matmul_precision
from utils.data import load_problems
from utils.pretrained import resolve_dtype
from utils.prompts import PromptBuilder
from utils.run import processes
from utils.setup.shapes import shape_of
from utils.types import Prompt, Sampling

GOAL = 0.5  # of the bandwidth


@dataclass
class Args:
    model: str = ""  # folder or Hugging Face name; left out: random weights, 4.9 M parameters
    shape: ShapeName = ""  # without --model: random weights of that shape, for a GPU
    data: str = ""  # folder with train.parquet, or a built-in task; left out: random prompts of about 140 tokens
    who: tuple[Literal["torch", "vllm", "generate"], ...] = ("torch", "generate")  # the first is compared with the rest
    prompts: int = 64  # different prompts
    samples: tuple[int, ...] = (1, 4, 8)  # samples per prompt
    tokens: tuple[int, ...] = (64,)  # tokens per sample
    ends: bool = False  # responses end at the end of sequence
    repeats: int = 5  # runs of each; the median counts
    threads: int = 2  # CPU threads
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of torch and generate
    kv_cache_gb: float = 4.0  # of the engines
    output: str = ""  # JSON


def of_card(rates: dict[str, float], model: str, prompts: list[Prompt], samples: int, tokens: int, dtype: torch.dtype,
            device: torch.device) -> dict[str, object]:
    """Shares of the card's bandwidth; nothing on a CPU, or for a model whose shape is not known."""
    card, shape = present_card(device), shape_of(AutoConfig.from_pretrained(model))
    if card is None or shape is None:
        return {}
    prefix = sum(len(prompt.prompt_ids) for prompt in prompts) // len(prompts)
    moved = decode_bytes(shape, len(prompts), samples, prefix, tokens / 2, dtype.itemsize)
    steps = {who: rate / (len(prompts) * samples) for who, rate in rates.items()}  # tokens of a row, a second
    return {"card": card[0], "goal": GOAL,
            "share of bandwidth": {who: round(moved * rate / card[1].bandwidth, 2) for who, rate in steps.items()}}


def main(args: Args) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    set_matmul_precision(args.matmul_precision)
    device = processes.join()
    dtype = resolve_dtype("auto", device)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        made = save_model(args.shape, Path(folder, "model")) if args.shape else Path(folder, "model")
        name = args.model or str(made if args.shape else make_model(made))
        data = args.data or str(make_problems(Path(folder, "data")))
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        build = PromptBuilder(tokenizer, 10_000, True).build
        prompts = [build(problem) for problem in load_problems(data, "train")[: args.prompts]]
        longest = max(len(prompt.prompt_ids) for prompt in prompts) + max(args.tokens)
        ends = [tokenizer.eos_token_id] if args.ends else []

        def from_engine(engine_name: str) -> Callable[[int, int], int]:
            engine = load_engine(engine_name, name, tokenizer, dtype, device, max_length=longest, tp_size=1,
                                 kv_cache_gb=args.kv_cache_gb, memory_fraction=0.3)
            engine.sync()  # compares itself with the model, and takes what is slower where it must
            engine.eos_ids = torch.tensor(ends, dtype=torch.long, device=device) if engine_name == "torch" else ends

            def run(samples: int, tokens: int) -> int:
                if engine_name == "vllm":
                    engine.llm.reset_prefix_cache()  # as at every sync
                groups = engine.generate(prompts, Sampling(samples, tokens, 1.0))
                return sum(len(rollout.response_ids) for group in groups for rollout in group)

            return run

        def from_generate() -> Callable[[int, int], int]:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval().to(device)
            model.generation_config.eos_token_id = ends or None
            batch = tokenizer.pad({"input_ids": [p.prompt_ids for p in prompts]}, return_tensors="pt").to(device)

            @torch.no_grad()
            def run(samples: int, tokens: int) -> int:
                output = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                        max_new_tokens=tokens, num_return_sequences=samples,
                                        pad_token_id=tokenizer.pad_token_id)
                new = output[:, batch["input_ids"].shape[1] :]
                return int((new != tokenizer.pad_token_id).sum()) if args.ends else new.numel()

            return run

        runs = {who: from_generate() if who == "generate" else from_engine(who) for who in args.who}
        for samples, tokens in product(args.samples, args.tokens):
            rates: dict[str, list[float]] = {who: [] for who in runs}
            for repeat in range(args.repeats + 1):  # the first of each warms up
                for who, run in runs.items():
                    start = time.perf_counter()
                    num_tokens = run(samples, tokens)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    assert args.ends or num_tokens == args.prompts * samples * tokens
                    if repeat:
                        rates[who].append(num_tokens / (time.perf_counter() - start))
            medians = {who: statistics.median(values) for who, values in rates.items()}
            first = medians[args.who[0]]
            results.append({"samples": samples, "tokens": tokens,
                            **{f"{who} tokens/s": round(rate) for who, rate in medians.items()},
                            **{f"ratio to {who}": round(first / rate, 2) for who, rate in medians.items()
                               if who != args.who[0]}})
            results[-1] |= of_card(medians, name, prompts, samples, tokens, dtype, device)
            print(json.dumps(results[-1]), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1))
    os._exit(0)  # vLLM's threads do not end by themselves


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
