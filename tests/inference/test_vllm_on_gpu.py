"""What vLLM does on a GPU only, with a stand-in for it: test_vllm_engine.py is for the real one."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import inference
from utils.run.errors import RunStopped


class LLM:
    """As vLLM on a GPU: it takes the process's threads, and says whether its cache of prefixes is empty."""

    is_reset = True

    def __init__(self, *_arguments, **_settings):
        torch.set_num_threads(1)

    def collective_rpc(self, _method, kwargs):
        list(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> bool:
        return self.is_reset


@pytest.fixture
def engine_of(monkeypatch):
    """engine_of(on_gpu) -> a VLLMEngine on the stand-in."""
    state = {"destroy_model_parallel": None, "get_tp_group": None}
    for name, content in (("vllm", {"LLM": LLM, "SamplingParams": SimpleNamespace}), ("vllm.distributed", {}),
                          ("vllm.distributed.parallel_state", state)):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "inference.vllm_engine", raising=False)
    monkeypatch.setattr(inference, "vllm_engine", None, raising=False)
    vllm_engine = importlib.import_module("inference.vllm_engine")
    monkeypatch.setitem(sys.modules, "inference.vllm_engine", vllm_engine)  # and taken out again at the end
    before = torch.get_num_threads()

    def make(on_gpu: bool):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
        return vllm_engine.VLLMEngine("m", torch.float32, [0], max_length=8, kv_cache_gb=1.0, memory_fraction=0.3,
                                      weights=lambda: iter([{"a": torch.zeros(1)}]))

    yield make
    torch.set_num_threads(before)


def test_the_processs_threads_are_its_own_again_on_a_gpu(engine_of):
    torch.set_num_threads(3)
    engine_of(on_gpu=True)
    assert torch.get_num_threads() == 3
    engine_of(on_gpu=False)
    assert torch.get_num_threads() == 1  # vLLM divides the cores of a CPU itself


def test_keys_and_values_of_old_weights_stop_the_run(engine_of, monkeypatch):
    engine = engine_of(on_gpu=True)
    engine.sync()
    monkeypatch.setattr(LLM, "is_reset", False)
    with pytest.raises(RunStopped, match="^vLLM did not empty its prefix cache at a sync"):
        engine.sync()
