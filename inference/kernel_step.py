"""A decoding step whose attention is one pass over the cache, on a CPU: `attend_latest` of utils/cpu_attention.cpp."""

import torch
from torch import Tensor, nn

from inference.decoder import Step
from inference.kv_cache import DecodeState
from utils.attention import Scores


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
