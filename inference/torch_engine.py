"""An in-process decoder that needs only torch: it runs the model's own modules with a KV cache made for groups.

The prompt of a group is computed once and its keys and values are held once; each sample adds a suffix of its own.
All rows are at the same response token, so suffixes need no mask. Rows that ended leave the batch when enough have.

    S segments (a prefix and the samples that share it), K samples a segment, H key-value heads, Q query heads for each
    of them, D head size; T prefix length, t suffix length.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from inference.hybrid_engine import Rollout, sampling_uniforms
from utils.checks import BadInput
from utils.hints import Prompt

SUPPORTED = ("llama", "qwen2")  # model types
FIRST_CAPACITY = 32  # response tokens the suffix cache has room for at first; doubled when full
COMPACT_BELOW = 0.75  # share of live rows under which the finished ones leave
SLACK = 1.15  # slots over live rows that a compaction may leave, to keep samples of one group together


@dataclass
class _State:
    """The rows in flight: S segments of K slots. Slots whose sample has ended (or never was) are not alive."""

    prefix_keys: list[Tensor]  # one per layer, (S, H, T, D)
    prefix_values: list[Tensor]
    prefix_mask: Tensor  # (S, 1, 1, T) 0 or -inf
    prefix_lengths: Tensor  # (S,)
    suffix_keys: list[Tensor]  # one per layer, (S, H, K, capacity, D)
    suffix_values: list[Tensor]
    rows: Tensor  # (S, K) which rollout a slot belongs to
    alive: Tensor  # (S, K) bool


class TorchEngine:
    """Generates with `model`. `weights`, where given, yields buckets {name: tensor} to copy into it at each sync (the
    model is then a replica of a sharded actor); without it the model's tensors are the actor's own."""

    def __init__(self, model: PreTrainedModel, eos_ids: Iterable[int], kv_cache_gb: float, weights=None,
                 free_replica: bool = False):
        check_supported(model.config)
        self.model = model
        self.weights = weights
        self.free_replica = free_replica
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.kv_cache_bytes = kv_cache_gb * 2**30
        self.device = model.get_input_embeddings().weight.device
        self.eos_ids = torch.tensor(sorted(eos_ids), device=self.device)

    @torch.no_grad()
    def sync(self) -> None:
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
        """See inference.hybrid_engine.Engine. Prompts beyond the cache budget wait for the next batch."""
        groups: list[list[Rollout] | None] = [None] * len(prompts)
        ends = frozenset(self.eos_ids.tolist())
        for batch in self._batches(prompts, group_size, max_response_length):
            chosen = [prompts[i] for i in batch]
            noise = None
            if temperature > 0:  # (P * G, tokens)
                uniforms = sampling_uniforms(chosen, group_size, max_response_length, seed, step)
                noise = torch.tensor(np.concatenate(uniforms), dtype=torch.float, device=self.device)
            ids, logprobs, lengths = self._decode(chosen, group_size, max_response_length, temperature, noise)
            for number, i in enumerate(batch):
                groups[i] = [
                    Rollout(prompts[i], ids[row][:length], logprobs[row][:length],
                            "stop" if ids[row][length - 1] in ends else "length")
                    for row, length in enumerate(lengths[number * group_size : (number + 1) * group_size],
                                                 start=number * group_size)
                ]
        return groups

    def _batches(self, prompts: Sequence[Prompt], group_size: int, max_response_length: int) -> Iterator[list[int]]:
        """Indices of prompts that decode together: like lengths, as many as the cache budget holds at full length."""
        config = self.model.config
        element = self.model.get_input_embeddings().weight.element_size()
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * self.head_dim * element
        lengths = [len(prompt.prompt_ids) + len(prompt.hint_ids) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__, reverse=True)
        while order:
            group_bytes = token_bytes * (lengths[order[0]] + group_size * max_response_length)
            count = max(1, int(self.kv_cache_bytes // group_bytes))
            yield order[:count]
            order = order[count:]

    def _decode(self, prompts, group_size, max_response_length, temperature, noise):
        """Lists of ids, log-probabilities and lengths, one per row (prompt-major)."""
        num_rows = len(prompts) * group_size
        ids = torch.zeros(num_rows, max_response_length, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(num_rows, max_response_length, device=self.device)
        lengths = torch.zeros(num_rows, dtype=torch.long, device=self.device)
        state, logits = self._prefill(prompts, group_size)  # logits (S, V): all samples start from the same
        logits = logits.repeat_interleave(group_size, dim=0)
        for t in range(max_response_length):
            rows = state.rows.flatten()
            chosen, chosen_logprobs = pick(logits, temperature, None if noise is None else noise[rows, t])
            alive = state.alive.flatten()
            live_rows = rows[alive]
            ids[live_rows, t] = chosen[alive]
            logprobs[live_rows, t] = chosen_logprobs[alive]
            lengths[live_rows] = t + 1
            alive = alive & ~torch.isin(chosen, self.eos_ids)
            num_alive = int(alive.sum())
            if num_alive == 0 or t + 1 == max_response_length:
                break
            state.alive = alive.view_as(state.alive)
            if num_alive < COMPACT_BELOW * alive.numel():
                state, kept = compact(state, t)
                chosen = chosen[kept]
            logits = self._step(state, chosen, t)
        return ids.tolist(), logprobs.tolist(), lengths.tolist()

    def _prefill(self, prompts: Sequence[Prompt], group_size: int) -> tuple[_State, Tensor]:
        """Keys and values of all prefixes (right-padded), and the logits (S, V) after each."""
        model, config = self.model.model, self.model.config
        prefixes = [prompt.prompt_ids + prompt.hint_ids for prompt in prompts]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)
        width = int(lengths.max())
        padded = torch.tensor([prefix + [0] * (width - len(prefix)) for prefix in prefixes], device=self.device)
        positions = torch.arange(width, device=self.device)[None]
        states = model.embed_tokens(padded)  # (S, T, hidden)
        cos, sin = model.rotary_emb(states, positions)
        keys, values = [], []
        for layer in model.layers:
            attention = layer.self_attn
            shape = (*padded.shape, -1, attention.head_dim)
            normed = layer.input_layernorm(states)
            query = attention.q_proj(normed).view(shape).transpose(1, 2)
            key = attention.k_proj(normed).view(shape).transpose(1, 2)
            value = attention.v_proj(normed).view(shape).transpose(1, 2)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=attention.scaling,
                                                   enable_gqa=True)
            states = states + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
            keys.append(key)
            values.append(value.contiguous())
        last = states[torch.arange(len(prompts), device=self.device), lengths - 1]
        logits = self.model.lm_head(model.norm(last))
        beyond = torch.arange(width, device=self.device)[None] >= lengths[:, None]
        mask = torch.zeros(beyond.shape, dtype=states.dtype, device=self.device).masked_fill(beyond, -torch.inf)
        rows = torch.arange(len(prompts) * group_size, device=self.device).view(len(prompts), group_size)
        heads = (len(prompts), config.num_key_value_heads, group_size, FIRST_CAPACITY, self.head_dim)
        suffixes = [[states.new_empty(heads) for _ in model.layers] for _ in range(2)]
        state = _State(keys, values, mask[:, None, None], lengths, *suffixes, rows, torch.ones_like(rows).bool())
        return state, logits

    def _step(self, state: _State, chosen: Tensor, t: int) -> Tensor:
        """Append response token `t` of every slot (S * K,) and return the logits after it, (S * K, V)."""
        if t == state.suffix_keys[0].shape[3]:
            for cache in (state.suffix_keys, state.suffix_values):
                cache[:] = [torch.cat([old, torch.empty_like(old)], dim=3) for old in cache]
        model = self.model.model
        num_segments, num_slots = state.rows.shape
        states = model.embed_tokens(chosen)  # (S * K, hidden)
        cos, sin = model.rotary_emb(states, (state.prefix_lengths + t)[:, None])  # (S, 1, D)
        cos, sin = cos[:, :, None, None], sin[:, :, None, None]
        for number, layer in enumerate(model.layers):
            attention = layer.self_attn
            groups, size = attention.num_key_value_groups, attention.head_dim
            normed = layer.input_layernorm(states)
            query = attention.q_proj(normed).view(num_segments, num_slots, -1, groups, size).transpose(1, 2)
            key = attention.k_proj(normed).view(num_segments, num_slots, -1, 1, size).transpose(1, 2)
            value = attention.v_proj(normed).view(num_segments, num_slots, -1, 1, size).transpose(1, 2)
            query, key = rotate(query, cos, sin) * attention.scaling, rotate(key, cos, sin)
            keys, values = state.suffix_keys[number], state.suffix_values[number]
            keys[:, :, :, t] = key.squeeze(3)
            values[:, :, :, t] = value.squeeze(3)
            keys, values = keys[:, :, :, : t + 1], values[:, :, :, : t + 1]
            shared = query.reshape(num_segments, -1, num_slots * groups, size)  # (S, H, K * Q, D)
            prefix_scores = shared @ state.prefix_keys[number].transpose(2, 3) + state.prefix_mask
            suffix_scores = (query @ keys.transpose(3, 4)).view(*prefix_scores.shape[:3], t + 1)
            weights = torch.cat([prefix_scores, suffix_scores], dim=-1).softmax(dim=-1, dtype=torch.float)
            prefix_weights, suffix_weights = weights.to(states.dtype).split([prefix_scores.shape[-1], t + 1], dim=-1)
            mixed = (prefix_weights @ state.prefix_values[number]).view_as(query)
            mixed = mixed + suffix_weights.reshape(*query.shape[:4], t + 1) @ values  # (S, H, K, Q, D)
            states = states + attention.o_proj(mixed.transpose(1, 2).reshape(len(chosen), -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self.model.lm_head(model.norm(states))


def check_supported(config: PretrainedConfig) -> None:
    """Raises BadInput for a model whose layers this engine does not know, or whose attention has a window."""
    if config.model_type not in SUPPORTED:
        raise BadInput(f"flag --engine torch: cannot run a model of type {config.model_type}, only {SUPPORTED}")
    if config.to_dict().get("use_sliding_window"):
        raise BadInput("flag --engine torch: cannot run a model with sliding-window attention")


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention (arXiv 2104.09864)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def pick(logits: Tensor, temperature: float, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next ids and their log-probabilities, (B,), (B,), from logits (B, V).

    Greedy at temperature 0 (log-probabilities at temperature 1); else the inverse of the cumulative distribution at
    `noise` (B,), uniform in [0, 1).
    """
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().cumsum(dim=-1)
        # Neither end may pick a token of probability 0: not the first at noise 0, nor one beyond the rounded-up total.
        target = noise[:, None].clamp_min(2**-24) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target).squeeze(1)
    return chosen, logprobs.gather(-1, chosen[:, None]).squeeze(1)


def compact(state: _State, t: int) -> tuple[_State, Tensor]:
    """The state without most of its dead slots, and which old slots (flat) the new ones are. `t` suffix tokens count.

    Live samples are dealt to segments of K slots; the largest K is taken whose slots exceed the live rows by no more
    than SLACK, so that samples go on sharing their prefix where that costs little.
    """
    alive = state.alive.cpu().numpy()
    live = [np.flatnonzero(slots) for slots in alive]  # per segment
    num_slots = state.rows.shape[1]
    for width in range(max(map(len, live)), 0, -1):
        num_segments = sum(-(-len(slots) // width) for slots in live)
        if num_segments * width <= SLACK * alive.sum():
            break
    parents, slots_of = [], []
    for parent, slots in enumerate(live):
        for start in range(0, len(slots), width):
            some = slots[start : start + width]
            parents.append(parent)
            slots_of.append(np.concatenate([some, np.repeat(some[:1], width - len(some))]))  # spare slots: a dead copy
    device = state.rows.device
    parent = torch.tensor(parents, device=device)
    slot = torch.tensor(np.stack(slots_of), device=device)  # (S', K')
    still_alive = torch.ones_like(slot, dtype=torch.bool)
    still_alive[:, 1:] = slot[:, 1:] > slot[:, :-1]
    capacity = state.suffix_keys[0].shape[3]

    def of_slots(cache: Tensor) -> Tensor:
        new = cache.new_empty(len(parents), cache.shape[1], width, capacity, cache.shape[4])
        index = slot[:, None, :, None, None].expand(-1, cache.shape[1], -1, t, cache.shape[4])
        new[:, :, :, :t] = cache[parent, :, :, :t].gather(2, index)
        return new

    new_state = _State(
        [keys[parent] for keys in state.prefix_keys], [values[parent] for values in state.prefix_values],
        state.prefix_mask[parent], state.prefix_lengths[parent],
        [of_slots(keys) for keys in state.suffix_keys], [of_slots(values) for values in state.suffix_values],
        state.rows[parent[:, None], slot], still_alive,
    )  # fmt: skip
    return new_state, (parent[:, None] * num_slots + slot).flatten()
