"""Tokens per second of the torch engine against transformers' generate: same model, prompts, samples and lengths.

    python -m tests.bench.rollout --model runs/quickstart/base --data runs/quickstart/data

Sampling at temperature 1; the two alternate, and the median of the runs counts. Once with the end of sequence switched
off, so that both make exactly prompts x samples x tokens, and once as in training, where responses end when they do:
tokens up to the end count. Run it with nothing else on the machine.
"""

import json
import statistics
import time
from dataclasses import dataclass
from itertools import product

import torch
import tyro
from transformers import AutoTokenizer

from inference.torch_engine import TorchEngine
from utils.data import load_problems
from utils.hints import build_prompt
from utils.zero import load_model, resolve_dtype


@dataclass
class Args:
    model: str  # local folder or Hugging Face name
    data: str  # folder with train.parquet, or a built-in task
    prompts: int = 64  # different prompts
    samples: tuple[int, ...] = (1, 4, 8)  # samples per prompt
    tokens: int = 64  # tokens per sample
    repeats: int = 5  # runs of each; the median counts
    threads: int = 0  # CPU threads; 0 leaves torch's choice


def main(args: Args) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = load_model(args.model, resolve_dtype("auto", device)).eval().to(device)
    prompts = [build_prompt(p, tokenizer, 10_000, True) for p in load_problems(args.data, "train")[: args.prompts]]
    batch = tokenizer.pad({"input_ids": [p.prompt_ids for p in prompts]}, return_tensors="pt").to(device)

    def ours(samples: int, ends: list[int]) -> int:
        engine = TorchEngine(model, ends, kv_cache_gb=8)
        groups = engine.generate(prompts, samples, args.tokens, 1.0)
        return sum(len(rollout.response_ids) for group in groups for rollout in group)

    @torch.no_grad()
    def theirs(samples: int, ends: list[int]) -> int:
        model.generation_config.eos_token_id = ends or None
        output = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                max_new_tokens=args.tokens, num_return_sequences=samples,
                                pad_token_id=tokenizer.pad_token_id)
        new = output[:, batch["input_ids"].shape[1] :]
        return int((new != tokenizer.pad_token_id).sum()) if ends else new.numel()

    print(f"{args.prompts} prompts x n samples x {args.tokens} tokens, {device}, {torch.get_num_threads()} threads")
    for samples, ends in product(args.samples, ([], [tokenizer.eos_token_id])):
        rates: dict[str, list[float]] = {"ours": [], "generate": []}
        for repeat in range(args.repeats + 1):  # the first of each warms up
            for name, run in (("ours", ours), ("generate", theirs)):
                start = time.perf_counter()
                num_tokens = run(samples, ends)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                assert ends or num_tokens == args.prompts * samples * args.tokens
                if repeat:
                    rates[name].append(num_tokens / (time.perf_counter() - start))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(json.dumps({"samples": samples, "ends": bool(ends), "torch engine tokens/s": round(medians["ours"]),
                          "generate tokens/s": round(medians["generate"]),
                          "ratio": round(medians["ours"] / medians["generate"], 2)}))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
