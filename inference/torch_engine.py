"""An in-process decoder that needs only torch: it runs the model's own layers with a KV cache made for groups.

The prompt of a group is computed once and its keys and values are held once; each sample adds a suffix of its own.
All rows are at the same response token, so suffixes need no mask. Rows that ended leave the batch when enough have.

On a GPU a step is captured in a CUDA graph, which needs shapes that stay: there it runs over more suffix columns than
are written yet and masks the rest, and the host looks only now and then which rows have ended.

Letters of shapes: see inference/kv_cache.py.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from inference import selfcheck
from inference.cuda_graph import Captured
from inference.decoder import Decoder, Prefill, Step, check_supported, has_fixed_steps
from inference.fused_step import KNOWS_COUNTS, FusedStep
from inference.kernel_step import KernelStep
from inference.kv_cache import (
    COMPACT_BELOW,
    PREFILL_TOKENS,
    DecodeState,
    cache_elements_of,
    decode_batches,
    empty_cache,
)
from inference.llama_decoder import LlamaDecoder, is_like_llama
from inference.sampling import pick, sampling_uniforms
from utils import cpu_kernels
from utils.attention import head_dim_of
from utils.layouts import has_varlen
from utils.run import stopping, watchdog
from utils.run.errors import RunStopped
from utils.types import Prompt, Rollout, Sampling

FIRST_CAPACITY = 32  # response tokens the suffix cache has room for at first; doubled when full, to the limit at most
CPU_PREFILL_TOKENS = 1_024  # at once, so that activations stay in the processor's cache
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
    makes a step of fixed shapes fast; None: the shapes grow with the responses. `max_length`: tokens of prompt and
    response together, where that is known."""

    def __init__(self, model: PreTrainedModel, eos_ids: Iterable[int], kv_cache_gb: float, weights=None,
                 free_replica: bool = False, max_length: int | None = None):
        check_supported(model.config)
        embeddings = model.get_input_embeddings().weight
        self.device = embeddings.device
        on_cpu = self.device.type == "cpu"
        self.model = cpu_kernels.prepare_for_cpu(model) if on_cpu else model
        self.weights = weights
        self.free_replica = free_replica
        self.max_length = max_length
        self.decoder = LlamaDecoder(model) if on_cpu and is_like_llama(model.config) else Decoder(model)
        if KNOWS_COUNTS and has_varlen(self.device, embeddings.dtype, model.config):
            self.decoder.step_type = FusedStep
        elif cpu_kernels.attend(self.device, embeddings.dtype, head_dim_of(model.config)):
            self.decoder.step_type = KernelStep
        self.is_checked = False
        self.kv_cache_tokens = int(kv_cache_gb * 2**30 // (cache_elements_of(model.config) * embeddings.element_size()))
        self.prefill_tokens = CPU_PREFILL_TOKENS if on_cpu else PREFILL_TOKENS
        self.eos_ids = torch.tensor(sorted(eos_ids), device=self.device)
        is_captured = self.device.type == "cuda" and has_fixed_steps(model.config)
        self.captured = partial(Captured, device=self.device) if is_captured else None

    @torch.no_grad()
    def sync(self) -> None:
        watchdog.phase("sync")
        if self.weights is not None:
            own = dict(self.model.named_parameters())
            for bucket in self.weights():
                for name, weight in bucket.items():
                    own[name].data = own[name].data if own[name].numel() else torch.empty_like(weight)
                    own[name].copy_(weight)
        if not self.is_checked:
            self.check()

    @torch.no_grad()
    def check(self) -> None:
        """Decode a few tokens and compare with the model's own forward pass, once the weights are there.

        Raises:
            RunStopped: the log-probabilities are other ones.
        """
        self.is_checked = True
        if own := {type(self.decoder), self.decoder.step_type} - {Decoder, Step}:
            where, how = " and ".join(sorted(f"{one.__module__.replace('.', '/')}.py" for one in own)), "fails"
            try:
                difference, limit = selfcheck.compare(self)
                if difference <= limit:
                    return
                how = f"changes log-probabilities by {difference:.2g}"
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a kernel that does not take this model
                how = f"fails: {error}"
            print(f"warning: {where} {how} for this model, of type {self.model.config.model_type}; its "
                  "own forward pass and plain attention are taken, which are slower", file=sys.stderr)
            self.decoder = Decoder(self.model)
        difference, limit = selfcheck.compare(self)
        if not difference <= limit:  # so NaN is too much
            raise RunStopped(
                f"the torch engine computes other log-probabilities than the model {self.model.name_or_path} itself: "
                f"they differ by {difference:.2g} nats on average over a few tokens. It knows decoders that take "
                "positions and attend by transformers' interface; take --engine vllm or deepspeed"
            )

    def sleep(self) -> None:
        if self.weights is not None and self.free_replica:
            for parameter in self.model.parameters():
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=self.device)

    def close(self) -> None:
        pass

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """See utils.types.Engine. What is beyond the cache budget waits for the next batch."""
        limit = sampling.max_response_length
        groups: list[list[Rollout]] = [[] for _ in prompts]
        ends = frozenset(self.eos_ids.tolist())
        prompt_lengths = [len(prompt.prompt_ids) + len(prompt.hint_ids) for prompt in prompts]
        for batch, samples in decode_batches(prompt_lengths, sampling.group_size, limit, self.kv_cache_tokens):
            chosen = [prompts[i] for i in batch]
            noise = None
            if sampling.temperature > 0:  # (P * G, tokens)
                numbers = [sampling.first_sample + sample for sample in samples]
                uniforms = sampling_uniforms(chosen, numbers, limit, sampling.seed, step)
                noise = torch.tensor(np.concatenate(uniforms), dtype=torch.float, device=self.device)
            ids, logprobs, lengths = self._decode(chosen, len(samples), limit, sampling.temperature, noise)
            for row, length in enumerate(lengths):
                i = batch[row // len(samples)]
                groups[i].append(Rollout(prompts[i], ids[row][:length], logprobs[row][:length],
                                         "stop" if ids[row][length - 1] in ends else "length"))
        stopping.meet()
        return groups

    def _decode(self, prompts, group_size, max_response_length, temperature, noise):
        """Lists of ids, log-probabilities and lengths, one per row (prompt-major)."""
        num_rows = len(prompts) * group_size
        ids = torch.zeros(num_rows + 1, max_response_length, dtype=torch.long, device=self.device)
        output = _Output(ids, torch.zeros(ids.shape, device=self.device), noise, temperature)
        *prefixes, logits = self._prefill(prompts)  # logits (S, V): all samples start from the same
        rows = torch.arange(num_rows, device=self.device).view(len(prompts), group_size)
        longest = max_response_length - 1  # the last token never gets into the cache
        suffixes = [[empty_cache(cache, *cache.shape[:2], group_size, min(FIRST_CAPACITY, longest), cache.shape[3])
                     for cache in caches] for caches in prefixes[:2]]
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
            stopping.leave()
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
        """Compute the prefixes (right-padded): keys, values, mask and lengths as in DecodeState, and logits (S, V)."""
        prefixes = [prompt.prompt_ids + prompt.hint_ids for prompt in prompts]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)
        width = int(lengths.max())
        weight = self.model.get_input_embeddings().weight
        fused = self.decoder.step_type is FusedStep
        prefill, logits = Prefill((len(prefixes), width), slice(0), heads_last=fused), []
        at_once = max(1, self.prefill_tokens // width)
        for start in range(0, len(prefixes), at_once):
            prefill.rows = slice(start, start + at_once)
            logits.append(self.decoder.prefill_rows(prefixes[prefill.rows], prefill))
        if not prefill.keys:
            raise RunStopped(f"the layers of a model of type {self.model.config.model_type} do not attend by "
                             "transformers' interface: the torch engine cannot run it; take --engine vllm or deepspeed")
        padding = torch.arange(width, device=self.device) >= lengths[:, None]
        dtype = torch.promote_types(weight.dtype, torch.float)
        mask = torch.zeros(padding.shape, dtype=dtype, device=self.device).masked_fill(padding, -torch.inf)
        keys, values = (list(caches.values()) for caches in (prefill.keys, prefill.values))  # in the order of layers
        return keys, values, mask[:, None, None], lengths, torch.cat(logits)

    def _step(self, state: DecodeState, output: _Output, width: int) -> None:
        """Append the latest token of every slot to its suffix and choose the next. `width` suffix columns are looked
        at: those that count, or more where shapes are fixed. Nothing may then depend on values or wait for the device.
        """
        self._choose(state, output, self.decoder.step(state, width, is_fixed=self.captured is not None))

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
