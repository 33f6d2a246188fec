"""Started by two_gpus.py under `deepspeed`: two updates of a small model in float32 at stage 3, the groups dealt to the
ranks. Rank 0 writes losses, gradient norms and a fingerprint of the weights.

    deepspeed --num_gpus 2 tests/gpu/parity_worker.py FILE overlap|no_overlap
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.bench.shapes import QWEN, config_of, random_model
from tests.bench.workload import groups_of
from utils import actor as actor_module
from utils.actor import Actor
from utils.losses import masked_mean
from utils.metrics import count_tokens
from utils.packing import fill_up, pack
from utils.run import distributed, processes

GROUPS, MAX_TOKENS = 12, 700
SMALL = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2}


def main(file: str, overlap: str) -> None:
    device = processes.join(timeout_minutes=2)
    as_it_is = actor_module.deepspeed_config

    def config(*args, **kwargs) -> dict:
        made = as_it_is(*args, **kwargs)
        made["zero_optimization"]["overlap_comm"] = overlap == "overlap"
        return made

    actor_module.deepspeed_config = config
    actor = Actor(random_model(config_of(QWEN["0.5B"], **SMALL), device, torch.float32), betas=(0.9, 0.999),
                  weight_decay=0.0, max_grad_norm=1e9, temperature=1.0, zero_stage=3, offload=False,
                  gradient_checkpointing=False)
    lengths = [(30 + number, [50 + number, 40, 30 - number, 9]) for number in range(GROUPS)]
    losses, norms = [], []
    for step in range(2):
        mine = distributed.share(groups_of(lengths, SMALL["vocab_size"], seed=step))
        micro_batches = pack(mine, [[1.0, -1.0, 0.5, -0.5]] * len(mine), MAX_TOKENS, device)
        micro_batches = fill_up(micro_batches, int(distributed.maximum(len(micro_batches))), device)
        count, total = count_tokens([one.response_mask for one in micro_batches]), 0.0
        for number, one in enumerate(micro_batches, start=1):
            logprobs, entropies = actor(one)
            loss = masked_mean(-one.advantages * logprobs - 0.1 * entropies, one.response_mask, count)
            actor.backward(loss, is_last=number == len(micro_batches))
            total += loss.item()
        norms.append(actor.step(1e-3))
        losses.append(distributed.sums({"loss": total})["loss"])
    weights = sum(weight.double().square().sum().item()
                  for bucket in actor.whole_weights() for weight in bucket.values())
    if distributed.is_main():
        Path(file).write_text(json.dumps({"losses": losses, "norms": norms, "weights": weights,
                                          "processes": distributed.world_size()}))
    processes.end()
    os._exit(0)  # as the scripts do: see cli.run_script


if __name__ == "__main__":
    main(*[word for word in sys.argv[1:] if not word.startswith("--local_rank")])
