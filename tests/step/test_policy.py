"""The forward pass: parts of the vocabulary change nothing, temperature divides the logits, entropies are in nats."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    CohereForCausalLM,
    Gemma2ForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
    modeling_utils,
)

from tests.helpers.float64 import CLOSE
from tests.helpers.models import CPU, VOCABULARY, scorer, tiny_model
from utils import policy
from utils.actor import checkpoint_layers
from utils.layouts import Masked
from utils.policy import (
    FusedLinearLogProbs,
    Logits,
    PartedHead,
    Policy,
    logits_of_part,
    memory_of,
    most_logits,
    part_size,
)
from utils.run.errors import RunStopped

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
LENGTH = 11


def inputs(seed=0):
    """Two rows with the ordinary causal mask; scored are 13 of the 22 states, in no order, two of them twice."""
    random = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (2, LENGTH), generator=random)
    positions = torch.arange(LENGTH).expand(2, -1)
    layout = Masked(torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril(), positions)
    predictors = torch.cat([torch.randperm(2 * LENGTH, generator=random)[:11], torch.tensor([3, 3])])
    targets = torch.randint(VOCABULARY, (13,), generator=random)
    return input_ids, positions, layout, predictors, targets


def scores_and_gradients(model, temperature=0.7):
    logprobs, entropies = Policy(model)(*inputs(), temperature)
    loss = (logprobs * torch.linspace(-1, 1, 13)).sum() + entropies.mean()
    return logprobs.detach(), entropies.detach(), torch.autograd.grad(loss, list(model.parameters()))


HEADS = {
    "tied": {},
    "untied": {"kind": LlamaForCausalLM},
    "with a bias": {"kind": PhiForCausalLM},
    "with a divisor": {"kind": GraniteForCausalLM, "logits_scaling": 8.0},
    "with a factor": {"kind": CohereForCausalLM, "logit_scale": 0.25},
    "with a soft cap": {"kind": Gemma2ForCausalLM, "final_logit_softcapping": 1.5},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("limit", [2**26, 5 * VOCABULARY])
def test_scores_and_gradients_are_those_of_the_models_own_logits(monkeypatch, head, temperature, limit):
    """At the temperature; log-probabilities kept for the backward pass or, where parts are small, computed again."""
    monkeypatch.setattr(policy, "PART_LOGITS", limit)
    model = tiny_model(**HEADS[head])
    input_ids, _, _, predictors, targets = inputs()
    model.set_attn_implementation("eager")  # "sdpa" leaves out the soft cap of Gemma 2's scores
    log_p = (model(input_ids=input_ids).logits.flatten(0, 1)[predictors] / temperature).log_softmax(dim=-1)
    logprobs, entropies = log_p[torch.arange(13), targets], -(log_p.exp() * log_p).sum(-1)
    loss = (logprobs * torch.linspace(-1, 1, 13)).sum() + entropies.mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(scores_and_gradients(model, temperature), (logprobs, entropies, gradients), **CLOSE)
    alone, _ = Policy(model)(*inputs(), temperature, with_entropies=False)
    torch.testing.assert_close(alone, logprobs, **CLOSE)


@pytest.mark.parametrize("words", [1, 2, 5, VOCABULARY - 1])
def test_parts_of_the_vocabulary_change_neither_values_nor_gradients(monkeypatch, words):
    model = tiny_model()
    whole = scores_and_gradients(model)
    monkeypatch.setattr(policy, "PART_LOGITS", 13 * words + 6)
    torch.testing.assert_close(scores_and_gradients(model), whole, **CLOSE)


@pytest.mark.parametrize(
    ("limit", "parts"),
    [(13 * VOCABULARY, [VOCABULARY]), (13 * VOCABULARY - 1, [-(-VOCABULARY // 2), VOCABULARY // 2]),
     (1, [1] * VOCABULARY)],
)
def test_no_more_logits_than_the_limit_are_alive_at_once(monkeypatch, limit, parts):
    """But for a single word, whose logits are more than the limit already."""
    sizes = []

    def recording(states, weight, bias, part, *rest):
        sizes.append(part.stop - part.start)
        return logits_of_part(states, weight, bias, part, *rest)

    monkeypatch.setattr(policy, "logits_of_part", recording)
    monkeypatch.setattr(policy, "PART_LOGITS", limit)
    logprobs, _ = Policy(tiny_model())(*inputs(), 1.0)
    assert sizes == parts
    logprobs.sum().backward()
    assert sizes == parts * (1 if len(parts) == 1 else 2)  # what is too large to be kept is computed again


def test_a_cpu_takes_parts_that_fit_its_cache_but_no_thin_ones():
    assert part_size(2**10, 2**18, 0) == 2**12 and part_size(2**14, 2**18, 0) == 2**10
    assert part_size(2**20, 2**18, 0) == 2**6 and part_size(2**30, 2**18, 0) == 1  # the limit
    assert part_size(5_000, 1_500, 0) == 750 and part_size(100, 300, 0) == 300  # parts are alike
    assert part_size(0, 300, 0) == 300


@pytest.mark.parametrize(("gpu_bytes", "logits", "words"), [(84.9e9, 2**28, 30_388), (42.3e9, 2**28, 30_388),
                                                            (25.3e9, 2**27, 15_194)])
def test_a_gpu_takes_larger_parts_the_larger_it_is(monkeypatch, gpu_bytes, logits, words):
    """Words of Qwen2.5's vocabulary for 8,192 scored tokens."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gpu_bytes))
    assert most_logits(memory_of(torch.device("cuda"))) == logits
    assert part_size(8_192, 151_936, gpu_bytes) == words
    assert most_logits(memory_of(CPU)) == 2**26


@pytest.mark.parametrize("limit", [10**6, 20])
@pytest.mark.parametrize("logits", [Logits(), Logits(scale=0.5), Logits(scale=2.0, soft_cap=1.3)])
def test_gradients_written_by_hand_are_those_of_finite_differences(monkeypatch, limit, logits):
    """Kept and computed again, of both outputs."""
    monkeypatch.setattr(policy, "PART_LOGITS", limit)
    random = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(shape, generator=random).requires_grad_() for shape in ((4, 3), (7, 3), 7))
    targets = torch.tensor([0, 6, 2, 2])
    assert torch.autograd.gradcheck(lambda *given: FusedLinearLogProbs.apply(*given, targets, 0.7, logits),
                                    (states, weight, bias))


def test_scores_by_hand():
    """A head of three words, logits (0, 0, ln 2) and at temperature 1/2 (0, 0, ln 4)."""
    head = PartedHead(torch.nn.Parameter(torch.tensor([[0.0], [0.0], [1.0]])))
    states, targets = torch.full((2, 1), math.log(2)), torch.tensor([0, 2])
    logprobs, entropies = head(states, targets, 1.0)
    torch.testing.assert_close(logprobs, torch.tensor([0.25, 0.5]).log())
    torch.testing.assert_close(entropies, torch.full((2,), 1.5 * math.log(2)))  # 1/2 ln 2 + 2 * 1/4 ln 4
    logprobs, entropies = head(states, targets, 0.5)
    torch.testing.assert_close(logprobs, torch.tensor([1 / 6, 2 / 3]).log())
    torch.testing.assert_close(entropies, torch.full((2,), math.log(6) / 3 + 2 / 3 * math.log(1.5)))


def test_scores_are_at_least_float32_whatever_the_weights_are():
    head = PartedHead(torch.nn.Parameter(torch.randn(5, 3, dtype=torch.bfloat16)))
    logprobs, entropies = head(torch.randn(2, 3, dtype=torch.bfloat16), torch.tensor([0, 4]), 1.0)
    assert all(torch.finfo(scores.dtype).bits >= 32 for scores in (logprobs, entropies))


def test_the_head_is_the_models_own_parameter():
    """Tied embeddings get the gradient of both uses, and a sharded model is not held twice."""
    model = tiny_model(Qwen2ForCausalLM)
    wrapped = Policy(model)
    assert wrapped.head.weight is model.get_input_embeddings().weight
    assert len(list(wrapped.parameters())) == len(list(model.parameters()))


def test_a_model_whose_logits_are_not_ours_stops_the_run(monkeypatch):
    """As those of a head that training does not know would."""
    model = tiny_model(GraniteForCausalLM, logits_scaling=8.0)
    scorer(model)
    monkeypatch.setattr(Logits, "of", lambda config: Logits())
    with pytest.raises(RunStopped, match="other log-probabilities than the model .* differ by"):
        scorer(model)


def test_a_window_that_training_forgets_stops_the_run(monkeypatch):
    """The rows that are tried leave it."""
    model = tiny_model(MistralForCausalLM, sliding_window=20)
    scorer(model)
    monkeypatch.setattr(Masked, "mix", lambda self, module, query, key, value, scores, mix=Masked.mix:
                        mix(self, module, query, key, value, replace(scores, window=None)))
    with pytest.raises(RunStopped, match="other log-probabilities than the model .* differ by"):
        scorer(model)


def test_checkpointing_layers_changes_nothing_not_even_where_the_model_has_dropout(monkeypatch):
    model = tiny_model(PhiForCausalLM, attention_dropout=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    expected = scores_and_gradients(model)
    calls = []
    monkeypatch.setattr(modeling_utils, "checkpoint",
                        lambda *given, **how: calls.append(1) or checkpoint(*given, **how))
    checkpoint_layers(model)
    torch.testing.assert_close(scores_and_gradients(model), expected, **CLOSE)
    assert len(calls) == 2
