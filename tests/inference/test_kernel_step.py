"""A decoding step by kernels of a CPU, against the plain one."""

import copy

import pytest
import torch

from inference import torch_engine
from inference.decoder import Step
from inference.kernel_step import KernelStep, weights_of
from inference.kv_cache import DecodeState
from inference.llama_decoder import LlamaDecoder
from inference.torch_engine import TorchEngine
from tests.helpers.models import CPU, random_prompts, tiny_model, with_noise
from tests.inference.test_architectures import random_model
from utils import cpu_kernels, cpu_linear
from utils.adapters import Lora, add_adapters
from utils.attention import Scores
from utils.types import Sampling

pytestmark = pytest.mark.numerics
LENGTHS = [(5, 0), (1, 0), (12, 3), (3, 2), (9, 0)]


class Layer:
    layer_idx = 0


@pytest.fixture(autouse=True, scope="module")
def kernels():
    if not cpu_kernels.are_there():
        pytest.skip("no compiler here")


def random_state(segments, slots, kv_heads, longest, capacity, width, size, dtype):
    random = torch.Generator().manual_seed(0)

    def caches(*shape):
        return [torch.randn(*shape, generator=random, dtype=torch.float).to(dtype)]

    lengths = torch.randint(1, longest + 1, (segments,), generator=random)
    is_padding = torch.arange(longest) >= lengths[:, None]
    mask = torch.zeros(segments, longest, dtype=dtype).masked_fill(is_padding, -torch.inf)
    prefixes = [caches(segments, kv_heads, longest, size) for _ in range(2)]
    suffixes = [caches(segments, kv_heads, slots, capacity, size) for _ in range(2)]
    rows = torch.arange(segments * slots).view(segments, slots)
    return DecodeState(*prefixes, mask[:, None, None], lengths, *suffixes, rows, rows >= 0, rows,
                       torch.tensor([width - 1]), capacity)


@pytest.mark.parametrize(("segments", "slots", "kv_heads", "per_head", "longest", "width", "size"), [
    (3, 4, 2, 1, 20, 5, 32), (1, 1, 1, 1, 1, 1, 16), (2, 5, 2, 3, 7, 17, 64), (4, 1, 2, 2, 33, 40, 48),
    (2, 3, 1, 7, 50, 16, 128),
])
def test_a_step_is_the_plain_one_in_float64(segments, slots, kv_heads, per_head, longest, width, size):
    random = torch.Generator().manual_seed(1)
    heads = [torch.randn(segments * slots, 1, num, size, generator=random).transpose(1, 2)
             for num in (kv_heads * per_head, kv_heads, kv_heads)]
    mixed, states = [], []
    for kind, dtype in ((KernelStep, torch.float), (Step, torch.double)):
        state = random_state(segments, slots, kv_heads, longest, width + 3, width, size, dtype)
        step = kind(state, width, False)
        mixed.append(step.mix(Layer, *(some.to(dtype) for some in heads), Scores(size**-0.5)).double())
        states.append(state)
    torch.testing.assert_close(*mixed, rtol=1e-5, atol=2e-6)
    for name in ("suffix_keys", "suffix_values", "prefix_keys", "prefix_values"):
        ours, theirs = (getattr(state, name)[0] for state in states)
        assert torch.equal(ours.double(), theirs)


@pytest.mark.parametrize("captured", [None, lambda step: step], ids=["usual", "fixed"])
@pytest.mark.parametrize("group_size", [1, 5])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Olmo3"])  # in one call; by the model's own layers, with a window
def test_samples_are_the_same(group_size, kind, captured, monkeypatch):
    """Rows end at many times: caches are compacted, and grow."""
    monkeypatch.setattr(torch_engine, "FIRST_CAPACITY", 4)
    model = tiny_model(seed=35, head_dim=16) if kind == "Qwen2" else random_model(kind, head_dim=16)
    engines = [TorchEngine(model, (1, 3, 7), kv_cache_gb=1.0) for _ in range(2)]
    assert engines[0].decoder.step_type is KernelStep
    assert bool(getattr(engines[0].decoder, "step_weights", [])) == (kind != "Olmo3")
    engines[0].captured = captured
    engines[1].decoder.step_type = Step
    prompts, sampling = random_prompts(LENGTHS), Sampling(group_size, 40, 0.8)
    ours, theirs = (engine.generate(prompts, sampling) for engine in engines)
    assert [[some.response_ids for some in group] for group in ours] == [
        [some.response_ids for some in group] for group in theirs]
    for group, other in zip(ours, theirs, strict=True):
        for one, two in zip(group, other, strict=True):
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), rtol=1e-4, atol=1e-5)
    engines[0].check()
    assert engines[0].decoder.step_type is KernelStep


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_layers_in_one_call_are_those_in_python_in_float64(kind, by_onednn, monkeypatch):
    """Every weight is a random one, or another's would do."""
    monkeypatch.setattr(cpu_linear, "TAKES_ONEDNN", by_onednn)
    model = random_model(kind, head_dim=16, sliding_window=None, use_sliding_window=False)
    exact = copy.deepcopy(model).double()
    random = torch.Generator().manual_seed(1)
    num_layers, kv_heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    found = []
    for one, kind_of_step, dtype in ((model, KernelStep, torch.float), (exact, Step, torch.double)):
        decoder = TorchEngine(one, (1,), kv_cache_gb=1.0).decoder
        assert isinstance(decoder, LlamaDecoder)
        assert bool(decoder.step_weights) == (dtype is torch.float)
        decoder.step_type = kind_of_step
        state = random_state(3, 4, kv_heads, 20, 8, 5, 16, dtype)
        for name in ("suffix_keys", "suffix_values", "prefix_keys", "prefix_values"):
            [caches] = getattr(state, name)
            setattr(state, name, [caches.roll(layer, 0).clone() for layer in range(num_layers)])
        state.chosen = torch.randint(model.config.vocab_size, (3, 4), generator=random.manual_seed(2))
        found.append((decoder.step(state, 5, False).double(), *(cache.double() for cache in state.suffix_keys)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_step_sees_weights_that_came_later():
    """As a sync writes them: into the parameters, or, where a replica gave them up, into new memory of theirs."""
    model, prompts, sampling = tiny_model(head_dim=16), random_prompts(LENGTHS), Sampling(2, 12, 1.0)
    engine = TorchEngine(model, (1,), 1.0)
    before = engine.generate(prompts, sampling)
    for number, parameter in enumerate(with_noise(copy.deepcopy(model), 0.5, seed=3).parameters()):
        own = list(model.parameters())[number]
        own.data = parameter.data if number % 2 else own.data.copy_(parameter.data)
    after, expected = engine.generate(prompts, sampling), TorchEngine(model, (1,), 1.0).generate(prompts, sampling)
    assert after == expected != before


def test_layers_with_adapters_are_not_one_call():
    model = tiny_model(head_dim=16)
    assert TorchEngine(model, (1,), 1.0).decoder.step_weights
    adapted = add_adapters(tiny_model(head_dim=16), Lora(2, 4.0, "q_proj", 0))
    assert not TorchEngine(adapted, (1,), 1.0).decoder.step_weights


def test_numbers_do_not_depend_on_threads():
    random = torch.Generator().manual_seed(1)
    heads = [torch.randn(36, num, 1, 32, generator=random) for num in (6, 2, 2)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        state = random_state(9, 4, 2, 100, 64, 50, 32, torch.float)
        found.append(KernelStep(state, 50, False).mix(Layer, *heads, Scores(0.2)))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_what_does_not_fit_is_an_error():
    """A kernel has pointers: it would read on."""
    state = random_state(2, 3, 2, 8, 6, 4, 16, torch.float)
    caches = [state.prefix_keys[0], state.prefix_values[0], state.suffix_keys[0], state.suffix_values[0],
              state.prefix_lengths]
    query, key = torch.randn(6, 4, 1, 16), torch.randn(6, 2, 1, 16)
    call = torch.ops.cpu_kernels.attend_latest
    for operands in ((query[:5], key, key, *caches, 4), (query, key[:, :1], key, *caches, 4),
                     (query, key, key[:5], *caches, 4), (query, key, key, *caches, 7), (query, key, key, *caches, 0),
                     (query[..., :8], key, key, *caches, 4), (query, key, key, caches[0][:1], *caches[1:], 4),
                     (query, key, key, *caches[:3], caches[3][:1], caches[4], 4),
                     (query, key, key, *caches[:4], caches[4] + 8, 4),
                     (query, key, key, *caches[:4], caches[4][:1], 4),
                     (query, key, key, *caches[:4], caches[4].repeat_interleave(2)[::2], 4)):
        with pytest.raises(RuntimeError, match="attend_latest|kernel: shapes"):
            call(*operands, 1.0)


def test_layers_whose_weights_or_caches_are_too_few_are_an_error():
    state, layers = random_state(2, 3, 2, 8, 6, 4, 16, torch.float), tiny_model(head_dim=16).model.layers
    caches = [state.prefix_keys, state.prefix_values, state.suffix_keys, state.suffix_values]
    angles, weights = torch.zeros(6, 1, 16), weights_of(layers[:1])
    for operands in ((weights[1:], *caches), (weights, [], *caches[1:]), (weights, caches[0], [], *caches[2:]),
                     (weights, *caches[:2], [], caches[3]), (weights, *caches[:3], [])):
        with pytest.raises(RuntimeError, match="decode_layers: "):
            torch.ops.cpu_kernels.decode_layers(torch.zeros(6, 8), angles, angles, *operands, state.prefix_lengths, 4,
                                                1.0, 1e-6, False)


def test_a_step_that_fails_is_not_taken(monkeypatch, capsys):
    own = KernelStep.through_layers
    monkeypatch.setattr(KernelStep, "through_layers", lambda *about: 1.1 * own(*about).sin())
    engine = TorchEngine(tiny_model(head_dim=16), (1,), 1.0)
    engine.check()
    assert engine.decoder.step_type is Step
    assert "inference/kernel_step.py and inference/llama_decoder.py changes log-prob" in capsys.readouterr().err


def test_where_it_is_taken():
    assert CPU.type == "cpu" and TorchEngine(tiny_model(), (1,), 1.0).decoder.step_type is Step  # heads of 4
    assert TorchEngine(tiny_model(head_dim=16).bfloat16(), (1,), 1.0).decoder.step_type is Step
    assert TorchEngine(tiny_model(head_dim=16), (1,), 1.0).decoder.step_type is KernelStep
