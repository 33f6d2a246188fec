"""Started by test_actor_states.py under `deepspeed` on two processes: what an actor holds, adds up and restores at
every ZeRO stage. Writes what it measured, judges nothing.

    deepspeed --num_gpus 2 tests/workers/state_worker.py FOLDER NAME_OF_CASE ...
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

import utils.actor
from tests.workers.cases import run_cases
from tests.workers.skip_worker import equal, make_actor, states, update
from tests.workers.zero_worker import ADVANTAGES, EOS, LEARNING_RATES, Case, learning, make_model
from utils.actor import Actor
from utils.packing import pack
from utils.run import distributed
from utils.setup.memory_probe import missing_states
from utils.types import MicroBatch, Prompt, Rollout

CASES = [
    Case("stage0", 0),
    Case("stage3", 3),
    Case("bfloat16-stage0", 0, dtype=torch.bfloat16),
    Case("bfloat16-stage1", 1, dtype=torch.bfloat16),
    Case("bfloat16-stage2", 2, dtype=torch.bfloat16),
    Case("bfloat16-stage3", 3, dtype=torch.bfloat16),
    Case("bfloat16-stage2-offload", 2, offload=True, dtype=torch.bfloat16),
    Case("bfloat16-stage3-offload", 3, offload=True, dtype=torch.bfloat16),
    Case("adapters-stage0", 0, has_adapters=True),
    Case("adapters-stage1", 1, has_adapters=True),
    Case("adapters-stage3", 3, has_adapters=True),
    Case("bfloat16-adapters-stage2", 2, dtype=torch.bfloat16, has_adapters=True),
    Case("bfloat16-adapters-stage3", 3, dtype=torch.bfloat16, has_adapters=True),
]
NUM_MICRO_BATCHES = 16
FOLDERS: list[str] = []  # the one of the command line
deepspeed_config = utils.actor.deepspeed_config  # as it is


def with_config(case: Case, **changes) -> Actor:
    """An actor with other settings of DeepSpeed's."""
    utils.actor.deepspeed_config = lambda *given: deepspeed_config(*given) | changes
    actor = make_actor(case)
    utils.actor.deepspeed_config = deepspeed_config
    return actor


def overlapping(case: Case) -> Actor:
    """Reduces gradients on a stream of its own."""
    zero = deepspeed_config(case.stage, case.dtype, 1.0, case.offload)["zero_optimization"]
    return with_config(case, zero_optimization=zero | {"overlap_comm": True})


def micro_batches_of_rank() -> list[MicroBatch]:
    """A group in each."""
    random = np.random.default_rng(distributed.rank())
    found = []
    for number in range(NUM_MICRO_BATCHES):
        prompt = Prompt(SimpleNamespace(index=number), random.integers(0, EOS, 5).tolist(), [], 0)
        responses = [random.integers(0, EOS, length).tolist() for length in (4, 6, 9)]
        group = [Rollout(prompt, response, [0.0] * len(response), "length") for response in responses]
        found += pack([group], [list(ADVANTAGES)], 50, torch.device("cpu"))
    return found


def loss_of(actor: Actor, micro_batch: MicroBatch) -> torch.Tensor:
    logprobs, entropies = actor(micro_batch)
    return (-micro_batch.advantages * logprobs - 0.1 * entropies).sum() / NUM_MICRO_BATCHES


def gradient(actor: Actor, micro_batches: list[MicroBatch]) -> torch.Tensor:
    """What the actor adds up, in float64; an update at rate 0 then clears it."""
    for number, micro_batch in enumerate(micro_batches, start=1):
        actor.backward(loss_of(actor, micro_batch), is_last=number == len(micro_batches))
    found = torch.cat([safe_get_full_grad(one).flatten().double() for one in learning(actor.policy)])
    actor.step(0.0)
    return found


def gradient_errors(case: Case) -> list[float]:
    """|g - sum| / |sum| of the gradient g that an actor adds up over many micro-batches, where `sum` is that of the
    gradients of one at a time, in float64: of the actor as it is, and of one that adds up in the type of the weights.
    What rounds within a micro-batch and its reduction over the ranks is the same in all three."""
    micro_batches = micro_batches_of_rank()
    actor = make_actor(case)
    exact = sum(gradient(actor, [micro_batch]) for micro_batch in micro_batches)
    found = [gradient(one, micro_batches) for one in (make_actor(case), with_config(case, data_types={}))]
    return [((total - exact).norm() / exact.norm()).item() for total in found]


def moments(actor: Actor) -> int:
    """Bytes of Adam's two moments on this rank."""
    return sum(state[name].nbytes for state in actor.optimizer.state.values()
               for name in ("exp_avg", "exp_avg_sq") if name in state)


def run(case: Case) -> dict:
    rates = LEARNING_RATES[case.dtype]
    actor = make_actor(case)
    before, held = moments(actor), sum(tensor.nbytes for tensor in missing_states(actor))
    norm = update(actor, 0, rates[0])
    taken = moments(actor) - before
    folder = Path(FOLDERS[0]) / f"state_{case.name}"
    actor.save(folder)
    restored = make_actor(case)
    restored.load(folder)
    return {
        "held": held, "taken": taken, "there": before + taken,
        "num_parameters": sum(one.numel() for one in learning(make_model(case))),
        "is_restored": equal(states(actor), states(restored)),
        "norms_after": [update(one, 1, rates[1]) for one in (actor, restored)],
        "is_same_after": equal(states(actor), states(restored)),
        "norms": [norm, update(overlapping(case), 0, rates[0])],
        "gradient_errors": gradient_errors(case) if case.dtype == torch.bfloat16 else None,
    }


if __name__ == "__main__":
    run_cases(CASES, run, FOLDERS.append)
