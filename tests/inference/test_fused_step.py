"""Steps that attend by variable-length attention, which only GPUs have: here by the same written out."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inference import fused_step, torch_engine
from inference.decoder import Decoder, Step
from inference.fused_step import FusedStep, attend_to_counted
from inference.kv_cache import heads_come_last
from inference.torch_engine import TorchEngine
from tests.helpers.attention import plain_varlen
from tests.helpers.float64 import CLOSE
from tests.helpers.models import CPU, random_prompts, tiny_model
from tests.inference.test_architectures import random_model
from utils.types import Sampling

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
LENGTHS = [(5, 0), (1, 0), (12, 3), (3, 2), (9, 0)]
ENDS = (1, 3, 7)


@pytest.fixture
def engines(monkeypatch):
    """An engine of a model that attends by fused steps, and one that does not."""
    monkeypatch.setattr(fused_step, "varlen_attn", plain_varlen)
    monkeypatch.setattr(fused_step, "shares_come_by_heads", lambda device: True)

    def both(model):
        made = [TorchEngine(model, ENDS, kv_cache_gb=1.0) for _ in range(2)]
        for engine in made:
            engine.decoder = Decoder(model)
        made[0].decoder.step_type = FusedStep
        return made

    return both


@pytest.mark.parametrize("captured", [None, lambda step: step], ids=["usual", "fixed"])
@pytest.mark.parametrize("group_size", [1, 4])
def test_fused_steps_change_nothing(engines, captured, group_size, monkeypatch):
    """Rows end at many times: caches are compacted, and grow."""
    monkeypatch.setattr(torch_engine, "FIRST_CAPACITY", 4)
    fused, plain = engines(tiny_model(seed=35))
    fused.captured = plain.captured = captured
    prompts, sampling = random_prompts(LENGTHS), Sampling(group_size, 40, 0.8)
    ours, theirs = fused.generate(prompts, sampling), plain.generate(prompts, sampling)
    assert [[some.response_ids for some in group] for group in ours] == [
        [some.response_ids for some in group] for group in theirs]
    assert len({len(some.response_ids) for group in ours for some in group}) > 3 or group_size == 1
    for group, other in zip(ours, theirs, strict=True):
        for one, two in zip(group, other, strict=True):
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), **CLOSE)
    fused.check()
    assert fused.decoder.step_type is FusedStep


def test_layers_with_windows_or_caps_attend_as_they_do_elsewhere(engines, monkeypatch):
    used = []
    monkeypatch.setattr(Step, "mix", lambda *about, mix=Step.mix: used.append(about[1].layer_idx) or mix(*about))
    fused, _ = engines(random_model("Olmo3"))
    fused.check()
    assert fused.decoder.step_type is FusedStep and set(used) == {0}  # the layer with a window
    fused, _ = engines(random_model("Gemma2"))
    fused.check()
    assert set(used) == {0, 1}


def test_a_kernel_that_fails_or_is_wrong_is_not_used(engines, monkeypatch, capsys):
    fused, _ = engines(tiny_model())

    def failing(*about, **how):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(fused_step, "varlen_attn", failing)
    fused.check()
    assert fused.decoder.step_type is Step and "fails: no kernel for this for this model" in capsys.readouterr().err
    fused, _ = engines(tiny_model())
    monkeypatch.setattr(fused_step, "varlen_attn", lambda *about, **how: [1.1 * some for some in
                                                                          plain_varlen(*about, **how)])
    fused.check()
    assert fused.decoder.step_type is Step and "changes log-probabilities by" in capsys.readouterr().err


def test_pytorchs_attention_takes_what_it_is_given():
    """Its shapes and types, on tensors that hold nothing."""
    with FakeTensorMode():
        queries, keys = (torch.empty(tokens, 2, 64, dtype=torch.bfloat16) for tokens in (24, 60))
        counts = torch.empty(4, dtype=torch.int32)
        mixed, shares = attend_to_counted(queries, keys, keys, counts, 4, 0.1)
    assert mixed.shape == (24, 2, 64) and shares.shape == (24, 2)


def test_caches_of_fused_steps_have_their_heads_last(engines):
    fused, plain = engines(tiny_model())
    for engine, are_last in ((fused, True), (plain, False)):
        keys, values, *_ = engine._prefill(random_prompts(LENGTHS))
        assert [heads_come_last(cache) for cache in (*keys, *values)] == [are_last] * 4
        assert keys[0].shape == (5, 2, 15, 4)


def test_on_a_cpu_nothing_is_fused():
    assert TorchEngine(tiny_model().bfloat16(), ENDS, 1.0).decoder.step_type is Step
    assert torch_engine.KNOWS_COUNTS and CPU.type == "cpu"
