"""The torch engine against the actor where attention scores are large, as Qwen2's biases make them."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from inference.torch_engine import TorchEngine
from tests.bench.shapes import QWEN, config_of, random_model
from tests.gpu.checks import Box, Figure, at_most, check, note
from tests.gpu.decode import what_it_takes
from tests.gpu.heads import packed
from utils.policy import Policy
from utils.scorer import Scorer
from utils.types import Problem, Prompt, Sampling

SCORES = (0.0, -120.0, -300.0)
MISMATCH = {torch.bfloat16: 0.03, torch.float32: 0.003}  # mean nats
LOGITS = 3.0  # standard deviation of the logits
SLOW = 4  # dimensions of a head whose rotary angle hardly moves over a row


@check(5, "engine_scores", seconds=30, cpu="quick")
def engine_scores(box: Box) -> Iterator[Figure]:
    """The engine's log-probabilities are the actor's, with attention scores near 0, -120 and -300, in both types."""
    for dtype, limit in MISMATCH.items():
        for score in SCORES:
            model = biased_model(box, dtype, score)
            name = f"{str(dtype).removeprefix('torch.')}, scores near {score:g}"
            engine = TorchEngine(model, [], kv_cache_gb=1.0)
            yield from what_it_takes(name, engine)
            differences = mismatch(engine, box)
            yield at_most(f"{name}: mean mismatch", differences.mean().item(), limit)
            yield note(f"{name}: largest mismatch", differences.max().item())


def biased_model(box: Box, dtype: torch.dtype, score: float) -> PreTrainedModel:
    """Four layers of Qwen2; in the second, biases of queries and keys add `score` to each score."""
    shape = QWEN["0.5B"]
    small = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
             "num_key_value_heads": 1}
    config = config_of(shape, num_hidden_layers=4, tie_word_embeddings=False, **box.pick({"vocab_size": 32_000}, small))
    model = random_model(config, box.device, dtype)
    attention = model.model.layers[1].self_attn
    half = attention.head_dim // 2
    size = (abs(score) * attention.head_dim**0.5 / (2 * SLOW)) ** 0.5
    with torch.no_grad():
        for project, sign in ((attention.q_proj, 1), (attention.k_proj, -1)):
            heads = project.bias.view(-1, attention.head_dim)
            for last in (half, 2 * half):  # the slowest angles of both halves
                heads[:, last - SLOW : last] = sign * size
        model.lm_head.weight.normal_(std=LOGITS / config.hidden_size**0.5)
    return model


def mismatch(engine: TorchEngine, box: Box) -> torch.Tensor:
    """|engine - actor| of each sampled token, in nats."""
    model = engine.model
    count, length, tokens = box.pick((32, 300, 128), (6, 60, 24))
    random = torch.Generator().manual_seed(0)
    prompts = [Prompt(Problem(number, "countdown", "", (), "", {}),
                      torch.randint(model.config.vocab_size, (length - number,), generator=random).tolist(), [], 0)
               for number in range(count)]
    groups = engine.generate(prompts, Sampling(4, tokens, 1.0), step=1)
    scorer = Scorer(policy := Policy(model), policy.to(box.device), 1.0)
    found = [(scorer.logprobs(one) - one.engine_logprobs)[one.response_mask].abs()
             for one in packed(groups, 16_384, box.device)]
    return torch.cat(found)
