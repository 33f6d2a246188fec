"""The largest micro-batch that an update fits, beside what the plan's estimate allows.

    python -m tests.bench.micro_batch --shapes 0.5B 1.5B 3B      # on a GPU, one process
    python -m tests.bench.micro_batch --gib 80                   # anywhere: what the estimate allows on 80 GiB

Rows are groups as long as the flags allow, all tokens scored but those of prompts; each size takes two micro-batches
and an optimiser step, more and more rows until memory runs out. Each shape is a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from tests.bench.cards import present_card
from tests.bench.estimates import training
from tests.bench.shapes import QWEN, ShapeName, config_of, random_model
from tests.bench.workload import groups_of
from utils.actor import Actor
from utils.packing import pack
from utils.run import processes
from utils.setup.memory_terms import GPU_OVERHEAD
from utils.types import LongestGroup

GIB = 2**30


@dataclass
class Args:
    shapes: tuple[ShapeName, ...] = ("0.5B", "1.5B", "3B")
    gib: float = 0.0  # memory that the estimate may use; 0: the card's, or 80 without one
    zero_stage: Literal[0, 1, 2, 3] = 3
    gradient_checkpointing: bool = False
    prompt_length: int = 256  # tokens
    response_length: int = 1_024  # tokens
    group_size: int = 4
    alone: bool = False  # this process measures the first shape


def flags_of(args: Args, rows: int) -> dict:
    longest = LongestGroup(args.prompt_length, args.group_size, args.response_length)
    return {
        "zero_stage": args.zero_stage, "gradient_checkpointing": args.gradient_checkpointing, "prompts_per_step": 256,
        "mini_batch_prompts": 64, "group_size": args.group_size, "max_prompt_length": args.prompt_length,
        "max_response_length": args.response_length, "row_length": longest.row_length, "rows_per_prompt": longest.rows,
        "max_tokens_per_micro_batch": rows * longest.row_length,
    }


def foreseen(args: Args, shape: ShapeName, rows: int) -> float:
    """GiB of a micro-batch of so many rows and its step, as the estimate has it."""
    phases = training(QWEN[shape], **flags_of(args, rows))
    return (max(phases["backward pass"], phases["optimiser step"]) + GPU_OVERHEAD) / GIB


def most_rows(args: Args, shape: ShapeName, gib: float) -> int:
    """Rows that the estimate lets into the memory, 0 where not even one."""
    rows = 0
    while foreseen(args, shape, rows + 1) <= gib:
        rows += 1
    return rows


def measured(args: Args, shape: ShapeName, first: int, by: int) -> Iterator[tuple[int, float]]:
    """Rows that fit and the peak in GiB, from `first` on; ends where memory does."""
    device = processes.join()
    actor = Actor(random_model(config_of(QWEN[shape]), device, torch.bfloat16), betas=(0.9, 0.999), weight_decay=0.01,
                  max_grad_norm=1.0, temperature=1.0, zero_stage=args.zero_stage, offload=False,
                  gradient_checkpointing=args.gradient_checkpointing)
    replica = random_model(config_of(QWEN[shape]), device, torch.bfloat16) if args.zero_stage == 3 else None
    rows = first
    while True:
        torch.cuda.reset_peak_memory_stats()
        groups = groups_of([(args.prompt_length, [args.response_length] * args.group_size)] * rows)
        [micro_batch] = pack(groups, [[1.0] * args.group_size] * rows, 10**9, device)
        try:
            for is_last in (False, True):
                logprobs, entropies = actor(micro_batch)
                actor.backward((logprobs - 0.001 * entropies).mean(), is_last)
            actor.step(1e-6)
        except torch.OutOfMemoryError:
            del replica
            return
        yield rows, torch.cuda.max_memory_allocated() / GIB
        rows += by


def of_shape(args: Args, shape: ShapeName) -> dict:
    card = present_card(torch.device("cuda")) if torch.cuda.is_available() else None
    gib = args.gib or (torch.cuda.mem_get_info()[1] / GIB if card else 80.0)
    rows = most_rows(args, shape, gib)
    row_length = flags_of(args, 1)["row_length"]
    result = {"shape": shape, "GiB": round(gib, 1), "tokens by the estimate": rows * row_length}
    if card:
        found = list(measured(args, shape, max(1, rows // 2), max(1, rows // 10)))
        last, peak = found[-1] if found else (0, 0.0)
        result |= {"card": card[0], "tokens that fit": last * row_length, "GiB at the peak": round(peak, 2),
                   "estimate there": round(foreseen(args, shape, last), 2) if last else None,
                   "fit over estimate": round(last / rows, 2) if rows else None}
    return result


def main(args: Args) -> None:
    if args.alone:
        print(json.dumps(of_shape(args, args.shapes[0])), flush=True)
        return
    for shape in args.shapes:
        flags = vars(args) | {"shapes": shape}
        words = [word for name, value in flags.items() if not isinstance(value, bool)
                 for word in (f"--{name}", str(value))]
        words += ["--alone", *["--gradient_checkpointing"] * args.gradient_checkpointing]
        command = [sys.executable, "-m", "tests.bench.micro_batch", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,)))
