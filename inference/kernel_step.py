"""A decoding step on a CPU: attention in one pass over the cache, and the layers of a model like Llama in one call
(`attend_latest` of utils/cpu_attention.cpp, `decode_layers` of utils/cpu_decoding.cpp)."""

import torch
from torch import Tensor, nn

from inference.decoder import Step
from inference.kv_cache import DecodeState
from utils import cpu_linear
from utils.attention import Scores
from utils.cpu_kernels import KernelMLP, KernelNorm


class KernelStep(Step):
    def __init__(self, state: DecodeState, width: int, is_fixed: bool):
        super().__init__(state, width, is_fixed)
        self.seen = int(state.position) + 1  # columns of the suffix; where shapes are fixed, `width` is more

    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if not scores.are_plain or scores.window is not None:
            return super().mix(module, query, key, value, scores)
        state, layer = self.state, module.layer_idx
        caches = (state.prefix_keys[layer], state.prefix_values[layer], state.suffix_keys[layer],
                  state.suffix_values[layer])
        return torch.ops.cpu_kernels.attend_latest(query, key, value, *caches, state.prefix_lengths, self.seen,
                                                   scores.scale)

    def through_layers(self, layers: nn.ModuleList, weights: list[Tensor | None], states: Tensor, cos: Tensor,
                       sin: Tensor) -> Tensor:
        """(S * K, hidden) states of the latest tokens, (S * K, 1, D) cosines and sines -> states behind the layers,
        whose weights are `weights_of` them."""
        state, first = self.state, layers[0]
        caches = state.prefix_keys, state.prefix_values, state.suffix_keys, state.suffix_values
        with cpu_linear.allowed_precision():
            return torch.ops.cpu_kernels.decode_layers(
                states, cos, sin, weights, *caches, state.prefix_lengths, self.seen, first.self_attn.scaling,
                first.input_layernorm.kernel_eps, cpu_linear.TAKES_ONEDNN)


def weights_of(layers: nn.ModuleList) -> list[Tensor | None]:
    """The weights of the layers of a model like Llama, in the order of utils/cpu_decoding.cpp. An empty list where
    `decode_layers` does not compute what they do: where a part is not what a kernel took the place of, or has adapters.
    """
    weights: list[Tensor | None] = []
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [layer.input_layernorm, layer.post_attention_layernorm, getattr(attention, "q_norm", None),
                 getattr(attention, "k_norm", None)]
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                   mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if not (isinstance(mlp, KernelMLP) and all(type(linear) is cpu_linear.Linear for linear in linears)
                and all(norm is None or isinstance(norm, KernelNorm) and not norm.offset for norm in norms)):
            return []
        weights += [None if norm is None else norm.weight for norm in norms]
        weights += [linear.weight for linear in linears] + [linear.bias for linear in linears]
    return weights
