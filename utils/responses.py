"""Losses in which a response is one thing, not so many tokens."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from utils.metrics import count_tokens
from utils.types import PREFIX, MicroBatch


def by_response(mini_batch: Sequence[MicroBatch]) -> list[MicroBatch]:
    """The micro-batches with `owners`, and with advantages by which the responses of the mini-batch weigh the same in
    a mean over its tokens, and as much as before together: a response's are multiplied by mean length / own length,
    over all ranks, which call together."""
    owned = [replace(micro_batch, owners=owners_of(micro_batch)) for micro_batch in mini_batch]
    num_tokens = count_tokens([micro_batch.response_mask for micro_batch in owned])
    shares = [micro_batch.response_mask / micro_batch.owners.bincount()[micro_batch.owners] for micro_batch in owned]
    mean_length = num_tokens / max(count_tokens(shares), 1)
    return [replace(micro_batch, advantages=micro_batch.advantages * torch.where(
                micro_batch.response_mask, mean_length * share, 1.0))
            for micro_batch, share in zip(owned, shares, strict=True)]


def owners_of(micro_batch: MicroBatch) -> torch.Tensor:
    """(N,) a number for each response (and demonstration) of the micro-batch, on all its tokens; a hint token has one
    of its own. The first token of a response is predicted by its prefix, as hint tokens are; the others follow it."""
    of_states = micro_batch.branch_ids.to(micro_batch.predictors.device).flatten()
    return (of_states[micro_batch.predictors] == PREFIX).cumsum(0) - 1
