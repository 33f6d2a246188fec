"""What adding up the gradients of many micro-batches costs in precision."""

import gc
from collections.abc import Iterator

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from tests.bench.shapes import QWEN, config_of, random_model
from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, at_most, check, note
from tests.gpu.heads import packed
from utils import actor as actor_module
from utils.actor import Actor
from utils.types import MicroBatch

MICRO_BATCHES = 16
LIMIT = 0.004  # sums of 16 terms in bfloat16 are off by 0.5 to 0.7 %
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}


@check(11, "accumulation", seconds=25, needs=("deepspeed",), cpu="quick")
def accumulation(box: Box) -> Iterator[Figure]:
    """The gradient of 16 micro-batches through DeepSpeed against the sum of theirs in float64, by kind of buffer."""
    box.join()
    groups = groups_of([(40 + 3 * number, [60, 50, 40, 30]) for number in range(MICRO_BATCHES)])
    micro_batches = [one for group in groups for one in packed([group], 1_000, box.device)]
    whole = packed(groups, 10_000, box.device)
    assert len(micro_batches) == MICRO_BATCHES and len(whole) == 1
    config_as_it_is = actor_module.deepspeed_config

    def with_buffer(kind: str):
        def config(*args, **kwargs) -> dict:
            return config_as_it_is(*args, **kwargs) | {"data_types": {"grad_accum_dtype": kind}}
        return config

    for stage in box.pick((1, 3), (3,)):
        exact = None
        for name, config, limit in (("as the project has it", config_as_it_is, LIMIT),
                                    ("bfloat16 buffer", with_buffer("bf16"), None),
                                    ("float32 buffer", with_buffer("fp32"), None)):
            actor_module.deepspeed_config = config
            actor = make_actor(box, stage)
            if exact is None:
                exact = sum(gradient(actor, [one]).double() for one in micro_batches)
                yield note(f"stage {stage}, all in one: error", error(gradient(actor, whole), exact))
            found = error(gradient(actor, micro_batches), exact)
            yield at_most(f"stage {stage}, {name}: error", found, limit)
            del actor
            gc.collect()


def make_actor(box: Box, stage: int) -> Actor:
    model = random_model(config_of(QWEN["0.5B"], **box.pick({"num_hidden_layers": 4}, SMALL)), box.device,
                         torch.bfloat16)
    return Actor(model, betas=(0.9, 0.999), weight_decay=0.0, max_grad_norm=1e9, temperature=1.0, zero_stage=stage,
                 offload=False, gradient_checkpointing=False)


def gradient(actor: Actor, micro_batches: list[MicroBatch]) -> Tensor:
    """Of the sum of log-probabilities and of some entropy, in one vector. The weights stay as they are."""
    for number, micro_batch in enumerate(micro_batches, start=1):
        logprobs, entropies = actor(micro_batch)
        actor.backward((logprobs - 0.1 * entropies).sum() / 1_000, is_last=number == len(micro_batches))
    found = torch.cat([safe_get_full_grad(parameter).flatten().float() for parameter in actor.policy.parameters()])
    actor.step(0.0)
    return found


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()
