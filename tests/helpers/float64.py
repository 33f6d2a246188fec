"""Everything in float64: what must equal the plain computation is then equal to 1e-9 on any processor.

Models of transformers, and our code, compute some things in float32 whatever the weights are (norms, rotary
embeddings, softmax, log-probabilities), by `.float()`, `.to(torch.float32)` or `dtype=torch.float32`. In here these
words mean float64. A test whose point is a type that runs compute in is marked with `@as_in_a_run()`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # rounding is 1e-16, times the number of terms and what layers make of it
IN_FLOAT64 = {"PYTHONPATH": str(Path(__file__).parent / "in_float64")}  # variables of a launch that computes in it


class Float32MeansFloat64(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {name: double(value) for name, value in (kwargs or {}).items()}
        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*map(double, args), **kwargs)


def double(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument


@contextlib.contextmanager
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float32MeansFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def as_in_a_run() -> Iterator[None]:
    """Within `float64`: float32 means float32 again."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        torch.set_default_dtype(before)
