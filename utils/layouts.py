"""Who sees whom in packed rows, and the ways to compute attention so.

Runs     one call of PyTorch's variable-length attention, on GPUs that have it
Tiles    one call of a kernel of our own, on a CPU in float32
Batches  a few batches of responses of like lengths, anywhere (utils/response_batches.py)
Masked   all pairs of a row, under a mask; with more digits than the model's, it is what the others are judged by

Under a mask a row of L tokens costs L^2 pairs. The others compute a row's prefixes causally, and each response with
its prefix and itself: P^2 + G T (P + T) pairs for a prompt of P tokens and G responses of T. But for Tiles the keys and
values of a prefix are copied for each of its responses.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PretrainedConfig

from utils import cpu_kernels
from utils.attention import Layout, Scores, fused, head_dim_of, written_out
from utils.response_batches import Batches, Stretches
from utils.types import PADDING, PREFIX, MicroBatch

ARGUMENTS = inspect.signature(varlen_attn).parameters  # PyTorch 2.11 has fewer than 2.13
KNOWS_GROUPS = "enable_gqa" in ARGUMENTS  # of query heads; PyTorch 2.11's does not


def kinds_of_layouts(device: torch.device, dtype: torch.dtype, config: PretrainedConfig) -> list[type[Layout]]:
    """The layouts that can be tried there with a model, the fastest first."""
    if has_varlen(device, dtype, config):
        return [Runs, Batches]
    return [Tiles, Batches] if cpu_kernels.attend(device, dtype, head_dim_of(config)) else [Batches]


def has_varlen(device: torch.device, dtype: torch.dtype, config: PretrainedConfig) -> bool:
    """Whether PyTorch's variable-length attention, which is FlashAttention, can run the model's layers there."""
    if "window_size" not in ARGUMENTS or device.type != "cuda" or torch.version.hip is not None:
        return False
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    head_dim, settings = head_dim_of(config), config.get_text_config().to_dict()
    has_plain_scores = settings.get("attn_logit_softcapping") is None and config.model_type != "gpt_oss"
    has_own_values = "v_head_dim" in settings  # of another size than keys
    return (has_plain_scores and not has_own_values and head_dim % 8 == 0 and head_dim <= 256
            and torch.cuda.get_device_capability(device) >= (8, 0))


@dataclass(frozen=True)
class Tiles:
    """One call of a kernel for a CPU, which is told where stretches begin and how long they are, and which of them are
    a prefix and its responses: utils/cpu_attention.cpp has the words. `longest`: tokens that one may see. `batches` are
    for layers whose scores the kernel does not know, made when there is one."""

    starts: Tensor
    lengths: Tensor
    groups: Tensor
    longest: int
    batches: Callable[[], Batches]

    @classmethod
    def of(cls, micro_batch: MicroBatch, dtype: torch.dtype) -> "Tiles":
        stretches = Stretches.of(micro_batch)
        is_used = stretches.kinds != PADDING
        starts, lengths, kinds = stretches.starts[is_used], stretches.lengths[is_used], stretches.kinds[is_used]
        groups = np.append(np.flatnonzero(kinds == PREFIX), len(kinds))
        seen = lengths + np.where(kinds > PREFIX, stretches.lengths[stretches.parents[is_used]], 0)
        return cls(*map(torch.from_numpy, (starts, lengths, groups)), int(seen.max()),
                   cache(partial(Batches.of, micro_batch, dtype)))

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if not scores.are_plain or scores.window is not None and scores.window < self.longest:
            return self.batches().mix(module, query, key, value, scores)
        heads = (some.transpose(1, 2).flatten(0, 1) for some in (query, key, value))  # (N, heads, D)
        mixed = cpu_kernels.AttendPacked.apply(*heads, self.starts, self.lengths, self.groups, scores.scale)
        return mixed.view(len(query), query.shape[2], *mixed.shape[1:])


@dataclass(frozen=True)
class Masked:
    """`mask` (R, 1, L, L) bool, True where a token may look, and the tokens' `positions` (R, L). `is_exact`: in float32
    for a model in bfloat16, in float64 for one in float32."""

    mask: Tensor
    positions: Tensor
    is_exact: bool = False

    @classmethod
    def of(cls, micro_batch: MicroBatch, dtype: torch.dtype, is_exact: bool = False) -> "Masked":
        return cls(micro_batch.attention_mask, micro_batch.position_ids, is_exact)

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        mask = self.mask
        if scores.window is not None:
            behind = self.positions[:, :, None] - self.positions[:, None]
            mask = mask & (behind < scores.window)[:, None]
        if self.is_exact:
            digits = torch.float if query.dtype.itemsize == 2 else torch.double
            exact = written_out(query.to(digits), key.to(digits), value.to(digits), mask, scores)
            return exact.to(query.dtype).transpose(1, 2)
        return fused(query, key, value, mask, scores).transpose(1, 2)


@dataclass(frozen=True)
class Runs:
    """Every stretch is a sequence of its own, whose keys are its prefix's and its own: the N queries stay where they
    are, and the K keys are the tokens `keys`. Queries of sequence i begin at `query_starts`[i], keys at `key_starts`[i]
    (int32, with the end); `longest` are the most of both in a sequence. Padding attends to itself."""

    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, micro_batch: MicroBatch, dtype: torch.dtype) -> "Runs":
        stretches, device = Stretches.of(micro_batch), micro_batch.input_ids.device
        lengths = stretches.lengths
        shared = np.where(stretches.kinds > PREFIX, lengths[stretches.parents], 0)  # keys of the prefix
        key_starts = np.concatenate([[0], np.cumsum(shared + lengths)])
        # Key number k of a sequence is token k of its prefix, or token k - shared of its own.
        within = np.arange(key_starts[-1]) - np.repeat(key_starts[:-1], shared + lengths)
        own = np.repeat(shared, shared + lengths)
        keys = within + np.where(within < own, np.repeat(stretches.starts[stretches.parents], shared + lengths),
                                 np.repeat(stretches.starts, shared + lengths) - own)
        query_starts = np.append(stretches.starts, lengths.sum())
        starts = (torch.from_numpy(some.astype(np.int32)).to(device) for some in (query_starts, key_starts))
        return cls(torch.from_numpy(keys).to(device), *starts, (int(lengths.max()), int((shared + lengths).max())))

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if not scores.are_plain:
            raise NotImplementedError("variable-length attention knows no soft cap and no sinks")
        queries, *seen = (heads.transpose(1, 2).flatten(0, 1) for heads in (query, key, value))  # (N, heads, D)
        seen = [Repeat.apply(heads.flatten(1), self.keys).view(-1, *heads.shape[1:]) for heads in seen]  # (K, H, D)
        groups = {"enable_gqa": True} if KNOWS_GROUPS else {}
        if not KNOWS_GROUPS:
            seen = [heads.repeat_interleave(queries.shape[1] // heads.shape[1], dim=1) for heads in seen]
        window = -1 if scores.window is None else scores.window - 1
        mixed = varlen_attn(queries, *seen, self.query_starts, self.key_starts, *self.longest, scale=scores.scale,
                            window_size=(window, 0), **groups)
        return mixed.view(len(query), query.shape[2], *mixed.shape[1:])


class Repeat(torch.autograd.Function):
    """(n, C) rows -> the rows `numbers` (m,), some of them several times; gradients are added in float32 at least."""

    @staticmethod
    def forward(ctx, rows: Tensor, numbers: Tensor) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.num_rows = len(rows)
        return rows.index_select(0, numbers)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        dtype = torch.promote_types(grad_output.dtype, torch.float)
        grads = grad_output.new_zeros(ctx.num_rows, grad_output.shape[1], dtype=dtype)
        return grads.index_add_(0, ctx.saved_tensors[0], grad_output.to(dtype)).to(grad_output.dtype), None
