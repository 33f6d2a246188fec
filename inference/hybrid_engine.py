"""What an engine is: the actor's weights, generating.

An engine has two methods. `sync()` takes over the actor's present weights (all ranks call it together), `generate()`
samples without a word between the ranks, so that they may need different numbers of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from utils import seeding
from utils.hints import Prompt


@dataclass(frozen=True)
class Rollout:
    """One response to one prompt.

    Attributes:
        prompt: what the model was given, prompt and hint.
        response_ids: the sampled ids; where `finish` is "stop" the last one is an end-of-sequence id.
        logprobs: the engine's log-probability of each of them.
        finish: "stop" at an end-of-sequence id, "length" where the limit cut the response off.
    """

    prompt: Prompt
    response_ids: list[int]
    logprobs: list[float]
    finish: str


class Engine(Protocol):
    def sync(self) -> None: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        max_response_length: int,
        temperature: float,
        uniforms: Sequence[np.ndarray] | None = None,
    ) -> list[list[Rollout]]:
        """`group_size` rollouts for every prompt. Greedy where `temperature` is 0; else `uniforms[p][g, t]` decides
        token t of rollout g of prompt p, from the full distribution at that temperature (no top-p, no top-k)."""
        ...


def sampling_uniforms(
    prompts: Sequence[Prompt], group_size: int, max_response_length: int, seed: int, step: int
) -> list[np.ndarray]:
    """The randomness of a step's rollouts: for each prompt an array (group_size, max_response_length) in [0, 1).

    A function of (seed, step, problem, sample) alone.
    """
    return [
        np.stack([
            seeding.generator("sample", seed, step, prompt.problem.index, sample).random(max_response_length)
            for sample in range(group_size)
        ])
        for prompt in prompts
    ]


def eos_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: int | list[int] | None) -> frozenset[int]:
    """All ids that end a response: the tokenizer's and those that the model's generation config declares."""
    declared = [generation_eos] if isinstance(generation_eos, int) else generation_eos or []
    return frozenset([tokenizer.eos_token_id, *declared])


def completion_text(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hint and response as text, without the end-of-sequence token: what the verifier reads. Decoded in one go, since
    a character may be spread over tokens on both sides."""
    response_ids = rollout.response_ids[:-1] if rollout.finish == "stop" else rollout.response_ids
    return decode([*rollout.prompt.hint_ids, *response_ids], tokenizer)


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def build_engine(name: str, actor, tokenizer: PreTrainedTokenizerBase, kv_cache_gb: float) -> Engine:
    """The engine `name` for a zero.Actor: on the actor's own weights, or on a replica where those are sharded."""
    from inference.torch_engine import TorchEngine

    assert name == "torch"
    model = actor.policy.model
    ends = eos_ids(tokenizer, model.generation_config.eos_token_id)
    if actor.zero_stage < 3:
        return TorchEngine(model, ends, kv_cache_gb)
    replica = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype, attn_implementation="sdpa")
    return TorchEngine(replica.eval().to(actor.engine.device), ends, kv_cache_gb, weights=actor.whole_weights)
