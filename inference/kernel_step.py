"""A decoding step whose attention is one pass over the cache, on a CPU: `attend_latest` of utils/cpu_attention.cpp."""

import torch
from torch import Tensor, nn

from inference.decoder import Step
from utils.attention import Scores


class KernelStep(Step):
    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if not scores.are_plain or scores.window is not None:
            return super().mix(module, query, key, value, scores)
        state, layer = self.state, module.layer_idx
        caches = (state.prefix_keys[layer], state.prefix_values[layer], state.suffix_keys[layer],
                  state.suffix_values[layer])
        width = int(state.position) + 1  # where shapes are fixed, `self.width` is more
        return torch.ops.cpu_kernels.attend_latest(query, key, value, *caches, state.prefix_lengths, width,
                                                   scores.scale)
