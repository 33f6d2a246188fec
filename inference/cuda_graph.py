"""A decoding step as a CUDA graph: one launch for each token instead of some thousand."""

from collections.abc import Callable
from functools import cache

import torch


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where steps are warmed up and captured: one for all, since cuBLAS keeps a workspace for every stream it sees."""
    return torch.cuda.Stream(device)


class Captured:
    """`step`, which reads and writes fixed CUDA buffers only, does not wait for the device and has the same shapes each
    time: the first call runs it as it is (libraries must be warm before a capture), the second captures it, and from
    then on it is replayed.

    A graph knows its buffers and the model's weights by their addresses: values may change, the tensors must stay. So
    an engine keeps no graph beyond its batch, and weights that a sleeping replica frees are in none.
    """

    def __init__(self, step: Callable[[], None], device: torch.device):
        self.step, self.device = step, device
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        with torch.cuda.device(self.device):
            if not self.warm:
                self._warm_up()
                return
            if self.graph is None:
                graph = torch.cuda.CUDAGraph()
                # Other threads of the process, such as NCCL's watchdog, go on calling CUDA: only this one is recorded.
                with torch.cuda.graph(graph, stream=side_stream(self.device), capture_error_mode="thread_local"):
                    self.step()
                self.graph = graph
            self.graph.replay()

    def _warm_up(self) -> None:
        present, side = torch.cuda.current_stream(), side_stream(self.device)
        side.wait_stream(present)
        with torch.cuda.stream(side):
            self.step()
        present.wait_stream(side)
        self.warm = True
