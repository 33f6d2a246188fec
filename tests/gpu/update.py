"""Forward and backward of a full micro-batch: tokens per second and the share of what the card can do."""

from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from transformers import PreTrainedModel

from tests.bench.cards import matrix_rate, present_card, seconds_of
from tests.bench.shapes import QWEN, config_of, random_model, update_flops
from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, check, goal, note
from tests.gpu.heads import packed
from utils import policy
from utils.actor import checkpoint_layers
from utils.cpu_kernels import prepare_for_cpu
from utils.policy import Policy
from utils.scorer import Scorer
from utils.setup.shapes import shape_of
from utils.types import Rollout

GOAL = 0.55  # of the card's FLOP/s
TOKENS = 16_384
REPEATS = 3
PARTS = (2**26, 2**28)  # logits


@check(8, "update", seconds=60, cpu="quick")
def update(box: Box) -> Iterator[Figure]:
    """An update at 0.5B shape, 16,384 tokens: MFU with and without checkpointing, by part of logits and by Linear."""
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_of(QWEN["0.5B"], **box.pick({}, small))
    dtype = box.pick(torch.bfloat16, torch.float32)
    groups = full_micro_batch(*box.pick((TOKENS, 1024), (600, 60)))
    model = random_model(config, box.device, dtype)
    yield from of_variant("as the project has it", prepare_for_cpu(model), groups, box)
    present = policy.PART_LOGITS
    for size in PARTS:
        policy.PART_LOGITS = size
        yield from of_variant(f"parts of 2^{size.bit_length() - 1} logits", model, groups, box)
    policy.PART_LOGITS = present
    checkpoint_layers(model)
    yield from of_variant("gradient checkpointing", model, groups, box)
    del model
    yield from of_variant("plain Linear layers", random_model(config, box.device, dtype), groups, box)


def full_micro_batch(tokens: int, longest: int) -> list[list[Rollout]]:
    """Groups of four whose responses end when they like, about as many tokens as a micro-batch holds."""
    random, lengths, total = np.random.default_rng(0), [], 0
    while True:
        prefix, responses = int(random.integers(longest // 5, longest // 4)), random.integers(longest // 8, longest, 4)
        if total + prefix + responses.sum() > tokens:
            return groups_of(lengths)
        lengths.append((prefix, responses.tolist()))
        total += prefix + int(responses.sum())


def of_variant(name: str, model: PreTrainedModel, groups: list[list[Rollout]], box: Box) -> Iterator[Figure]:
    micro_batches = packed(groups, box.pick(TOKENS, 600), box.device)
    scorer = Scorer(trained := Policy(model), trained.to(box.device), 1.0)
    tokens = sum(len(group[0].prompt.prompt_ids) + sum(len(one.response_ids) for one in group) for group in groups)

    def work() -> None:
        for micro_batch in micro_batches:
            logprobs, entropies = scorer(micro_batch)
            (logprobs - 0.001 * entropies).mean().backward()

    work()
    if box.has_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = median(seconds_of(work, box.device) for _ in range(REPEATS))
    if box.has_gpu:
        yield note(f"{name}: peak GiB", torch.cuda.max_memory_allocated() / 2**30)
    yield note(f"{name}: tokens/s", tokens / seconds)
    card = present_card(box.device)
    limit = card[1].flops if card else matrix_rate(torch.mm, box.device, torch.float32)
    share = update_flops(shape_of(model.config), groups) / seconds / limit
    yield goal(f"{name}: MFU", share, GOAL if card and name == "as the project has it" else None)
    model.zero_grad(set_to_none=True)
