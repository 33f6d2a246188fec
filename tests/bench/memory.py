"""Resident memory of a CPU process that trains, against the estimate of utils/setup/: one process.

    python -m tests.bench.memory --zero_stage 0 --num_layers 8 --dtype bfloat16

A random model takes one update and then makes gradients once more, so that weights, gradients and optimiser states are
all there. On a CPU a buffer counts as far as it is written: of stage 3's bucket the n gradients that passed through.
Nothing here says what a GPU holds.
"""

import ctypes
import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.helpers.models import VOCABULARY, random_advantages, random_groups
from utils.actor import Actor
from utils.packing import pack
from utils.run import processes
from utils.setup.memory_terms import Run, training_states
from utils.setup.shapes import shape_of


@dataclass
class Args:
    zero_stage: Literal[0, 1, 2, 3] = 0  # of DeepSpeed
    vocab_size: int = 8_192  # ids
    hidden_size: int = 512  # width
    num_layers: int = 8  # layers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights


def resident() -> int:
    """Bytes of this process in memory (Linux), after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main(args: Args) -> None:
    device, dtype = processes.join(), getattr(torch, args.dtype)
    config = Qwen2Config(
        vocab_size=max(args.vocab_size, VOCABULARY), hidden_size=args.hidden_size, num_hidden_layers=args.num_layers,
        intermediate_size=3 * args.hidden_size, num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True,
    )
    groups = random_groups([(4, 2, [3, 3])])
    [micro_batch] = pack(groups, random_advantages(groups), 64, device)

    def use(model) -> Actor:
        actor = Actor(model, betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0, temperature=1.0,
                      zero_stage=args.zero_stage, offload=False, gradient_checkpointing=False)
        for step in range(2):
            logprobs, _ = actor(micro_batch)
            actor.backward(logprobs.sum(), is_last=True)
            if step == 0:
                actor.step(1e-4)
        return actor

    small = Qwen2Config(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2)
    use(AutoModelForCausalLM.from_config(small, dtype=dtype))  # what libraries allocate at first use
    before = resident()
    actor = use(AutoModelForCausalLM.from_config(config, dtype=dtype))
    grown = resident() - before
    run = Run(weight_bytes=dtype.itemsize, processes=1, zero_stage=args.zero_stage, offload=False,
              gradient_checkpointing=False, has_reference=False, prompts_per_step=1, mini_batch_prompts=1,
              group_size=2, row_length=12, rows_per_prompt=1, max_tokens_per_micro_batch=64, max_prompt_length=6,
              max_response_length=3, kv_cache_gb=1.0, test_problems=1, gpu_bytes=0, engine="torch",
              engine_memory_fraction=0.3, free_replica=False, sleep_level=0)
    shape = shape_of(config)
    states, _ = training_states(shape.parameters, run)
    bucket = dtype.itemsize * shape.parameters if args.zero_stage == 3 else 0  # the part that is written
    predicted = sum(states.values()) + bucket
    print(json.dumps({
        "zero_stage": actor.zero_stage, "dtype": args.dtype, "parameters": shape.parameters,
        "grown MB": round(grown / 1e6, 1), "predicted MB": round(predicted / 1e6, 1),
        "ratio": round(grown / predicted, 3), "bytes per parameter": round(grown / shape.parameters, 2),
    }))
    processes.end()


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
