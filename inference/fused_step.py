"""A decoding step that attends by fused kernels, on a GPU.

The latest tokens of a segment's slots attend together to their prefix, and each to its suffix: two calls of PyTorch's
variable-length attention, whose results are put together by the shares that prefix and suffix have of all weight. Query
heads that share a key-value head are given as queries of one sequence: no call is causal, so their order is free. How
many keys count is told by a tensor: nothing is masked or read beyond, and shapes stay.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.attention.varlen import varlen_attn

from inference.decoder import Step
from inference.kv_cache import DecodeState
from utils.attention import Scores
from utils.layouts import ARGUMENTS

KNOWS_COUNTS = "seqused_k" in ARGUMENTS  # of keys; PyTorch 2.11's does not


@cache
def shares_come_by_heads(device: torch.device) -> bool:
    """Whether logarithms of weight sums are (heads, tokens), as PyTorch 2.13 returns them, or as it says in its
    documentation, (tokens, heads)."""
    heads = torch.zeros(3, 2, 16, dtype=torch.bfloat16, device=device)
    starts = torch.tensor([0, 3], dtype=torch.int32, device=device)
    _, shares = varlen_attn(heads, heads, heads, starts, starts, 3, 3, return_aux=varlen.AuxRequest(lse=True))
    return shares.shape == (2, 3)


class FusedStep(Step):
    def __init__(self, state: DecodeState, width: int, is_fixed: bool):
        super().__init__(state, width, is_fixed)
        num_segments, num_slots = state.rows.shape
        self.prefix_counts = state.prefix_lengths.int()
        self.suffix_counts = (state.position + 1).int().expand(num_segments * num_slots).contiguous()

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if not scores.are_plain or scores.window is not None:
            return super().mix(module, query, key, value, scores)
        (num_segments, num_slots), layer = self.state.rows.shape, module.layer_idx
        suffix_keys, suffix_values = self.append(module, key, value)  # (S, H, K, capacity, D)
        per_slot = self.per_slot(query, key.shape[1]).permute(0, 2, 3, 1, 4)  # (S, K, Q, H, D)
        queries = per_slot.flatten(0, 2)
        caches = (self.state.prefix_keys[layer], self.state.prefix_values[layer]), (suffix_keys, suffix_values)
        counts, num_sequences = (self.prefix_counts, self.suffix_counts), (num_segments, num_segments * num_slots)
        mixed, shares = zip(*(
            attend_to_counted(queries, *(cache.movedim(1, -2).flatten(0, -3) for cache in some), *of_sequences,
                              scores.scale)
            for some, *of_sequences in zip(caches, counts, num_sequences, strict=True)
        ), strict=True)
        of_prefix = torch.sigmoid(shares[0] - shares[1])[..., None]  # its share of all weight, (S * K * Q, H, 1)
        both = mixed[0] * of_prefix + mixed[1] * (1 - of_prefix)
        both = both.to(query.dtype).view(*per_slot.shape[:4], -1).transpose(2, 3)  # (S, K, H, Q, D)
        return both.reshape(num_segments * num_slots, 1, -1, both.shape[-1])


def attend_to_counted(
    queries: Tensor, keys: Tensor, values: Tensor, counts: Tensor, num_sequences: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Each sequence of queries, all as long, attends to the first `counts` (sequences,) of its keys, all as many.

    Queries (n, H, D), keys and values (m, H, D) -> (n, H, D), and the logarithms of the sums of weights, (n, H).
    """
    starts = torch.arange(num_sequences + 1, dtype=torch.int32, device=queries.device)
    num_queries, num_keys = len(queries) // num_sequences, len(keys) // num_sequences
    mixed, shares = varlen_attn(
        queries, keys, values, starts * num_queries, starts * num_keys, num_queries, num_keys, scale=scale,
        seqused_k=counts, return_aux=varlen.AuxRequest(lse=True),
    )
    return mixed, shares.T if shares_come_by_heads(queries.device) else shares
