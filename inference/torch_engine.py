"""An in-process decoder that needs only torch: it runs the model's own modules with a KV cache made for groups.

The prompt of a group is computed once and its keys and values are held once; each sample adds a suffix of its own.
All rows are at the same response token, so suffixes need no mask. Rows that ended leave the batch when enough have.

On a GPU a step is captured in a CUDA graph, which needs shapes that stay: there it runs over more suffix columns than
are written yet and masks the rest, and the host looks only now and then which rows have ended.

Letters of shapes: see inference/decode_state.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from inference.cache_budget import batches, cache_elements_of
from inference.decode_graph import Captured
from inference.decode_state import COMPACT_BELOW, DecodeState
from inference.sampling import pick, sampling_uniforms
from inference.supported import check_supported
from utils.linear import use_onednn
from utils.run import watchdog
from utils.types import Prompt, Rollout

FIRST_CAPACITY = 32  # response tokens the suffix cache has room for at first; doubled when full, to the limit at most
PREFILL_TOKENS = 16_384  # of prompts that are computed at once
CPU_PREFILL_TOKENS = 1_024  # so that activations stay in the processor's cache
# For fixed shapes, which CUDA graphs need (not measured, for want of a GPU); a new shape is a new graph:
LOOK_EVERY = 16  # tokens between two looks of the host at the rows that live
SPAN = 128  # the suffix columns that a step attends to are a multiple
FIXED_COMPACT_BELOW = 0.5


@dataclass(frozen=True)
class _Output:
    """What a batch decodes into, and what it draws from. The row past the last takes what dead slots write."""

    ids: Tensor  # (R + 1, tokens)
    logprobs: Tensor  # (R + 1, tokens)
    noise: Tensor | None  # (R, tokens) in [0, 1); None: greedy
    temperature: float


class TorchEngine:
    """Generates with `model`. `weights`, where given, yields buckets {name: tensor} to copy into it at each sync (the
    model is then a replica of a sharded actor); without it the model's tensors are the actor's own. `captured` is what
    makes a step of fixed shapes fast; None: the shapes grow with the responses."""

    def __init__(self, model: PreTrainedModel, eos_ids: Iterable[int], kv_cache_gb: float, weights=None,
                 free_replica: bool = False):
        check_supported(model.config)
        self.model = use_onednn(model)
        self.weights = weights
        self.free_replica = free_replica
        self.head_dim = model.model.layers[0].self_attn.head_dim
        embeddings = model.get_input_embeddings().weight
        self.kv_cache_tokens = int(kv_cache_gb * 2**30 // (cache_elements_of(model.config) * embeddings.element_size()))
        self.device = embeddings.device
        self.prefill_tokens = CPU_PREFILL_TOKENS if self.device.type == "cpu" else PREFILL_TOKENS
        self.eos_ids = torch.tensor(sorted(eos_ids), device=self.device)
        self.captured = partial(Captured, device=self.device) if self.device.type == "cuda" else None

    @torch.no_grad()
    def sync(self) -> None:
        watchdog.phase("sync")
        if self.weights is not None:
            own = dict(self.model.named_parameters())
            for bucket in self.weights():
                for name, weight in bucket.items():
                    own[name].data = own[name].data if own[name].numel() else torch.empty_like(weight)
                    own[name].copy_(weight)

    def sleep(self) -> None:
        if self.weights is not None and self.free_replica:
            for parameter in self.model.parameters():
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=self.device)

    def close(self) -> None:
        pass

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        max_response_length: int,
        temperature: float,
        seed: int = 0,
        step: int = 0,
    ) -> list[list[Rollout]]:
        """See utils.types.Engine. What is beyond the cache budget waits for the next batch."""
        groups: list[list[Rollout]] = [[] for _ in prompts]
        ends = frozenset(self.eos_ids.tolist())
        prompt_lengths = [len(prompt.prompt_ids) + len(prompt.hint_ids) for prompt in prompts]
        for batch, samples in batches(prompt_lengths, group_size, max_response_length, self.kv_cache_tokens):
            chosen = [prompts[i] for i in batch]
            noise = None
            if temperature > 0:  # (P * G, tokens)
                uniforms = sampling_uniforms(chosen, samples, max_response_length, seed, step)
                noise = torch.tensor(np.concatenate(uniforms), dtype=torch.float, device=self.device)
            ids, logprobs, lengths = self._decode(chosen, len(samples), max_response_length, temperature, noise)
            for row, length in enumerate(lengths):
                i = batch[row // len(samples)]
                groups[i].append(Rollout(prompts[i], ids[row][:length], logprobs[row][:length],
                                         "stop" if ids[row][length - 1] in ends else "length"))
        return groups

    def _decode(self, prompts, group_size, max_response_length, temperature, noise):
        """Lists of ids, log-probabilities and lengths, one per row (prompt-major)."""
        num_rows = len(prompts) * group_size
        ids = torch.zeros(num_rows + 1, max_response_length, dtype=torch.long, device=self.device)
        output = _Output(ids, torch.zeros(ids.shape, device=self.device), noise, temperature)
        *prefixes, logits = self._prefill(prompts)  # logits (S, V): all samples start from the same
        rows = torch.arange(num_rows, device=self.device).view(len(prompts), group_size)
        longest = max_response_length - 1  # the last token never gets into the cache
        heads = (len(prompts), prefixes[0][0].shape[1], group_size, min(FIRST_CAPACITY, longest), self.head_dim)
        suffixes = [[logits.new_empty(heads) for _ in self.model.model.layers] for _ in range(2)]
        state = DecodeState(*prefixes, *suffixes, rows, torch.ones_like(rows).bool(), torch.zeros_like(rows),
                            torch.full((1,), -1, device=self.device), longest)
        self._choose(state, output, logits.repeat_interleave(group_size, dim=0))
        self._respond(state, output)
        ended = torch.isin(ids[:-1], self.eos_ids)
        lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, max_response_length)
        return ids.tolist(), output.logprobs.tolist(), lengths.tolist()

    def _respond(self, state: DecodeState, output: _Output) -> None:
        """All tokens after the first."""
        fixed, limit = self.captured is not None, output.ids.shape[1]
        step, width, t = None, 0, 1
        while t < limit:
            watchdog.progress()
            num_alive = int(state.alive.sum())  # only here the host waits for the device
            if num_alive == 0:
                break
            few = num_alive < (FIXED_COMPACT_BELOW if fixed else COMPACT_BELOW) * state.alive.numel()
            compacted = few and state.compact(t - 1)
            stop = min(t + LOOK_EVERY, limit) if fixed else t + 1
            needed = min(-(-(stop - 1) // SPAN) * SPAN, state.longest) if fixed else t
            if needed > state.suffix_keys[0].shape[3]:
                state.grow(needed, t - 1)
            if compacted or needed != width:
                width, step = needed, partial(self._step, state, output, needed)
                if fixed:
                    step = self.captured(step)
                    for cache in (*state.suffix_keys, *state.suffix_values):
                        cache[:, :, :, t - 1 : width] = 0  # masked, but 0 times what was there before may be NaN
            for _ in range(t, stop):
                step()
            t = stop

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
        """Of prefixes, right-padded: keys and values, mask and lengths, as in DecodeState; logits (S, V) after."""
        prefixes = [prompt.prompt_ids + prompt.hint_ids for prompt in prompts]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)
        width = int(lengths.max())
        weight = self.model.get_input_embeddings().weight
        shape = len(prefixes), self.model.config.num_key_value_heads, width, self.head_dim
        # Zeros, for padding is masked, but 0 times what was there before may be NaN:
        caches = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.model.model.layers]
        at_once, logits = max(1, self.prefill_tokens // width), []
        for start in range(0, len(prefixes), at_once):
            rows = slice(start, start + at_once)
            logits.append(self._prefill_rows(prefixes[rows], [(keys[rows], values[rows]) for keys, values in caches]))
        padding = torch.arange(width, device=self.device) >= lengths[:, None]
        mask = weight.new_zeros(padding.shape).masked_fill(padding, -torch.inf)[:, None, None]
        keys, values = map(list, zip(*caches, strict=True))
        return keys, values, mask, lengths, torch.cat(logits)

    def _prefill_rows(self, prefixes: list[list[int]], caches: list[tuple[Tensor, Tensor]]) -> Tensor:
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

    def _heads(self, layer, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a layer for `states` (..., hidden), each (..., heads, D), not rotated yet."""
        attention, normed = layer.self_attn, layer.input_layernorm(states)
        shape = (*states.shape[:-1], -1, self.head_dim)
        query, key, value = (project(normed).view(shape)
                             for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        if self.model.config.model_type == "qwen3":
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query, key, value

    def _step(self, state: DecodeState, output: _Output, width: int) -> None:
        """Append the latest token of every slot to its suffix and choose the next. `width` suffix columns are looked
        at: those that count, or more where shapes are fixed. Nothing may then depend on values or wait for the device.
        """
        self._choose(state, output, self._forward(state, width))

    def _choose(self, state: DecodeState, output: _Output, logits: Tensor) -> None:
        """Take the next token of every slot from `logits` (S * K, V); live slots write it down."""
        state.position.add_(1)
        rows, alive = state.rows.flatten(), state.alive.flatten()
        noise = None if output.noise is None else output.noise[rows, state.position]
        chosen, logprobs = pick(logits, output.temperature, noise)
        target = torch.where(alive, rows, len(output.ids) - 1)
        output.ids[target, state.position] = chosen
        output.logprobs[target, state.position] = logprobs
        state.chosen.copy_(chosen.view_as(state.chosen))
        state.alive.logical_and_((chosen[:, None] != self.eos_ids).all(dim=1).view_as(state.alive))

    def _forward(self, state: DecodeState, width: int) -> Tensor:
        """Append the latest token of every slot to its suffix and return the logits after it, (S * K, V)."""
        model = self.model.model
        num_segments, num_slots = state.rows.shape
        states = model.embed_tokens(state.chosen.flatten())  # (S * K, hidden)
        cos, sin = model.rotary_emb(states, (state.prefix_lengths + state.position)[:, None])  # (S, 1, D)
        cos, sin = cos[:, :, None, None], sin[:, :, None, None]
        fixed, column = self.captured is not None, slice(width - 1, width)
        if fixed:
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
            if fixed:
                suffix_scores = suffix_scores + suffix_mask
            weights = torch.cat([prefix_scores, suffix_scores], dim=-1).softmax(dim=-1, dtype=torch.float)
            prefix_weights, suffix_weights = weights.to(states.dtype).split([prefix_scores.shape[-1], width], dim=-1)
            mixed = (prefix_weights @ state.prefix_values[number]).view_as(query)
            mixed = mixed + suffix_weights.reshape(*query.shape[:4], width) @ values  # (S, H, K, Q, D)
            states = states + attention.o_proj(mixed.transpose(1, 2).reshape(len(states), -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self.model.lm_head(model.norm(states))


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention (arXiv 2104.09864)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
