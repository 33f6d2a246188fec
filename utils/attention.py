"""One attention for all: training, scoring and decoding run a model's own layers, which all attend by `attend`.

A layout says who sees whom (utils/layouts.py: in packed rows). What a model
wants of its scores (a window, a soft cap, sinks) comes with every call, in transformers' words.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.cpu_linear import matmul_precision

NAME = "shared_prefix"  # of `attend`, as an attention implementation of transformers
MAX_DIFFERENCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats: rounding stays below
NOISE_MARGIN = 3  # times what attention under a mask differs from an exact one: as much may another way of computing it

# cuDNN 9.19 and 9.20, which PyTorch 2.11 and 2.13 prefer on an H100, return NaN gradients under a mask for scores far
# below zero (pytorch#196678; Qwen2.5 has such), and plan anew for every shape, which is slow. It is not asked.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Scores:
    """What a layer makes of its query-key products: times `scale`; soft_cap * tanh(scores / soft_cap) where there is a
    soft cap (Gemma 2); only the last `window` keys where there is a window; and `sinks` (Q,), a logit a head that takes
    a share of the weight and gives no value (gpt-oss)."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None

    @property
    def are_plain(self) -> bool:
        """Whether fused kernels know them, windows apart."""
        return self.soft_cap is None and self.sinks is None

    def capped(self, scaled: Tensor) -> Tensor:
        return scaled if self.soft_cap is None else self.soft_cap * (scaled / self.soft_cap).tanh()


class Layout(Protocol):
    def mix(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """(R, Q, L, D) queries, (R, H, L, D) keys and values -> (R, L, Q, D). `module` is the layer that attends."""
        ...


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, layout: Layout | None = None, sliding_window: int | None = None,
    softcap: float | None = None, s_aux: Tensor | None = None, **others,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (R, Q, L, D) queries, (R, H, L, D) keys and values -> (R, L, Q, D). With a
    `layout` it says who sees whom, and the mask is not looked at; without one this is the attention "sdpa", or, where
    that does not know the scores, attention written out under the mask."""
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    if layout is not None:
        return layout.mix(module, query, key, value, scores), None
    if scores.are_plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    if attention_mask is None:  # transformers leaves out a mask that would be causal only
        attention_mask = causal_mask(query.shape[2], key.shape[2], query.device)
    return written_out(query, key, value, attention_mask, scores).transpose(1, 2).contiguous(), None


def window_of(config: PretrainedConfig) -> int | None:
    """Tokens that the layers with a window see, if the config names one."""
    return config.get_text_config().to_dict().get("sliding_window")


def by_layout(input_ids: Tensor, layout: Layout) -> dict[str, Tensor | Layout]:
    """What a model's forward pass is told so that its layers attend by `layout`. A mask of four dimensions keeps
    transformers from making one; nobody looks at it."""
    return {"layout": layout, "attention_mask": input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)}


def causal_mask(num_queries: int, num_keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """(num_queries, num_keys) bool, True where a query may look: the last query is at the last key's place."""
    last = num_keys - num_queries
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(last)
    return mask if window is None else mask.triu(last + 1 - window)


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """(B, Q, L, D), (B, H, T, D) twice, a mask (..., L, T), bool or to be added -> (B, Q, L, D); scores and weights in
    float32 at least. The mask has to know the window."""
    dtype = torch.promote_types(query.dtype, torch.float)
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3).to(dtype)  # (B, H, Q / H * L, D)
    raw = ((grouped @ key.to(dtype).transpose(2, 3)) * scores.scale).view(*query.shape[:3], -1)  # (B, Q, L, T)
    raw = scores.capped(raw)
    smallest = torch.finfo(dtype).min  # not -inf: a row of left padding sees nothing, and must not be NaN
    raw = raw.masked_fill(~mask, smallest) if mask.dtype == torch.bool else raw + mask
    if scores.sinks is not None:
        raw = torch.cat([raw, scores.sinks.to(dtype).view(1, -1, 1, 1).expand(*raw.shape[:3], 1)], dim=-1)
    weights = raw.softmax(dim=-1)[..., : key.shape[2]]
    mixed = weights.reshape(*grouped.shape[:3], -1) @ value.to(dtype)  # (B, H, Q / H * L, D)
    return mixed.view(*query.shape[:3], -1).to(query.dtype)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """What `written_out` computes, by the fastest kernel there is; without a mask causal."""
    if not scores.are_plain:
        mask = causal_mask(query.shape[2], key.shape[2], query.device) if mask is None else mask
        return written_out(query, key, value, mask, scores)
    if mask is not None and query.device.type == "cuda":  # fast kernels know no grouped queries under a mask
        key, value = (repeat_kv(heads, query.shape[1] // heads.shape[1]) for heads in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scores.scale,
                                          enable_gqa=query.shape[1] != key.shape[1])


def unknown_attention(config: PretrainedConfig) -> str | None:
    """What a model is whose layers cannot attend by `attend`, in words; None where they can. Nothing is loaded."""
    known = AutoModelForCausalLM._model_mapping.get(type(config), ())
    classes = known if isinstance(known, tuple) else (known,)
    if any(getattr(one, "_supports_attention_backend", False) for one in classes):
        return None
    return f"a model of type {config.model_type}, whose attention is its own or no causal language model's"


def tolerance(dtype: torch.dtype, noise: float) -> float:
    """Nats by which mean log-probabilities may differ from those with exact attention, where attention under a mask
    differs from them by `noise`. Coarse products of float32 (--matmul_precision) may differ as bfloat16 does."""
    if dtype is torch.float32 and matmul_precision() != "highest":
        dtype = torch.bfloat16
    return max(MAX_DIFFERENCE[dtype], NOISE_MARGIN * noise)


def head_dim_of(config: PretrainedConfig) -> int:
    settings = config.get_text_config()
    return getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # of calls without a layout
