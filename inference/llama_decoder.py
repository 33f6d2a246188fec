"""The decoder of models built like Llama, layer by layer, for a CPU.

The model's own forward pass does the same with more Python between the products: for a model of four small layers that
is a tenth of a rollout. Where there are kernels a step has none at all: all layers are one call. And of the last layer
of a prefix only the last token is computed here.
"""

import sys

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from inference.decoder import Decoder, Prefill
from inference.kernel_step import KernelStep, weights_of
from utils.attention import Layout, Scores, fused

TYPES = ("llama", "mistral", "qwen2", "qwen3")


def is_like_llama(config: PretrainedConfig) -> bool:
    """Whether a model has the layers that are written here, and no windows."""
    layer_types = set(config.to_dict().get("layer_types") or ["full_attention"])
    has_window = config.model_type == "mistral" and config.sliding_window is not None
    return config.model_type in TYPES and layer_types == {"full_attention"} and not has_window


class LlamaDecoder(Decoder):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.step_weights = weights_of(self.trunk.layers)  # a sync writes into these tensors

    def prefill_rows(self, prefixes: list[list[int]], prefill: Prefill) -> Tensor:
        padded, positions, ends = self._padded(prefixes)
        return self._logits(self._states(padded, positions, prefill, ends)[:, 0])

    def _states(self, ids: Tensor, positions: Tensor, layout: Layout, ends: Tensor | None = None) -> Tensor:
        """(B, L, hidden); with `ends` (B,) the layout is a Prefill, and only the states there are returned, (B, 1,
        hidden)."""
        trunk = self.trunk
        states = trunk.embed_tokens(ids)
        cos, sin = trunk.rotary_emb(states, positions)  # (B, L, D)
        if isinstance(layout, KernelStep) and self.step_weights:
            states = layout.through_layers(trunk.layers, self.step_weights, states[:, 0], cos, sin)
            return trunk.norm(states)[:, None]
        rotate = sys.modules[type(self.model).__module__].apply_rotary_pos_emb
        for layer in trunk.layers:
            module, normed = layer.self_attn, layer.input_layernorm(states)
            query, key, value = (project(normed).unflatten(-1, (-1, module.head_dim))
                                 for project in (module.q_proj, module.k_proj, module.v_proj))
            if self.model.config.model_type == "qwen3":
                query, key = module.q_norm(query), module.k_norm(key)
            query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))  # (B, heads, L, D)
            query, key = rotate(query, key, cos, sin)
            scores = Scores(module.scaling)
            if ends is not None and layer is trunk.layers[-1]:
                layout.keep(module, key, value)
                rows = torch.arange(len(ids))
                seen = (positions <= ends[:, None])[:, None, None]  # (B, 1, 1, L)
                mixed = fused(query[rows, :, ends][:, :, None], key, value, seen, scores).transpose(1, 2)
                states = states[rows, ends][:, None]
            else:
                mixed = layout.mix(module, query, key, value, scores)
            states = states + module.o_proj(mixed.flatten(2))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return trunk.norm(states)
