"""Attention over packed rows in a few batches: the prefixes, and responses of like lengths with their prefixes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from utils.attention import Scores, fused
from utils.types import PADDING, PREFIX, MicroBatch

BATCHES = 4  # of responses; more follow the lengths more closely, and are smaller
ALIGNED = 16  # elements: CUDA kernels copy a mask whose rows begin elsewhere


@dataclass(frozen=True)
class Stretches:
    """The prefixes, responses and padding of packed rows, one after the other as their tokens are: the token that each
    begins with, how many it has, what it is (PREFIX, the number of a response, PADDING), and of a response the stretch
    that is its prefix, of the others themselves."""

    starts: np.ndarray
    lengths: np.ndarray
    kinds: np.ndarray
    parents: np.ndarray

    @classmethod
    def of(cls, micro_batch: MicroBatch) -> "Stretches":
        segment_ids, branch_ids = micro_batch.segment_ids.numpy(), micro_batch.branch_ids.numpy()
        rows = np.broadcast_to(np.arange(len(segment_ids))[:, None], segment_ids.shape)
        marks = np.stack([rows, segment_ids, branch_ids]).reshape(3, -1)
        starts = np.flatnonzero(np.append(True, (marks[:, 1:] != marks[:, :-1]).any(axis=0)))
        kinds, numbers = marks[2, starts], np.arange(len(starts))
        latest = np.maximum.accumulate(np.where(kinds == PREFIX, numbers, 0))  # a response comes after its prefix
        return cls(starts, np.diff(np.append(starts, marks.shape[1])), kinds, np.where(kinds > PREFIX, latest, numbers))


@dataclass(frozen=True)
class ResponseBatch:
    """B responses in T = `length` slots each. `parents` (B,): which prefixes are theirs. `in_prefix` (B, P): the slots
    of these that hold a token. `masks` by window, as they are asked for."""

    parents: Tensor
    in_prefix: Tensor
    length: int
    masks: dict[int | None, Tensor]

    @property
    def num_slots(self) -> int:
        return len(self.parents) * self.length

    def mask(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """(B, 1, T, P + T): 0 where a slot may look, in its prefix and its own response, else -inf."""
        if window not in self.masks:
            self.masks[window] = _mask(self.in_prefix, self.length, dtype, window)
        return self.masks[window]


@dataclass(frozen=True)
class Batches:
    """The tokens of packed rows, (N,) if flat, dealt to M slots: first S prefixes of P slots, then the batches.

    The example of packing.py, its 12 tokens numbered from 0: prefixes 0 1 2 and 6, the longest responses first,

        tokens  0 1 2   6 . .   3 4   7 8   5   9      slots of both prefixes, then of batches of like lengths
        empty   4 5                                    the slots marked by a point
        padding 10 11                                  tokens without a slot

    Attributes:
        prefixes: as if they were responses to nothing.
        tokens: (M,) the token in each slot; any where the slot is `empty`, (E,) numbers of slots.
        slots: (N,) the slot of each token; any where the token is `padding`, (F,) numbers of tokens.
    """

    prefixes: ResponseBatch
    responses: tuple[ResponseBatch, ...]
    tokens: Tensor
    empty: Tensor
    slots: Tensor
    padding: Tensor

    @property
    def sizes(self) -> list[int]:
        """Slots of the prefixes, and of each batch."""
        return [batch.num_slots for batch in (self.prefixes, *self.responses)]

    @classmethod
    def of(cls, micro_batch: MicroBatch, dtype: torch.dtype) -> "Batches":
        stretches, device = Stretches.of(micro_batch), micro_batch.input_ids.device
        starts, lengths, kinds = stretches.starts, stretches.lengths, stretches.kinds
        prefixes, responses = np.flatnonzero(kinds == PREFIX), np.flatnonzero(kinds > PREFIX)
        responses = responses[np.argsort(-lengths[responses], kind="stable")]
        parents = np.searchsorted(prefixes, stretches.parents)

        def deal(stretches: np.ndarray) -> np.ndarray:
            """A row of slots for each, as long as the longest: numbers of tokens, -1 where empty."""
            columns = np.arange(lengths[stretches].max())
            return np.where(columns < lengths[stretches, None], starts[stretches, None] + columns, -1)

        dealt, batches = [deal(prefixes)], []
        for some in np.array_split(responses, BATCHES):
            if len(some) > 0:
                dealt.append(deal(some))
                in_prefix = torch.from_numpy(dealt[0][parents[some]] >= 0).to(device)
                batches.append(ResponseBatch(torch.from_numpy(parents[some]).to(device), in_prefix,
                                             dealt[-1].shape[1], {}))
        tokens = np.concatenate([slots.ravel() for slots in dealt])
        filled = np.flatnonzero(tokens >= 0)
        slots = np.zeros(micro_batch.segment_ids.numel(), dtype=np.int64)
        slots[tokens[filled]] = filled
        of_padding = np.repeat(kinds == PADDING, lengths)
        numbers = (torch.from_numpy(values).to(device)
                   for values in (tokens.clip(min=0), np.flatnonzero(tokens < 0), slots, np.flatnonzero(of_padding)))
        nothing = torch.zeros(1, 0, dtype=torch.bool, device=device)
        own = ResponseBatch(torch.arange(len(prefixes), device=device), nothing, dealt[0].shape[1], {})
        return cls(own, tuple(batches), *numbers)

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        length, num_prefixes = self.prefixes.length, len(self.prefixes.parents)
        num_heads = query.shape[1], key.shape[1], value.shape[1]
        queries, keys, values = (
            Rearrange.apply(heads.transpose(1, 2).flatten(2).flatten(0, 1), self.tokens, self.slots, self.padding)
            .split(self.sizes) for heads in (query, key, value)
        )  # (slots, heads * D) of the prefixes and of each batch

        def weigh(batch: ResponseBatch, *rows: Tensor, is_causal: bool = False) -> Tensor:
            """Queries, keys, values, each (B, slots, heads * D) -> (B * slots, Q * D)."""
            heads = [some.unflatten(-1, (count, -1)).transpose(1, 2)
                     for some, count in zip(rows, num_heads, strict=True)]
            mask = None if is_causal else batch.mask(query.dtype, scores.window)
            return fused(*heads, mask, scores).transpose(1, 2).flatten(2).flatten(0, 1)

        in_prefixes = [some[0].unflatten(0, (num_prefixes, -1)) for some in (queries, keys, values)]  # (S, P, Q * D)
        is_causal = scores.window is None or scores.window >= length
        mixed = [weigh(self.prefixes, *in_prefixes, is_causal=is_causal)]
        for batch, own_query, own_key, own_value in zip(self.responses, queries[1:], keys[1:], values[1:], strict=True):
            own = [some.unflatten(0, (len(batch.parents), -1)) for some in (own_query, own_key, own_value)]
            seen = [torch.cat([prefix.index_select(0, batch.parents), response], dim=1)
                    for prefix, response in zip(in_prefixes[1:], own[1:], strict=True)]  # (B, P + T, H * D)
            mixed.append(weigh(batch, own[0], *seen))
        rows = Rearrange.apply(torch.cat(mixed), self.slots, self.tokens, self.empty)
        return rows.view(len(query), query.shape[2], query.shape[1], -1)


def _mask(in_prefix: Tensor, length: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """(B, P) bool -> (B, 1, T, P + T) in `dtype`, for responses of at most `length` = T tokens."""
    num_responses, device = len(in_prefix), in_prefix.device
    width = in_prefix.shape[1] + length
    shape = num_responses, 1, length, -(-width // ALIGNED) * ALIGNED
    mask = torch.zeros(shape, dtype=dtype, device=device)[..., :width]
    own = torch.arange(length, device=device)
    behind_prefix = in_prefix.sum(1)[:, None, None] + own[:, None] - torch.arange(in_prefix.shape[1], device=device)
    behind = own[:, None] - own
    outside = ~in_prefix[:, None], behind < 0
    if window is not None:
        outside = outside[0] | (behind_prefix >= window), outside[1] | (behind >= window)
    mask[..., : width - length].masked_fill_(outside[0][:, None], -torch.inf)
    mask[..., width - length :].masked_fill_(outside[1], -torch.inf)
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
