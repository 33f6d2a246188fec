"""The update phase, forward and backward of a mini-batch: tokens per second, share of the matrix limit, memory.

    python -m tests.bench.update                                # 4.9 M parameters, 64 prompts of 140 tokens, 4 x 64
    python -m tests.bench.update --vocab_sizes 512 32768 152064 --groups 22 --max_tokens 4096 --who shared    # memory
    python -m tests.bench.update --shape 0.5B --groups 16 --prompt_length 230 --response_length 1024 \
        --max_tokens 16384 --who shared --repeats 3                                                           # a GPU

padded   rows of prompt + response padded on the right, logits of every token by the model's own head
packed   our packing without sharing: a prompt once per response
shared   our packing as the scripts use it: a prompt once per group
masked   the same with attention under a mask over the whole row, instead of by response (utils/layouts.py)

padded is the model as transformers loads it; on a CPU in float32 the others compute by oneDNN (utils/cpu_linear.py).
FLOPs are those of matrix products and attention (a masked pair of tokens counts), divided by the time and by the rate
of a large square matrix product on the same threads: torch.mm's, and oneDNN's beside it. Memory is the growth of the
peak of the process over what it held before, weights and gradients not counted; each vocabulary size is a process of
its own. On a GPU also MFU: the FLOPs that the work needs, a prompt once and only pairs that see each other, over the
time and what the card's maker promises. The goal for "shared" is 0.55.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.bench.cards import matrix_rate, present_card, wait
from tests.bench.shapes import OTHERS, QWEN, config_of, random_model, update_flops
from tests.bench.workload import make_model
from utils.actor import checkpoint_layers
from utils.cpu_kernels import prepare_for_cpu
from utils.cpu_linear import product, set_matmul_precision
from utils.layouts import Masked
from utils.packing import pack
from utils.policy import Policy
from utils.pretrained import load_model, resolve_dtype
from utils.scorer import Scorer
from utils.setup.shapes import shape_of
from utils.types import Problem, Prompt, Rollout

GOAL = 0.55  # MFU


@dataclass
class Args:
    # Random weights of that shape, for a GPU, or in the layers of Gemma 3; left out: what the other flags say.
    shape: Literal["", "0.5B", "1.5B", "3B", "gemma3-270M"] = ""
    vocab_sizes: tuple[int, ...] = (2_048,)  # of the model, if it is not one of Qwen's
    groups: int = 64  # prompts
    group_size: int = 4  # responses a prompt
    prompt_length: int = 140  # tokens, give or take a tenth
    response_length: int = 64  # tokens, at most; at least half
    hidden_size: int = 256  # of the model
    num_layers: int = 6  # of the model
    max_tokens: int = 4_096  # of a micro-batch
    who: tuple[Literal["shared", "masked", "packed", "padded"], ...] = ("shared", "packed", "padded")  # memory: first's
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of all; the limits are those of highest
    gradient_checkpointing: bool = False  # ours: recompute activations in the backward pass
    repeats: int = 5  # the median counts
    threads: int = 2  # CPU threads
    output: str = ""  # JSON: a list, a result for each vocabulary size
    alone: bool = False  # this process measures one vocabulary size


def make_groups(args: Args) -> list[list[Rollout]]:
    random = np.random.default_rng(0)

    def ids(low: float, high: float) -> list[int]:
        return random.integers(2, 500, int(random.integers(round(low), round(high) + 1))).tolist()

    problem = Problem(0, "countdown", "", (), "", {})
    groups = []
    for _ in range(args.groups):
        prompt = Prompt(problem, ids(0.9 * args.prompt_length, 1.1 * args.prompt_length), [], 0)
        responses = [ids(args.response_length / 2, args.response_length) for _ in range(args.group_size)]
        groups.append([Rollout(prompt, one, [0.0] * len(one), "length") for one in responses])
    return groups


def count_product(states: list[int], weight: list[int], *_, out_shape=None, **__) -> int:
    """FLOPs of oneDNN's linear layer, which PyTorch's counter does not know."""
    return 2 * math.prod(states) * weight[0]


def count_attention(query: list[int], key: list[int], *_, out_shape=None, **__) -> int:
    """FLOPs of attention on a CPU, which it does not know either: all pairs, as it counts on a GPU."""
    return 4 * math.prod(query) * key[2]


def count_attention_backward(_, query: list[int], key: list[int], *__, out_shape=None, **___) -> int:
    return 10 * math.prod(query) * key[2]  # five products, where the forward pass has two


ON_CPU = {
    torch.ops.mkldnn._linear_pointwise: count_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
}


def padded_loss(model, rows: list[Rollout], device: torch.device) -> Tensor:
    """Log-probabilities and entropies of the responses from the full logits, as most trainers compute them."""
    texts = [row.prompt.prompt_ids + row.response_ids for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
    logps = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    scored = torch.tensor([[len(row.prompt.prompt_ids) <= column + 1 < len(text) for column in range(width - 1)]
                           for row, text in zip(rows, texts, strict=True)], device=device)
    logprobs = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    return torch.where(scored, logprobs - 0.001 * entropies, 0.0).sum()


def make_models(
    args: Args, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model as a run has it, and as transformers loads it."""
    is_padded = "padded" in args.who  # else nobody asks for the second
    if args.shape:
        config = OTHERS[args.shape] if args.shape in OTHERS else config_of(QWEN[args.shape])
        if args.shape in OTHERS:
            config.vocab_size = vocab_size
        model = prepare_for_cpu(random_model(config, device, dtype))
        return model, random_model(config, device, dtype) if is_padded else model
    with tempfile.TemporaryDirectory() as folder:
        name = make_model(Path(folder), vocab_size, args.hidden_size, args.num_layers)
        model = load_model(str(name), dtype).to(device)
        return model, AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device) if is_padded else model


def measure(args: Args, vocab_size: int) -> dict:
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype("auto", device)
    set_matmul_precision(args.matmul_precision)
    model, plain = make_models(args, vocab_size, device, dtype)
    if args.gradient_checkpointing:
        checkpoint_layers(model)
    groups = make_groups(args)
    scorer = Scorer(policy := Policy(model), policy, 1.0)
    layout_of = scorer.layout_of
    num_scored = sum(len(one.response_ids) for group in groups for one in group)
    rows = sorted((one for group in groups for one in group), key=lambda one: len(one.prompt.prompt_ids) + len(
        one.response_ids), reverse=True)
    per_batch = max(1, args.max_tokens // (len(rows[0].prompt.prompt_ids) + len(rows[0].response_ids)))

    def losses(how: str):
        if how == "padded":
            for start in range(0, len(rows), per_batch):
                yield padded_loss(plain, rows[start : start + per_batch], device)
        else:
            advantages = [[1.0] * args.group_size] * len(groups)
            scorer.layout_of = Masked.of if how == "masked" else layout_of
            for micro_batch in pack(groups, advantages, args.max_tokens, device, share_prefix=how != "packed"):
                logprobs, entropies = scorer(micro_batch)
                yield (logprobs - 0.001 * entropies).sum()

    def run(how: str) -> float:
        start = time.perf_counter()
        for loss in losses(how):
            loss.backward()
        wait(device)
        return time.perf_counter() - start

    def begin_peak() -> None:
        """What was there at most counts anew."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux

    def peak() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # Linux: KiB

    result = {"vocabulary": model.config.vocab_size, "parameters": model.num_parameters(), "scored tokens": num_scored}
    for parameter in (*model.parameters(), *plain.parameters()):
        parameter.grad = torch.empty_like(parameter).zero_()  # zeros_like would take its memory when it is written to
    begin_peak()
    before = peak()
    seconds: dict[str, list[float]] = {args.who[0]: [run(args.who[0])]}
    growth = peak() - before
    states = result["parameters"] * (2 * dtype.itemsize + (8 if dtype == torch.float32 else 12)) / 2**20
    result["MiB"] = {"weights, gradients, optimiser": round(states), f"growth, {args.who[0]}": round(growth),
                     "all over states": round((states + growth) / states, 2)}
    seconds |= {how: [run(how)] for how in args.who[1:]}
    for _ in range(args.repeats):
        for how in seconds:
            seconds[how].append(run(how))
    card = present_card(device)
    result |= {"card": card[0], "goal": GOAL} if card else {}
    set_matmul_precision("highest")
    limits = {"torch": matrix_rate(torch.mm, device, dtype)}
    if device.type == "cpu":
        limits["oneDNN"] = matrix_rate(product, device, dtype)
    set_matmul_precision(args.matmul_precision)
    result["matrix limit GFLOP/s"] = {name: round(limit / 1e9, 1) for name, limit in limits.items()}
    for how, values in seconds.items():
        with FlopCounterMode(display=False, custom_mapping=ON_CPU if device.type == "cpu" else None) as counter:
            run(how)
        spent, flops = median(values[1:]), counter.get_total_flops()
        result[how] = {"seconds": round(spent, 3), "scored tokens/s": round(num_scored / spent),
                       "GFLOP": round(flops / 1e9, 1),
                       "of the limit": {name: round(flops / spent / limit, 2) for name, limit in limits.items()}}
        if card:
            result[how]["MFU"] = round(update_flops(shape_of(model.config), groups) / spent / card[1].flops, 3)
    for how in seconds.keys() - {"shared"} if "shared" in seconds else ():
        result[f"{how} / shared"] = round(result[how]["seconds"] / result["shared"]["seconds"], 2)
    return result


def main(args: Args) -> None:
    if args.alone:
        print(json.dumps(measure(args, args.vocab_sizes[0])), flush=True)
        return
    results = []
    for vocab_size in args.vocab_sizes:
        words = ["--alone", "--shape", args.shape, "--vocab_sizes", str(vocab_size)] + [
            word for name in ("groups", "group_size", "prompt_length", "response_length", "hidden_size", "num_layers",
                              "max_tokens", "repeats", "threads", "matmul_precision")
            for word in (f"--{name}", str(vars(args)[name]))]
        words += ["--who", *args.who, *["--gradient_checkpointing"] * args.gradient_checkpointing]
        command = [sys.executable, "-m", "tests.bench.update", *words]
        own = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        line = subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        print(line, flush=True)
        results.append(json.loads(line))
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,)))
