"""Started by test_update_guard.py under `deepspeed`: updates that must not happen, between two that must, at every ZeRO
stage; and the same two alone. Only the last rank meets what is not finite. Writes what it measured, judges nothing.

    deepspeed --num_gpus N tests/workers/skip_worker.py FOLDER CASE...
"""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.workers.cases import run_cases
from tests.workers.zero_worker import (
    BETAS,
    LEARNING_RATES,
    MAX_GRAD_NORM,
    TEMPERATURE,
    WEIGHT_DECAY,
    Case,
    make_mini_batches,
    make_model,
    packed,
)
from utils.actor import Actor
from utils.losses import masked_mean
from utils.metrics import count_tokens
from utils.run import distributed
from utils.setup.memory_probe import probe_memory
from utils.types import LongestGroup

CASES = [
    Case("stage0", 0),
    Case("stage1", 1),
    Case("stage2", 2),
    Case("stage3", 3),
    Case("stage2-offload", 2, offload=True),
    Case("stage3-offload", 3, offload=True),
    Case("bfloat16-stage0", 0, dtype=torch.bfloat16),
    Case("bfloat16-stage1", 1, dtype=torch.bfloat16),
    Case("bfloat16-stage2", 2, dtype=torch.bfloat16),
    Case("bfloat16-stage3", 3, dtype=torch.bfloat16),
    Case("bfloat16-stage1-offload", 1, offload=True, dtype=torch.bfloat16),
    Case("bfloat16-stage2-offload", 2, offload=True, dtype=torch.bfloat16),
    Case("bfloat16-stage3-offload", 3, offload=True, dtype=torch.bfloat16),
]
POISONS = {  # of the loss of a micro-batch
    "loss is NaN": lambda loss: loss * math.nan,
    "loss is infinite, gradient finite": lambda loss: loss + math.inf,
    "gradient is NaN, loss finite": lambda loss: loss + torch.sqrt(0 * loss),
    "gradient is infinite, loss finite": lambda loss: loss + torch.sqrt(loss - loss.detach()),
}
PLAN = SimpleNamespace(  # as much of a Plan as is looked at
    flags=SimpleNamespace(probe_memory="always", mini_batch_prompts=10, max_tokens_per_micro_batch=50),
    longest=LongestGroup(8, responses=3, response=7),
)


def make_actor(case: Case) -> Actor:
    return Actor(
        make_model(case), betas=BETAS, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, temperature=TEMPERATURE,
        zero_stage=case.stage, offload=case.offload, gradient_checkpointing=False,
    )


def update(actor: Actor, number: int, lr: float, poison=None) -> float:
    """Mini-batch `number`; on the last rank its second micro-batch's loss goes through `poison`."""
    micro_batches, _ = packed(make_mini_batches()[number])
    num_tokens = count_tokens([micro_batch.response_mask for micro_batch in micro_batches])
    for position, micro_batch in enumerate(micro_batches):
        logprobs, entropies = actor(micro_batch)
        loss = masked_mean(-micro_batch.advantages * logprobs - 0.1 * entropies, micro_batch.response_mask, num_tokens)
        if poison is not None and position == 1 and distributed.rank() == distributed.world_size() - 1:
            loss = poison(loss)
        actor.backward(loss, is_last=position == len(micro_batches) - 1)
    return actor.step(lr)


def states(actor: Actor) -> list[torch.Tensor]:
    """Copies of all that an update may change on this rank: weights, master copies, optimiser states and counters."""
    tensors = [weight for bucket in actor.whole_weights() for weight in bucket.values()]
    for master, state in actor.optimizer.state.items():
        tensors += [master, *(torch.as_tensor(state[name]) for name in sorted(state))]
    return [tensor.detach().float().clone() for tensor in tensors]


def equal(states: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Bit for bit, on all ranks."""
    same = len(states) == len(others) and all(map(torch.equal, states, others))
    return not distributed.maximum(float(not same))


def run(case: Case) -> dict:
    rates = LEARNING_RATES[case.dtype]
    actor, skipping = make_actor(case), {}
    before = states(actor)
    engine = SimpleNamespace(sync=lambda: None, sleep=lambda: None)
    probe_memory(actor, engine, PLAN, logger=None)
    is_unchanged_by_probe = equal(before, states(actor))
    update(actor, 0, rates[0])
    before = states(actor)
    for name, poison in POISONS.items():
        norm = update(actor, 1, rates[1], poison)
        skipping[name] = {
            "norms": distributed.gather([str(norm)]),
            "is_unchanged": equal(before, states(actor)),
            "gradients": sum(p.grad is not None for p in actor.policy.parameters()),
        }
    norm = update(actor, 1, rates[1])
    after = states(actor)
    clean = make_actor(case)
    update(clean, 0, rates[0])
    clean_norm = update(clean, 1, rates[1])
    return {
        "skipping": skipping, "is_unchanged_by_probe": is_unchanged_by_probe, "norms": [norm, clean_norm],
        "is_that_of_the_clean_run": equal(after, states(clean)), "has_moved": not equal(before, after),
        "num_states": len(after),
    }


if __name__ == "__main__":
    run_cases(CASES, run)
