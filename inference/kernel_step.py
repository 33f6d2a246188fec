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

    def through_layers(self, layers: nn.ModuleList, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(S * K, hidden) states of the latest tokens, (S * K, 1, D) cosines and sines -> states behind the layers."""
        state, first = self.state, layers[0]
        caches = state.prefix_keys, state.prefix_values, state.suffix_keys, state.suffix_values
        weights = [weight for layer in layers for weight in weights_of(layer)]
        with cpu_linear.allowed_precision():
            return torch.ops.cpu_kernels.decode_layers(
                states, cos, sin, weights, *caches, state.prefix_lengths, self.seen, first.self_attn.scaling,
                first.input_layernorm.kernel_eps, cpu_linear.TAKES_ONEDNN)


def norms_of(layer: nn.Module) -> list[nn.Module | None]:
    heads = (getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm"))
    return [layer.input_layernorm, layer.post_attention_layernorm, *heads]


def linears_of(layer: nn.Module) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def weights_of(layer: nn.Module) -> list[Tensor | None]:
    """In the order of utils/cpu_decoding.cpp."""
    norms, linears = norms_of(layer), linears_of(layer)
    return [*(None if norm is None else norm.weight for norm in norms),
            *(linear.weight for linear in linears), *(linear.bias for linear in linears)]


def are_known(layers: nn.ModuleList) -> bool:
    """Whether `decode_layers` computes what these layers of a model like Llama do: their parts are what kernels took
    the place of, and linear layers without adapters."""
    return all(
        isinstance(layer.mlp, KernelMLP) and all(type(linear) is cpu_linear.Linear for linear in linears_of(layer))
        and all(norm is None or isinstance(norm, KernelNorm) and not norm.offset for norm in norms_of(layer))
        for layer in layers
    )
