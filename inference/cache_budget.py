"""The memory for keys and values, and what the torch engine decodes together: as much as it holds."""

from collections.abc import Iterator, Sequence

from transformers import PretrainedConfig


def cache_elements_of(config: PretrainedConfig) -> int:
    """Keys and values of one token, for any model of transformers."""
    head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    kv_heads = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
    return 2 * config.num_hidden_layers * kv_heads * head_dim


def fitting(budget: int, prompt_length: int, response_length: int, group_size: int) -> tuple[int, int]:
    """How many prompts, and how many samples of each, a cache of `budget` tokens holds at full length, at least one:
    whole groups, or some samples of one group where it does not fit."""
    samples = min(group_size, max(1, (budget - prompt_length) // response_length))
    return max(1, budget // (prompt_length + samples * response_length)), samples


def batches(
    prompt_lengths: Sequence[int], group_size: int, response_length: int, budget: int
) -> Iterator[tuple[list[int], range]]:
    """Indices of prompts of like lengths that decode together, the longest first, and which samples of them."""
    order = sorted(range(len(prompt_lengths)), key=prompt_lengths.__getitem__, reverse=True)
    while order:
        count, samples = fitting(budget, prompt_lengths[order[0]], response_length, group_size)
        for first in range(0, group_size, samples):
            yield order[:count], range(first, min(first + samples, group_size))
        order = order[count:]
