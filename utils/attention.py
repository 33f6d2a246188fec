"""Attention over packed rows without the pairs of tokens that never see each other.

Under a mask a row of L tokens costs L^2 pairs. Here its prefixes attend causally to themselves, and each response to
its prefix and itself, in a few batches of responses of like lengths: P^2 + G T (P + T) pairs for a prompt of P tokens
and G responses of T. The keys and values of a prefix are copied for each of its responses.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.types import PADDING, PREFIX

NAME = "shared_prefix"  # of `attend`, as an attention implementation of transformers
BATCHES = 4  # of responses; more follow the lengths more closely, and are smaller
ALIGNED = 16  # elements: CUDA kernels copy a mask whose rows begin elsewhere


@dataclass(frozen=True)
class ResponseBatch:
    """B responses in T slots each. `parents` (B,): their prefixes. `mask` (B, 1, T, P + T): 0 where a slot may look, in
    its prefix and its own response, else -inf."""

    parents: Tensor
    mask: Tensor

    @property
    def num_slots(self) -> int:
        return self.mask.shape[0] * self.mask.shape[2]


@dataclass(frozen=True)
class Layout:
    """The tokens of packed rows, (N,) if flat, dealt to M slots: first S prefixes of P slots, then the batches.

    Attributes:
        num_prefixes: S.
        tokens: (M,) the token in each slot; any where the slot is `empty`, (E,) numbers of slots.
        slots: (N,) the slot of each token; any where the token is `padding`, (F,) numbers of tokens.
    """

    num_prefixes: int
    batches: tuple[ResponseBatch, ...]
    tokens: Tensor
    empty: Tensor
    slots: Tensor
    padding: Tensor

    @property
    def sizes(self) -> list[int]:
        """Slots of the prefixes, and of each batch."""
        of_batches = [batch.num_slots for batch in self.batches]
        return [len(self.tokens) - sum(of_batches), *of_batches]


def make_layout(segment_ids: Tensor, branch_ids: Tensor, device: torch.device, dtype: torch.dtype) -> Layout:
    """The layout of rows whose tokens belong to the segments `segment_ids` (R, L) of their row, and there to the prefix
    or a response, `branch_ids` (R, L) (see types.MicroBatch); masks are in `dtype`, that of queries.

    The example of packing.py, its 12 tokens numbered from 0: prefixes 0 1 2 and 6, the longest responses first,

        tokens  0 1 2   6 . .   3 4   7 8   5   9      slots of both prefixes, then of batches of like lengths
        empty   4 5                                    the slots marked by a point
        padding 10 11                                  tokens without a slot
    """
    rows = np.broadcast_to(np.arange(len(segment_ids))[:, None], segment_ids.shape)
    marks = np.stack([rows, segment_ids.numpy(), branch_ids.numpy()]).reshape(3, -1)
    starts = np.flatnonzero(np.append(True, (marks[:, 1:] != marks[:, :-1]).any(axis=0)))  # of runs of equal marks
    lengths, kinds = np.diff(np.append(starts, marks.shape[1])), marks[2, starts]
    prefixes = np.flatnonzero(kinds == PREFIX)
    parents = np.cumsum(kinds == PREFIX) - 1  # a response comes after its prefix
    responses = np.flatnonzero(kinds > PREFIX)
    responses = responses[np.argsort(-lengths[responses], kind="stable")]

    def deal(runs: np.ndarray) -> np.ndarray:
        """A row of slots for each run, as long as the longest: numbers of tokens, -1 where empty."""
        columns = np.arange(lengths[runs].max())
        return np.where(columns < lengths[runs, None], starts[runs, None] + columns, -1)

    dealt, batches = [deal(prefixes)], []
    in_prefix = np.arange(dealt[0].shape[1]) < lengths[prefixes, None]  # (S, P)
    for runs in np.array_split(responses, BATCHES):
        if len(runs) == 0:
            continue
        dealt.append(deal(runs))
        mask = _mask(torch.from_numpy(in_prefix[parents[runs]]).to(device), dealt[-1].shape[1], dtype)
        batches.append(ResponseBatch(torch.from_numpy(parents[runs]).to(device), mask))
    tokens = np.concatenate([slots.ravel() for slots in dealt])
    filled = np.flatnonzero(tokens >= 0)
    slots = np.zeros(segment_ids.numel(), dtype=np.int64)
    slots[tokens[filled]] = filled
    empty, padding = np.flatnonzero(tokens < 0), np.flatnonzero(marks[2] == PADDING)
    numbers = (torch.from_numpy(values).to(device) for values in (tokens.clip(min=0), empty, slots, padding))
    return Layout(len(prefixes), tuple(batches), *numbers)


def _mask(in_prefix: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(B, P) bool -> (B, 1, T, P + T) in `dtype`, for responses of at most `length` = T tokens."""
    num_responses, width, device = len(in_prefix), in_prefix.shape[1] + length, in_prefix.device
    shape = num_responses, 1, length, -(-width // ALIGNED) * ALIGNED
    mask = torch.zeros(shape, dtype=dtype, device=device)[..., :width]
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    mask[..., : width - length].masked_fill_(~in_prefix[:, None, None], -torch.inf)
    mask[..., width - length :].masked_fill_(later, -torch.inf)
    return mask


class Rearrange(torch.autograd.Function):
    """(n, C) rows -> the rows `to` (m,), where every row but those of `lost` is found again: row i at `back`[i] (n,).
    A row that is asked for a second time fills a place whose value and gradient nobody uses."""

    @staticmethod
    def forward(ctx, rows: Tensor, to: Tensor, back: Tensor, lost: Tensor) -> Tensor:
        ctx.save_for_backward(back, lost)
        return rows.index_select(0, to)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        back, lost = ctx.saved_tensors
        return grad_output.index_select(0, back).index_fill_(0, lost, 0), None, None, None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, dropout: float = 0.0, layout: Layout | None = None, **others,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (R, Q, L, D) queries, (R, H, L, D) keys and values -> (R, L, Q, D). With a
    `layout` it says who sees whom, and the mask is not looked at; without one this is the attention "sdpa"."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
                                      **others)
    head_dim, num_prefixes = query.shape[-1], layout.num_prefixes

    def in_slots(heads: Tensor) -> tuple[Tensor, ...]:
        """(slots, heads * D) of the prefixes and of each batch."""
        return Rearrange.apply(heads.transpose(1, 2).flatten(2).flatten(0, 1), layout.tokens, layout.slots,
                               layout.padding).split(layout.sizes)

    def mix(*rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries, keys, values, each (B, slots, heads * D) -> (B * slots, Q * D)."""
        query, key, value = (some.unflatten(-1, (-1, head_dim)).transpose(1, 2) for some in rows)
        if mask is not None and query.device.type == "cuda":  # fast kernels know no grouped queries under a mask
            key, value = (repeat_kv(heads, query.shape[1] // heads.shape[1]) for heads in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None, scale=scaling,
                                               enable_gqa=query.shape[1] != key.shape[1])
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    queries, keys, values = in_slots(query), in_slots(key), in_slots(value)
    prefixes = [some[0].unflatten(0, (num_prefixes, -1)) for some in (queries, keys, values)]  # (S, P, heads * D)
    mixed = [mix(*prefixes)]
    for batch, own_query, own_key, own_value in zip(layout.batches, queries[1:], keys[1:], values[1:], strict=True):
        own = [some.unflatten(0, (len(batch.parents), -1)) for some in (own_query, own_key, own_value)]
        seen = [torch.cat([prefix.index_select(0, batch.parents), response], dim=1)
                for prefix, response in zip(prefixes[1:], own[1:], strict=True)]  # keys and values, (B, P + T, H * D)
        mixed.append(mix(own[0], *seen, mask=batch.mask))
    rows = Rearrange.apply(torch.cat(mixed), layout.slots, layout.tokens, layout.empty)
    return rows.view(len(query), query.shape[2], query.shape[1], head_dim), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # of calls without a layout
