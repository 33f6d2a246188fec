"""Random tiny models, rollouts and the lines of a script that compute its loss; nothing is read from disk."""

import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer

from training.tiny_base import make_tokenizer
from utils.metrics import LossSums
from utils.policy import Policy
from utils.prompts import PromptBuilder
from utils.scorer import Scorer
from utils.types import MicroBatch, Problem, Prompt, Rollout

VOCABULARY = 31
EOS = 1  # the id that ends the responses of `random_groups`
CPU = torch.device("cpu")


def tiny_model(
    kind: type[PreTrainedModel] = Qwen2ForCausalLM, seed: int = 0, scale: float = 0.3, **settings: object
) -> PreTrainedModel:
    """Two layers in the default type with every weight and bias drawn, so that no part of the model is without effect.
    `settings` are of the model's config.

    Two query heads share a key-value head. Qwen2 has tied embeddings, Llama has not.
    """
    config = kind.config_class(
        **{"vocab_size": VOCABULARY} | settings, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=kind is Qwen2ForCausalLM,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    model = kind(config).to(torch.get_default_dtype()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
    return with_noise(model, scale, seed)


@torch.no_grad()
def with_noise(model: PreTrainedModel, scale: float, seed: int) -> PreTrainedModel:
    """A copy of `model` with N(0, scale) added to all its weights."""
    random = torch.Generator().manual_seed(seed)
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=random, dtype=torch.float)
    return copy


def scorer(model: PreTrainedModel, temperature: float = 1.0) -> Scorer:
    policy = Policy(model)
    return Scorer(policy, policy, temperature)


@torch.no_grad()
def own_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> float:
    """What transformers itself says: mean negative log-likelihood of a demonstration token. Its eager attention is the
    one that knows soft caps."""
    model.set_attn_implementation("eager")
    total, num_tokens = 0.0, 0
    for problem in problems:
        prompt = tokenizer(problem.prompt)["input_ids"]
        demonstration = tokenizer(problem.demonstration)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + demonstration])
        labels = ids.masked_fill(torch.arange(ids.shape[1])[None] < len(prompt), -100)
        total += model(ids, labels=labels).loss.item() * len(demonstration)
        num_tokens += len(demonstration)
    return total / num_tokens


def byte_tokenizer(*phrases: str) -> Qwen2Tokenizer:
    """One token a byte, one a phrase (a run without digits, parentheses and newlines)."""
    return make_tokenizer(list(phrases), r"[\d()\n]", 4096)


def make_problem(index: int = 0, prompt: str = "question", solution: Sequence[str] = (), demonstration: str = "all"):
    return Problem(index, "countdown", prompt, tuple(solution), demonstration, {"target": 5, "numbers": [2, 3]})


def make_prompt(prompt_ids: list[int], hint_ids: list[int] | None = None, index: int = 0) -> Prompt:
    hint_ids = hint_ids or []
    return Prompt(make_problem(index), prompt_ids, hint_ids, hint_slices=min(1, len(hint_ids)))


def random_prompts(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[Prompt]:
    """Prompts of random ids with the given (prompt, hint) lengths; the first id is the prompt's number."""
    random = np.random.default_rng(seed)
    ids = [random.integers(2, VOCABULARY, prompt + hint).tolist() for prompt, hint in lengths]
    return [make_prompt([number, *some[1:prompt]], some[prompt:], number)
            for number, (some, (prompt, _)) in enumerate(zip(ids, lengths, strict=True))]


def random_groups(sizes: Sequence[tuple[int, int, Sequence[int]]], seed: int = 0) -> list[list[Rollout]]:
    """Groups of random ids with the given (prompt length, hint length, response lengths), every second response ended
    by EOS. No two prompts are equal."""
    random = np.random.default_rng(seed)
    prompts = random_prompts([(prompt, hint) for prompt, hint, _ in sizes], seed)
    groups = []
    for prompt, (_, _, lengths) in zip(prompts, sizes, strict=True):
        group = []
        for sample, length in enumerate(lengths):
            ended = sample % 2 == 0
            ids = random.integers(2, VOCABULARY, length).tolist()
            ids = [*ids[:-1], EOS] if ended and ids else ids
            group.append(Rollout(prompt, ids, (-random.random(length)).tolist(), "stop" if ended else "length"))
        groups.append(group)
    return groups


def group_length(group: Sequence[Rollout]) -> int:
    """Tokens of the group packed, its prompt once."""
    prompt = group[0].prompt
    return len(prompt.prompt_ids) + len(prompt.hint_ids) + sum(len(rollout.response_ids) for rollout in group)


def random_advantages(groups: Sequence[Sequence[Rollout]], seed: int = 0) -> list[list[float]]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(len(group)).tolist() for group in groups]


group_sizes = st.lists(  # for random_groups
    st.tuples(st.integers(1, 6), st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4)),
    min_size=1, max_size=5,
)


def lines_of_script(script: ModuleType, first: str, last: str) -> str:
    """The lines of its `main` from the first one with `first` to the last one before a line with `last`, so that no
    copy of them in a test can go stale."""
    lines = inspect.getsource(script.main).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i > begin and last in line)
    return textwrap.dedent("\n".join(lines[begin:end]))


def losses_of_script(
    script: ModuleType, micro_batch, actor: Scorer, reference: Scorer | None = None, max_ratio: float = math.inf,
    num_response_tokens: float = 1, num_hint_tokens: float = 1, numbers: Mapping[str, float] | None = None,
    **flags: float,
) -> dict[str, Tensor]:
    """What training/<script>.py itself computes for a micro-batch: its lines from the forward pass to `loss = ...` are
    run as they stand. `numbers` are further local variables."""
    names = vars(script) | {
        "micro_batch": micro_batch, "actor": actor, "reference": reference, "max_ratio": max_ratio,
        "num_response_tokens": num_response_tokens, "num_hint_tokens": num_hint_tokens,
        "num_pg_tokens": num_response_tokens, "args": SimpleNamespace(**{"clip_eps_high": 0.0} | flags),
        "losses": LossSums(),
    } | (numbers or {})
    exec(lines_of_script(script, "= actor(micro_batch)", " actor.backward("), names)  # noqa: S102
    return names


def counted_by_script(
    script: ModuleType, mini_batch: Sequence[MicroBatch], most_tokens: float = math.nan, constant: bool = False
) -> dict[str, float]:
    """The normalisers of the losses of a mini-batch, {name: tokens}, by its own lines."""
    plan = SimpleNamespace(most_tokens=most_tokens, most_response_tokens=most_tokens)
    names = vars(script) | {"mini_batch": mini_batch, "plan": plan,
                            "args": SimpleNamespace(constant_normaliser=constant)}
    lines = lines_of_script(script, "= count_tokens(", "for number, micro_batch in ")
    exec(lines, names)  # noqa: S102
    return {name: value for name, value in names.items() if name.startswith("num_")}


def rewarded_by_script(
    script: ModuleType, groups: Sequence[Sequence[Rollout]], prompts: PromptBuilder, **flags: object
) -> dict[str, object]:
    """What its lines of "3. reward and advantage" make of sampled groups, run as they stand."""
    names = vars(script) | {
        "groups": groups, "plan": SimpleNamespace(prompts=prompts, tokenizer=prompts.tokenizer),
        "watch": SimpleNamespace(begin=lambda _: None), "args": SimpleNamespace(**flags),
    }
    exec(lines_of_script(script, "# 3. reward", "# 4. batch"), names)  # noqa: S102
    return names
