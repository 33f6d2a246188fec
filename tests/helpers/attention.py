"""PyTorch's variable-length attention, which only GPUs have, written out."""

import torch
from torch import Tensor


def plain_varlen(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Tensor | None = None,
    return_aux=None,
) -> Tensor | tuple[Tensor, Tensor]:
    """What it promises, a sequence at a time: (T, Q, D) queries, (L, H, D) keys and values -> (T, Q, D), and where
    `return_aux` asks for them the logarithms of the sums of weights, (Q, T)."""
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert (int(query_starts[-1]), int(key_starts[-1])) == (len(query), len(key))
    assert (int(query_starts.diff().max()), int(key_starts.diff().max())) == (max_q, max_k)
    assert enable_gqa or query.shape[1] == key.shape[1]
    counts = key_starts.diff() if seqused_k is None else seqused_k
    assert counts.dtype == torch.int32 and (counts <= key_starts.diff()).all()
    mixed, sums = [], []
    for i, count in enumerate(counts.tolist()):
        some = query[query_starts[i] : query_starts[i + 1]]
        keys, values = (heads[key_starts[i] : key_starts[i] + count]
                        .repeat_interleave(query.shape[1] // heads.shape[1], 1) for heads in (key, value))
        behind = torch.arange(count - len(some), count)[:, None] - torch.arange(count)  # the last query at the last key
        outside = (behind < 0) & (window_size[1] == 0) | (behind > window_size[0]) & (window_size[0] >= 0)
        scores = (torch.einsum("qhd,khd->hqk", some, keys) * scale).masked_fill(outside, -torch.inf)
        mixed.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        sums.append(scores.logsumexp(-1))
    if return_aux is None:
        return torch.cat(mixed)
    assert return_aux.lse
    return torch.cat(mixed), torch.cat(sums, dim=1)
