"""DeepSpeed's own rollout (`deepspeed.runtime.rollout.HybridEngineRollout`) behind our interface.

It runs transformers' generate on the live, possibly sharded module: no copy of the weights, no sync, any model of
transformers, and the slowest of the engines. Under ZeRO-3 every token gathers every layer, so all ranks decode equally
many tokens: the end of sequence is ignored while decoding and responses are cut at it afterwards.

What is drawn comes from PyTorch's global generator, seeded by (seed, step, rank, first sample): unlike with the
others, samples depend on the number of ranks and on what else is in the batch. It gives no log-probabilities; they are
computed by one more forward pass over what was sampled.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace

import torch
from deepspeed.runtime.rollout import HybridEngineRollout, RolloutRequest, SamplingConfig
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from inference.kv_cache import cache_elements_of
from utils import seeding
from utils.run import distributed, stopping, watchdog
from utils.types import Prompt, Rollout, Sampling


@contextlib.contextmanager
def neutral_generation_config(model: PreTrainedModel, pad_id: int) -> Iterator[None]:
    """Transformers' generate takes from the model's own config what it is not given: penalties, min-p, bans. In here
    there is nothing to take."""
    own = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=pad_id)
    try:
        yield
    finally:
        model.generation_config = own


class DeepSpeedEngine:
    """Generates with the weights of `actor` (an Actor, or what else has a model and its device) where they are.
    `kv_cache_gb` bounds the batch."""

    def __init__(self, actor, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int], kv_cache_gb: float):
        self.model = actor.model
        self.device = actor.device
        self.eos_ids = torch.tensor(sorted(eos_ids), device=self.device)
        self.pad_id = tokenizer.eos_token_id
        self.kv_cache_bytes = kv_cache_gb * 2**30
        self.rollout = HybridEngineRollout(SimpleNamespace(module=self.model), tokenizer)

    def sync(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """See utils.types.Engine; but all ranks call together."""
        token_bytes = cache_elements_of(self.model.config) * self.model.dtype.itemsize
        longest = max([len(prompt.prompt_ids) + len(prompt.hint_ids) for prompt in prompts], default=1)
        row_bytes = token_bytes * (longest + sampling.max_response_length)
        size = max(1, int(self.kv_cache_bytes // (row_bytes * sampling.group_size)))
        size = -int(distributed.maximum(-size))  # every rank decodes as many batches: the smallest size, the most
        count = int(distributed.maximum(-(-len(prompts) // size)))
        key = sampling.seed, step, distributed.rank(), sampling.first_sample
        drawn = seeding.generator("global", *key).integers(2**62)
        groups = []
        with torch.random.fork_rng(enabled=sampling.temperature > 0):
            torch.manual_seed(int(drawn))
            for number in range(count):
                watchdog.progress()
                stopping.safe_point()
                batch = prompts[number * size : (number + 1) * size]
                groups += self._decode(batch, sampling)
        return groups

    def _decode(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        prefixes = [prompt.prompt_ids + prompt.hint_ids for prompt in prompts] or [[self.pad_id]]  # none: only keep up
        width = max(map(len, prefixes))
        ids = torch.tensor([[self.pad_id] * (width - len(prefix)) + prefix for prefix in prefixes], device=self.device)
        mask = torch.tensor([[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes],
                            device=self.device)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        group_size, limit = sampling.group_size, sampling.max_response_length
        config = SamplingConfig(limit, sampling.temperature, n_samples_per_prompt=group_size)
        with neutral_generation_config(self.model, self.pad_id):
            output = self.rollout.generate(RolloutRequest(ids, mask), config).input_ids  # (P * G, width + tokens)
        mask = torch.cat([mask.repeat_interleave(group_size, dim=0), torch.ones_like(output[:, width:])], dim=1)
        logprobs = self._score(output, mask, width, sampling.temperature or 1.0).tolist()
        for module, was_training in modes:
            module.training = was_training
        is_end = torch.isin(output[:, width:], self.eos_ids)
        ended = is_end.any(dim=1).tolist()
        lengths = [end + 1 if stop else limit
                   for end, stop in zip(is_end.int().argmax(dim=1).tolist(), ended, strict=True)]
        responses = output[:, width:].tolist()
        rollouts = [
            Rollout(prompts[row // group_size], responses[row][:length], logprobs[row][:length],
                    "stop" if ended[row] else "length")
            for row, length in enumerate(lengths[: len(prompts) * group_size])
        ]
        return [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]

    def _score(self, ids: Tensor, mask: Tensor, start: int, temperature: float) -> Tensor:
        """Log-probabilities of the tokens from column `start` on, (B, L - start)."""
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = self.model(ids, attention_mask=mask, position_ids=positions,
                            logits_to_keep=ids.shape[1] - start + 1).logits[:, :-1]
        return (logits.float() / temperature).log_softmax(-1).gather(-1, ids[:, start:, None]).squeeze(-1)
