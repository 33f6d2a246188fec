"""Forward passes of a model over a cache in which the samples of a prompt share its keys and values.

The model's own modules are called, layer by layer; attention is written here. Letters of shapes: see kv_cache.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from inference.kv_cache import DecodeState
from utils.run.errors import BadInput

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")  # model types
ROTARY = ("default", "linear", "llama3", "yarn")  # the others change with the longest row of the batch


def check_supported(config: PretrainedConfig) -> None:
    """Raises BadInput for a model whose layers this engine does not know, or whose attention has a window."""
    settings = config.to_dict()  # the types have different ones
    layer_types = set(settings.get("layer_types") or []) - {"full_attention"}
    reason = None
    if config.model_type not in SUPPORTED:
        reason = f"a model of type {config.model_type}, only {', '.join(SUPPORTED)}"
    elif settings.get("use_sliding_window") or (config.model_type == "mistral" and config.sliding_window is not None):
        reason = "a model with sliding-window attention"
    elif layer_types:
        reason = f"a model with layers of type {', '.join(sorted(layer_types))}"
    elif config.rope_parameters["rope_type"] not in ROTARY:
        reason = f"a model with rotary embeddings of type {config.rope_parameters['rope_type']}"
    if reason is not None:
        raise BadInput(f"flag --engine torch: cannot run {reason}; take vLLM, --engine vllm")


class Decoder:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.device = model.get_input_embeddings().weight.device

    def prefill_rows(self, prefixes: list[list[int]], caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Fill the `caches` of some prefixes, keys and values (S, H, T, D) for each layer, and return the logits (S, V)
        after them."""
        model = self.model.model
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)
        width = int(lengths.max())
        padded = torch.tensor([prefix + [0] * (width - len(prefix)) for prefix in prefixes], device=self.device)
        positions = torch.arange(width, device=self.device)[None]
        states = model.embed_tokens(padded)  # (S, T, hidden)
        cos, sin = model.rotary_emb(states, positions)
        for layer, (keys, values) in zip(model.layers, caches, strict=True):
            attention = layer.self_attn
            query, key, value = (heads.transpose(1, 2) for heads in self._heads(layer, states))
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            keys[:, :, :width], values[:, :, :width] = key, value
            if layer is model.layers[-1]:  # of its states only those after the last tokens are needed
                ends = torch.arange(len(prefixes), device=self.device), lengths - 1
                beyond = (positions >= lengths[:, None])[:, None, None]
                query = query.transpose(1, 2)[ends].unflatten(1, (key.shape[1], -1)) * attention.scaling  # (S, H, Q, D)
                scores = (query @ key.transpose(2, 3)).masked_fill(beyond, -torch.inf)
                weights = scores.softmax(dim=-1, dtype=torch.float).to(states.dtype)
                states, mixed = states[ends], (weights @ value).flatten(1)
            else:
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=attention.scaling,
                                                       enable_gqa=True).transpose(1, 2).flatten(2)
            states = states + attention.o_proj(mixed)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self.model.lm_head(model.norm(states))

    def step(self, state: DecodeState, width: int, is_fixed: bool) -> Tensor:
        """Append the latest token of every slot to its suffix and return the logits after it, (S * K, V).

        `width` suffix columns are looked at: those that count, or, where shapes must stay (`is_fixed`), more.
        """
        model = self.model.model
        num_segments, num_slots = state.rows.shape
        states = model.embed_tokens(state.chosen.flatten())  # (S * K, hidden)
        cos, sin = model.rotary_emb(states, (state.prefix_lengths + state.position)[:, None])  # (S, 1, D)
        cos, sin = cos[:, :, None, None], sin[:, :, None, None]
        column = slice(width - 1, width)
        if is_fixed:
            column = state.position
            beyond = torch.arange(width, device=self.device) > column
            suffix_mask = torch.zeros(width, dtype=states.dtype, device=self.device).masked_fill(beyond, -torch.inf)
        for number, layer in enumerate(model.layers):
            attention = layer.self_attn
            query, key, value = (heads.view(num_segments, num_slots, state.suffix_keys[0].shape[1], -1, self.head_dim)
                                 .transpose(1, 2) for heads in self._heads(layer, states))  # (S, H, K, Q or 1, D)
            query, key = rotate(query, cos, sin) * attention.scaling, rotate(key, cos, sin)
            keys, values = state.suffix_keys[number], state.suffix_values[number]
            keys[:, :, :, column], values[:, :, :, column] = key, value
            keys, values = keys[:, :, :, :width], values[:, :, :, :width]
            shared = query.flatten(2, 3)  # (S, H, K * Q, D)
            prefix_scores = shared @ state.prefix_keys[number].transpose(2, 3) + state.prefix_mask
            suffix_scores = (query @ keys.transpose(3, 4)).view(*prefix_scores.shape[:3], width)
            if is_fixed:
                suffix_scores = suffix_scores + suffix_mask
            weights = torch.cat([prefix_scores, suffix_scores], dim=-1).softmax(dim=-1, dtype=torch.float)
            prefix_weights, suffix_weights = weights.to(states.dtype).split([prefix_scores.shape[-1], width], dim=-1)
            mixed = (prefix_weights @ state.prefix_values[number]).view_as(query)
            mixed = mixed + suffix_weights.reshape(*query.shape[:4], width) @ values  # (S, H, K, Q, D)
            states = states + attention.o_proj(mixed.transpose(1, 2).reshape(len(states), -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self.model.lm_head(model.norm(states))

    def _heads(self, layer, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a layer for `states` (..., hidden), each (..., heads, D), not rotated yet."""
        attention, normed = layer.self_attn, layer.input_layernorm(states)
        shape = (*states.shape[:-1], -1, self.head_dim)
        query, key, value = (project(normed).view(shape)
                             for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        if self.model.config.model_type == "qwen3":
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query, key, value


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention (arXiv 2104.09864)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
