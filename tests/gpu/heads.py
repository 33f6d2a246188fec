"""Packed rows of given lengths, random heads for them, attention in float64 to compare with, and varlen_attn."""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2Config

from utils.attention import NAME, Layout
from utils.layouts import kinds_of_layouts
from utils.packing import pack
from utils.types import MicroBatch, Rollout


def packed(groups: Sequence[Sequence[Rollout]], max_tokens: int, device: torch.device, share: bool = True):
    """Their micro-batches, all advantages 1."""
    return pack(groups, [[1.0] * len(group) for group in groups], max_tokens, device, share_prefix=share)


def random_heads(
    rows: int, length: int, heads: tuple[int, int], head_dim: int, device: torch.device, dtype: torch.dtype,
    score: float = 0.0, seed: int = 0,
) -> list[Tensor]:
    """Queries (R, Q, L, D), keys and values (R, H, L, D), leaves of a graph. All scores are near `score`, a negative
    number: queries and keys point away from each other."""
    random = torch.Generator(device).manual_seed(seed)

    def normal(count: int, offset: float) -> Tensor:
        some = torch.randn(rows, count, length, head_dim, generator=random, device=device)
        return (some + offset).to(dtype).requires_grad_()

    offset = (abs(score) / head_dim**0.5) ** 0.5  # in all dimensions: score = -offset^2 * D / sqrt(D)
    return [normal(heads[0], offset), normal(heads[1], -offset), normal(heads[1], 0.0)]


def layouts_of(micro_batch: MicroBatch, query: Tensor) -> dict[str, Layout]:
    """By name, all that may compute a model's attention by response here: the one that a run takes comes first."""
    config = Qwen2Config(hidden_size=query.shape[1] * query.shape[3], num_attention_heads=query.shape[1])
    kinds = kinds_of_layouts(query.device, query.dtype, config)
    return {kind.__name__: kind.of(micro_batch, query.dtype) for kind in kinds}


def attend(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(R, L, Q, D): as transformers calls it in training."""
    return AttentionInterface()[NAME](nn.Module(), query, key, value, None, scaling=query.shape[-1] ** -0.5,
                                      layout=layout)[0]


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """(R, L, Q, D) in float64, a query head at a time; `mask` (R, 1, T, L) is True where a query may look."""
    query, key, value = query.double(), key.double(), value.double()
    shared, outputs = query.shape[1] // key.shape[1], []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // shared].transpose(1, 2) * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(dim=-1).nan_to_num(0.0)  # padding sees nothing
        outputs.append(weights @ value[:, head // shared])
    return torch.stack(outputs, dim=2)


def with_gradients(output: Tensor, leaves: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """The output and the gradients of its product with a fixed random tensor, the same for every type."""
    random = torch.Generator(output.device).manual_seed(seed)
    factor = torch.randn(output.shape, generator=random, device=output.device).bfloat16()
    return [output.detach(), *torch.autograd.grad((output * factor.to(output.dtype)).sum(), leaves)]


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def not_finite(tensors: Sequence[Tensor]) -> int:
    return int(sum((~tensor.isfinite()).sum() for tensor in tensors))


def bottom_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """(T, L) bool: the last query sees all keys, each before it one fewer."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> Tensor:
    """torch's varlen_attn, causal and aligned at the end: (T, Q, D) queries, (L, H, D) keys and values, sequences one
    after the other, -> (T, Q, D). Where it knows no grouped queries (torch 2.11) keys and values are repeated."""
    from torch.nn.attention.varlen import varlen_attn

    def ends(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32, device=query.device)

    own: dict[str, object] = {"scale": query.shape[-1] ** -0.5}
    parameters = inspect.signature(varlen_attn).parameters
    if "enable_gqa" in parameters:
        own["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = (some.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for some in (key, value))
    own |= {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    return varlen_attn(query, key, value, ends(query_lengths), ends(key_lengths), max(query_lengths), max(key_lengths),
                       **own)
