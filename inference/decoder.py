"""Forward passes of a model over a cache in which the samples of a prompt share its keys and values.

The model's own layers run, whatever they are made of; they attend by utils/attention.py with one of the two layouts
here. Letters of shapes: see kv_cache.py.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inference.kv_cache import DecodeState, empty_cache
from utils import attention
from utils.attention import Layout, Scores, by_layout, causal_mask, fused, unknown_attention
from utils.logits import Logits, compute_logits
from utils.run.errors import BadInput

LAYERS = {"full_attention", "sliding_attention"}  # the types of layers that attend by the two layouts
ROTARY = {"default", "linear", "llama3", "yarn"}  # the others change with the longest row of the batch


def check_supported(config: PretrainedConfig) -> None:
    """Raises BadInput for a model whose layers do something else than attend, as they are, to earlier tokens."""
    reason = unknown_attention(config)
    layers = set(config.get_text_config().to_dict().get("layer_types") or []) - LAYERS
    rotary = rotary_types(config) - ROTARY
    if layers:
        reason = f"a model with layers of type {', '.join(sorted(layers))}"
    elif rotary:
        reason = f"a model with rotary embeddings of type {', '.join(sorted(rotary))}"
    if reason is not None:
        raise BadInput(f"flag --engine torch: cannot run {reason}; take --engine vllm or deepspeed")


def rotary_types(config: PretrainedConfig) -> set[str]:
    """Of all layers: models with windows may have other rotary embeddings where there is one."""
    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    of_layers = [some for some in rope.values() if isinstance(some, dict)] or [rope]
    return {some.get("rope_type", "default") for some in of_layers}


def has_fixed_steps(config: PretrainedConfig) -> bool:
    """Whether a decoding step does the same whatever the values are, as a CUDA graph must: routing to experts waits for
    the device to count their tokens."""
    settings = config.get_text_config().to_dict()
    return not any(settings.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


@dataclass
class Prefill:
    """Rows (B, T) of prefixes, padded on the right: causal, and what each layer computes is kept in the rows `rows` of
    `keys` and `values`, (S, H, T, D), made for all S at the first."""

    shape: tuple[int, int]  # S, T
    rows: slice
    heads_last: bool = False  # in memory
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        for caches, heads in ((self.keys, key), (self.values, value)):
            if module.layer_idx not in caches:  # zeros, for padding is masked, but 0 times what was there may be NaN
                cache = empty_cache(heads, self.shape[0], heads.shape[1], self.shape[1], heads.shape[3],
                                    heads_last=self.heads_last)
                caches[module.layer_idx] = cache.zero_()
            caches[module.layer_idx][self.rows, :, : heads.shape[2]] = heads

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        self.keep(module, key, value)
        length, mask = key.shape[2], None
        if scores.window is not None and scores.window < length:
            mask = causal_mask(length, length, key.device, scores.window)
        return fused(query, key, value, mask, scores).transpose(1, 2)


class Step:
    """The latest token of every slot, (S * K, 1): it goes into its suffix and sees its prefix and its suffix, of which
    `width` columns are looked at: those that count, or, where shapes must stay (`is_fixed`), more."""

    def __init__(self, state: DecodeState, width: int, is_fixed: bool):
        self.state, self.width, self.is_fixed = state, width, is_fixed
        self.column = state.position if is_fixed else slice(width - 1, width)
        self.masks: dict[int | None, tuple[Tensor, Tensor | None]] = {}

    def per_slot(self, heads: Tensor, num_kv_heads: int) -> Tensor:
        """(S * K, H * Q, 1, D) -> (S, H, K, Q, D)."""
        return heads.view(*self.state.rows.shape, num_kv_heads, -1, heads.shape[-1]).transpose(1, 2)

    def append(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of the latest tokens into the layer's suffixes, which are returned whole."""
        keys, values = self.state.suffix_keys[module.layer_idx], self.state.suffix_values[module.layer_idx]
        keys[:, :, :, self.column] = self.per_slot(key, key.shape[1])
        values[:, :, :, self.column] = self.per_slot(value, value.shape[1])
        return keys, values

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        state, layer, width = self.state, module.layer_idx, self.width
        num_segments, num_slots = state.rows.shape
        keys, values = (cache[:, :, :, :width] for cache in self.append(module, key, value))
        query = self.per_slot(query, key.shape[1])
        is_scaled = query.dtype.itemsize > 2  # a half is multiplied as it is, and scaled in float32
        query = query * scores.scale if is_scaled else query
        prefix_scores = products(query.flatten(2, 3), state.prefix_keys[layer])  # (S, H, K * Q, T)
        suffix_scores = products(query, keys).view(*prefix_scores.shape[:3], width)
        if not is_scaled:
            prefix_scores, suffix_scores = prefix_scores * scores.scale, suffix_scores * scores.scale
        prefix_scores, suffix_scores = scores.capped(prefix_scores), scores.capped(suffix_scores)
        prefix_mask, suffix_mask = self._masks(scores.window)
        parts = [prefix_scores + prefix_mask, suffix_scores if suffix_mask is None else suffix_scores + suffix_mask]
        if scores.sinks is not None:
            sinks = scores.sinks.to(prefix_scores.dtype).view(1, key.shape[1], 1, -1)
            parts.append(sinks.expand(num_segments, -1, num_slots, -1).flatten(2)[..., None])
        weights = torch.cat(parts, dim=-1).softmax(dim=-1).to(value.dtype)
        prefix_weights, suffix_weights, *_ = weights.split([part.shape[-1] for part in parts], dim=-1)
        mixed = (prefix_weights @ state.prefix_values[layer]).view(*query.shape[:4], -1)
        mixed = mixed + suffix_weights.reshape(*query.shape[:4], width) @ values  # (S, H, K, Q, D)
        return mixed.transpose(1, 2).reshape(num_segments * num_slots, 1, -1, mixed.shape[-1])

    def _masks(self, window: int | None) -> tuple[Tensor, Tensor | None]:
        """Of prefixes (S, 1, 1, T) and of suffix columns (width,), 0 or -inf; None where all columns are seen."""
        if window not in self.masks:
            state, device = self.state, self.state.prefix_mask.device
            prefix_mask, suffix_mask = state.prefix_mask, None
            if self.is_fixed or window is not None:
                behind = state.position - torch.arange(self.width, device=device)
                outside = (behind < 0) if window is None else (behind < 0) | (behind >= window)
                suffix_mask = prefix_mask.new_zeros(self.width).masked_fill(outside, -torch.inf)
            if window is not None:
                places = torch.arange(prefix_mask.shape[-1], device=device)
                too_far = (state.prefix_lengths + state.position)[:, None] - places >= window  # (S, T)
                prefix_mask = prefix_mask.masked_fill(too_far[:, None, None], -torch.inf)
            self.masks[window] = prefix_mask, suffix_mask
        return self.masks[window]


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., n, D), (..., m, D) -> (..., n, m) in float32 at least: in bfloat16 scores near -100 have steps of half a
    nat."""
    if queries.dtype.itemsize > 2:
        return queries @ keys.transpose(-1, -2)
    if queries.device.type != "cuda":
        return queries.float() @ keys.float().transpose(-1, -2)
    flat = queries.flatten(0, -3), keys.flatten(0, -3).transpose(1, 2)
    return torch.bmm(*flat, out_dtype=torch.float).view(*queries.shape[:-1], keys.shape[-2])


class Decoder:
    """`step_type` is how steps attend."""

    step_type = Step

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(attention.NAME)
        self.model = model
        self.trunk, self.head = model.get_decoder(), model.get_output_embeddings()
        self.logits = Logits.of(model.config)
        self.device = model.get_input_embeddings().weight.device

    def prefill_rows(self, prefixes: list[list[int]], prefill: Prefill) -> Tensor:
        """Fill the caches of `prefill` for some prefixes, and return the logits (B, V) after them."""
        padded, positions, ends = self._padded(prefixes)
        states = self._states(padded, positions, prefill)
        return self._logits(states[torch.arange(len(prefixes), device=self.device), ends])

    def step(self, state: DecodeState, width: int, is_fixed: bool) -> Tensor:
        """Append the latest token of every slot to its suffix and return the logits after it, (S * K, V)."""
        positions = (state.prefix_lengths + state.position)[:, None].expand_as(state.chosen)
        layout = self.step_type(state, width, is_fixed)
        return self._logits(self._states(state.chosen.reshape(-1, 1), positions.reshape(-1, 1), layout)[:, 0])

    def _padded(self, prefixes: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and positions (B, T), padded on the right, and the places of the last tokens, (B,)."""
        lengths = [len(prefix) for prefix in prefixes]
        width = max(lengths)
        padded = torch.tensor([prefix + [0] * (width - len(prefix)) for prefix in prefixes], device=self.device)
        positions = torch.arange(width, device=self.device).expand(len(prefixes), -1)
        return padded, positions, torch.tensor(lengths, device=self.device) - 1

    def _states(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self.trunk(input_ids=ids, position_ids=positions, use_cache=False,
                          **by_layout(ids, layout)).last_hidden_state

    def _logits(self, states: Tensor) -> Tensor:
        return compute_logits(states, self.head.weight, self.head.bias, 1.0, self.logits)
