"""The keys and values of the rows that the torch engine decodes together: how many fit, and how rows that ended leave.

    S segments (a prefix and the samples that share it), K samples a segment, H key-value heads, Q query heads for each
    of them, D head size; T prefix length, t suffix length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

PREFILL_TOKENS = 16_384  # of prompts that a GPU computes at once
COMPACT_BELOW = 0.75  # share of live rows under which the finished ones leave
SLACK = 1.15  # slots over live rows that a compaction may leave, to keep samples of one group together


def empty_cache(like: Tensor, *shape: int, heads_last: bool | None = None) -> Tensor:
    """A cache (S, H, ..., D) of the type of `like`. With `heads_last` they come just before D in memory; None: if they
    do so in `like`, another cache."""
    if not (heads_come_last(like) if heads_last is None else heads_last):
        return like.new_empty(shape)
    return like.new_empty(shape[0], *shape[2:-1], shape[1], shape[-1]).movedim(-2, 1)


def heads_come_last(cache: Tensor) -> bool:
    """Whether a cache (S, H, ..., D) is laid out (S, ..., H, D) in memory, as variable-length attention reads it."""
    return cache.movedim(1, -2).is_contiguous() and not cache.is_contiguous()


@dataclass
class DecodeState:
    """The rows in flight: S segments of K slots. A slot is dead once its sample has ended. Steps write
    into these tensors; only `compact` and `grow` put others in their place, one by one: what is there twice is never
    more than one layer's."""

    prefix_keys: list[Tensor]  # one per layer, (S, H, T, D)
    prefix_values: list[Tensor]
    prefix_mask: Tensor  # (S, 1, 1, T) 0 or -inf
    prefix_lengths: Tensor  # (S,)
    suffix_keys: list[Tensor]  # one per layer, (S, H, K, capacity, D)
    suffix_values: list[Tensor]
    rows: Tensor  # (S, K) which rollout a slot belongs to
    alive: Tensor  # (S, K) bool
    chosen: Tensor  # (S, K) the latest token of each slot, not in the suffix yet
    position: Tensor  # (1,) which response token that is
    longest: int  # suffix there can be

    def compact(self, t: int) -> bool:
        """Leave out most dead slots, as `deal` says; False where that is not worth it. `t` suffix tokens count."""
        dealt = deal(self.alive.cpu().numpy(), self.prefix_mask.shape[-1], self.longest)
        if dealt is None:
            return False
        parent, slot = (torch.tensor(numbers, device=self.rows.device) for numbers in dealt)  # (S',), (S', K')
        segment = parent[:, None]
        for cache in (self.suffix_keys, self.suffix_values):  # first, for they get smaller
            for number, old in enumerate(cache):
                cache[number] = empty_cache(old, len(parent), old.shape[1], slot.shape[1], *old.shape[3:])
                cache[number][:, :, :, :t] = old.transpose(1, 2)[segment, slot, :, :t].transpose(1, 2)
        for cache in (self.prefix_keys, self.prefix_values):
            for number, old in enumerate(cache):
                last = heads_come_last(old)
                cache[number] = old.movedim(1, -2)[parent].movedim(-2, 1) if last else old[parent]
        self.prefix_mask, self.prefix_lengths = self.prefix_mask[parent], self.prefix_lengths[parent]
        self.rows, self.chosen = self.rows[segment, slot], self.chosen[segment, slot]
        self.alive = torch.ones_like(slot, dtype=torch.bool)
        self.alive[:, 1:] = slot[:, 1:] > slot[:, :-1]  # spare slots repeat the first
        return True

    def grow(self, needed: int, t: int) -> None:
        """Room for `needed` suffix tokens and more. `t` suffix tokens count."""
        for cache in (self.suffix_keys, self.suffix_values):
            for number, old in enumerate(cache):
                capacity = min(max(needed, 2 * old.shape[3]), self.longest)
                cache[number] = empty_cache(old, *old.shape[:3], capacity, old.shape[4])
                cache[number][:, :, :, :t] = old[:, :, :, :t]


def deal(alive: np.ndarray, prefix_width: int, capacity: int) -> tuple[np.ndarray, np.ndarray] | None:
    """New segments for the slots that are `alive` (S, K): the old segment of each (S',), and its slots in there
    (S', K'), spare ones repeating the first. None where too few slots would go.

    The largest K' is taken whose slots exceed the fewest possible by no more than SLACK, so that samples go on sharing
    their prefix where that costs little. A K' is possible if its caches, with `capacity` suffix tokens, hold no more
    than the present ones: small segments make copies of a prefix.
    """
    live = [np.flatnonzero(slots) for slots in alive]
    counts = alive.sum(axis=1)
    num_slots = {}
    for width in range(1, counts.max() + 1):
        num_segments = (-(-counts // width)).sum()
        if num_segments * (prefix_width + width * capacity) <= len(alive) * (prefix_width + alive.shape[1] * capacity):
            num_slots[width] = num_segments * width
    width = max(width for width, count in num_slots.items() if count <= SLACK * min(num_slots.values()))
    if num_slots[width] > SLACK * COMPACT_BELOW * alive.size:
        return None
    dealt = [(parent, slots[start : start + width])
             for parent, slots in enumerate(live) for start in range(0, len(slots), width)]
    return (np.array([parent for parent, _ in dealt]),
            np.stack([np.append(slots, np.repeat(slots[:1], width - len(slots))) for _, slots in dealt]))


def cache_elements_of(config: PretrainedConfig) -> int:
    """Number of elements that one token takes in the KV cache, for any model of transformers."""
    config = config.get_text_config()
    settings, heads = config.to_dict(), config.num_attention_heads  # GPT-2's and GPT-J's have other names for it
    head_dim = settings.get("head_dim") or config.hidden_size // heads
    of_keys_and_values = 2 * (settings.get("num_key_value_heads") or heads) * head_dim
    if settings.get("kv_lora_rank"):  # DeepSeek's latent attention, whose keys and values are kept as they are used
        of_keys_and_values = heads * (
            settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"] + settings["v_head_dim"])
    return config.num_hidden_layers * of_keys_and_values


def max_batch(budget: int, prompt_length: int, response_length: int, group_size: int) -> tuple[int, int]:
    """How many prompts, and how many samples of each, a cache of `budget` tokens holds at full length, at least one:
    whole groups, or some samples of one group where it does not fit."""
    samples = min(group_size, max(1, (budget - prompt_length) // response_length))
    return max(1, budget // (prompt_length + samples * response_length)), samples


def decode_batches(
    prompt_lengths: Sequence[int], group_size: int, response_length: int, budget: int
) -> Iterator[tuple[list[int], range]]:
    """Indices of prompts of like lengths that decode together, the longest first, and which samples of them."""
    order = sorted(range(len(prompt_lengths)), key=prompt_lengths.__getitem__, reverse=True)
    while order:
        count, samples = max_batch(budget, prompt_lengths[order[0]], response_length, group_size)
        for first in range(0, group_size, samples):
            yield order[:count], range(first, min(first + samples, group_size))
        order = order[count:]
