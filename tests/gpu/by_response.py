"""By how much log-probabilities depend on the way attention is computed, beside what rounding alone does."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.shapes import QWEN, config_of, random_model
from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, at_most, check, equal
from utils.attention import Layout
from utils.layouts import Masked, kinds_of_layouts
from utils.packing import pack
from utils.policy import Policy
from utils.run.errors import RunStopped
from utils.scorer import Scorer
from utils.types import Rollout

LOGITS = (3.0, 6.0)  # standard deviations of the logits
SEEDS = 5
LIMIT = {torch.bfloat16: 0.05, torch.float32: 1e-4}  # nats, the mean: what a run allows
OVER_FLOOR = 3.0


@check(6, "by_response", seconds=30, cpu="quick")
def by_response(box: Box) -> Iterator[Figure]:
    """Each way of computing attention against an exact one and the model's own forward pass, in bfloat16. On a CPU in
    float32: other processors would round bfloat16 otherwise."""
    dtype = box.pick(torch.bfloat16, torch.float32)
    config = config_of(QWEN["0.5B"], tie_word_embeddings=False, **box.pick({}, {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1}))
    for spread in LOGITS:
        rows = []
        for seed in range(box.pick(SEEDS, 2)):
            model = random_model(config, box.device, dtype, seed)
            with torch.no_grad():
                model.lm_head.weight.normal_(std=spread / config.hidden_size**0.5)
            rows.append(differences(model, box, seed))
            fastest = kinds_of_layouts(box.device, dtype, config)[0].__name__
            yield equal(f"logits of {spread:g}, seed {seed}: a run takes", taken(model, box), fastest)
        worst = {name: max(row[name] for row in rows) for name in rows[0]}
        floor = worst["Masked against exact"]
        for name, value in worst.items():
            limit = max(LIMIT[dtype], OVER_FLOOR * floor) if name.endswith("against exact") else None
            yield at_most(f"logits of {spread:g}: {name}", value, limit)


def taken(model: PreTrainedModel, box: Box) -> str:
    """The layout that a run chooses for the model at its start, or why it refuses the model."""
    policy = Policy(model).to(box.device)
    try:
        return Scorer(policy, policy.to(box.device), 1.0).layout_of.__self__.__name__
    except RunStopped as stopped:
        return str(stopped)[:100]


@torch.no_grad()
def differences(model: PreTrainedModel, box: Box, seed: int) -> dict[str, float]:
    """Means of |difference| of log-probabilities in nats, each over the same tokens."""
    lengths = box.pick([(230, [300, 120, 40, 7]), (180, [250, 250, 66, 1]), (64, [64, 63])], [(23, [30, 12, 4, 1])])
    groups = groups_of(lengths, model.config.vocab_size, seed)
    own = torch.cat([own_logprobs(model, rollout, box.device) for group in groups for rollout in group])
    policy = Policy(model)
    exact = scored(policy, groups, box.device, partial(Masked.of, is_exact=True))
    found = {kind.__name__: scored(policy, groups, box.device, kind.of)
             for kind in (*kinds_of_layouts(box.device, model.dtype, model.config), Masked)}
    found["Masked, packed otherwise"] = scored(policy, groups, box.device, Masked.of, share=False)
    found["the model's own"] = own
    return {f"{name} against {other}": (one - right).abs().mean().item() for other, right in
            (("exact", exact), ("the model's own", own)) for name, one in found.items() if name != other}


def scored(policy: Policy, groups: Sequence[Sequence[Rollout]], device: torch.device, layout_of: Callable[..., Layout],
           share: bool = True) -> Tensor:
    """Log-probabilities of all response tokens in the order of the rollouts."""
    numbers, tags = iter(range(10_000)), []
    for group in groups:  # an "advantage" tells which rollout a token is of, however they are packed
        tags.append([float(next(numbers)) for _ in group])
    found, order = [], []
    for one in pack(groups, tags, 2_000, device, share_prefix=share):
        layout = layout_of(one, policy.model.dtype)
        found.append(policy(one.input_ids, one.position_ids, layout, one.predictors, one.targets, 1.0, False)[0])
        order.append(one.advantages)
    return torch.cat(found)[torch.cat(order).argsort(stable=True)]


def own_logprobs(model: PreTrainedModel, rollout: Rollout, device: torch.device) -> Tensor:
    """By transformers, a sequence alone under causal attention."""
    model.set_attn_implementation("sdpa")
    prefix = len(rollout.prompt.prompt_ids)
    ids = torch.tensor([rollout.prompt.prompt_ids + rollout.response_ids], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, prefix - 1 : -1].float()
    return logits.log_softmax(dim=-1).gather(-1, ids[0, prefix:, None])[:, 0]
