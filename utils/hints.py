"""Which tokens of the hints of a micro-batch a loss is about."""

import torch
from torch import Tensor

from utils.types import MicroBatch


def highest_of_hints(values: Tensor, micro_batch: MicroBatch, share: float) -> Tensor:
    """(N,) values -> (N,) bool: of each hint's m tokens those with the highest values, all but int((1 - share) * m).

    By the hint, not over all hints of a micro-batch: nothing depends on how these are packed.
    """
    row_length = micro_batch.input_ids.shape[1]
    segments = micro_batch.segment_ids.to(values.device).flatten()[micro_batch.predictors]
    hints = (micro_batch.predictors // row_length) * row_length + segments  # a number for each segment of each row
    hints = torch.where(micro_batch.hint_mask, hints, -1)
    order = values.argsort(stable=True)
    order = order[hints[order].argsort(stable=True)]  # by hint, and within a hint by value
    _, of_token, counts = hints.unique(return_inverse=True, return_counts=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[of_token[order]]
    num_dropped = ((1 - share) * counts.double()).long()
    return micro_batch.hint_mask & (place >= num_dropped[of_token])
