"""When a captured step runs, is recorded and is replayed; what it does on a GPU is in test_torch_engine.py."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from inference import cuda_graph
from inference.cuda_graph import Captured


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What happens, with a stand-in for torch.cuda that records it."""
    happened = []

    @contextlib.contextmanager
    def within(name):
        happened.append(f"enter {name}")
        yield
        happened.append(f"leave {name}")

    def stream(name):
        return SimpleNamespace(name=name, wait_stream=lambda other: happened.append(f"{name} waits for {other.name}"))

    fake = SimpleNamespace(
        Stream=lambda device: stream("side"), current_stream=lambda: stream("present"),
        device=lambda device: contextlib.nullcontext(), stream=lambda chosen: within(chosen.name),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: happened.append("replay")),
        graph=lambda graph, stream, capture_error_mode: within(f"capture on {stream.name}"),
    )
    monkeypatch.setattr(cuda_graph.torch, "cuda", fake)
    cuda_graph.side_stream.cache_clear()
    yield happened
    cuda_graph.side_stream.cache_clear()


def test_a_step_runs_once_is_captured_once_and_then_replayed(events):
    """A capture does not execute: the second call replays what it has recorded."""
    step = Captured(lambda: events.append("step"), torch.device("cuda"))
    step()
    assert events == ["side waits for present", "enter side", "step", "leave side", "present waits for side"]
    events.clear()
    step()
    assert events == ["enter capture on side", "step", "leave capture on side", "replay"]
    events.clear()
    step()
    step()
    assert events == ["replay"] * 2


@pytest.mark.gpu
def test_replays_go_on_from_the_buffers_as_they_are():
    count, total = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda")

    def step():
        count.add_(1)
        total.add_(count)

    captured = Captured(step, torch.device("cuda"))
    for _ in range(5):
        captured()
    assert (count.item(), total.item()) == (5, 15)
    count.zero_()
    captured()
    assert (count.item(), total.item()) == (1, 16)
