"""Products of linear layers on a CPU, by the library that is fastest there: torch's BLAS (Intel's) or oneDNN.

On an AMD processor with AVX-512 that BLAS keeps to AVX2: oneDNN is twice as fast there in float32 (235 against 111
GFLOP/s on one core of an EPYC). On a Xeon oneDNN is 5 to 10 % slower, and 40 % where the first operand is a transposed
view, as in the gradient of a weight. So the maker decides, not a measurement at the start: one and the same machine
rounds alike whenever a run is resumed. On a GPU and in other types the products are torch's own.

With --matmul_precision medium they are products of bfloat16, added up in float32, where the processor has such (AMX):
two to four times as fast on a Xeon. Only these: attention's many small products would take three times as long.
"""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS = 8_192  # that add_product computes at once by oneDNN
PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # PyTorch's words -> what oneDNN may compute in

_precision = "highest"


def takes_onednn() -> bool:
    """Whether this processor's float32 products go to oneDNN."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    is_intel = "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())
    return not (is_intel and torch.backends.mkl.is_available())


TAKES_ONEDNN = takes_onednn()


def set_matmul_precision(precision: str) -> None:
    """Of float32 products from here on, in PyTorch's words: of linear layers on a CPU, of all on a GPU (below "highest"
    TF32)."""
    global _precision
    _precision = precision
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)


def matmul_precision() -> str:
    return _precision


@contextmanager
def coarse_products() -> Iterator[None]:
    """For products of layers; attention, which goes to oneDNN too where that may be coarse, must not be."""
    torch.backends.mkldnn.matmul.fp32_precision = PRECISIONS[_precision]
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"


def allowed_precision() -> AbstractContextManager[None]:
    return nullcontext() if _precision == "highest" else coarse_products()


def is_for_onednn(states: Tensor, weight: Tensor) -> bool:
    return (TAKES_ONEDNN and states.dtype is torch.float32 and weight.dtype is torch.float32
            and states.device.type == "cpu" and states.shape[0] > 0)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, I) states, (O, I) weight, (O,) bias -> states @ weight.T + bias, (n, O). Either may be a transposed view."""
    with allowed_precision():
        if is_for_onednn(states, weight):
            return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return F.linear(states, weight, bias)


def add_product(out: Tensor, states: Tensor, weight: Tensor) -> None:
    """`out` (n, O) += states @ weight.T, some rows at a time where the product needs memory of its own."""
    if not is_for_onednn(states, weight):
        with allowed_precision():
            out.addmm_(states, weight.T)
        return
    for some_out, some_states in zip(out.split(ROWS), states.split(ROWS), strict=True):
        some_out += product(some_states, weight)


def outer_product(grad_output: Tensor, states: Tensor) -> Tensor:
    """(n, O), (n, I) -> grad_output.T @ states, (O, I). oneDNN copies what comes first: there that is the smaller."""
    if not is_for_onednn(grad_output, states) or grad_output.shape[1] <= states.shape[1]:
        return product(grad_output.T, states.T)
    return product(states.T, grad_output.T).T


class Product(torch.autograd.Function):
    """`product` with its gradients, which are products again."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return product(states, weight, bias)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        return (product(grad_output, weight.T) if needs_states else None,
                outer_product(grad_output, states) if needs_weight else None,
                grad_output.sum(dim=0) if needs_bias else None)


class Linear(nn.Linear):
    """A linear layer by `product`; made from a present one by `use_products`."""

    def forward(self, states: Tensor) -> Tensor:
        flat = states.flatten(0, -2)
        if torch.is_grad_enabled() and (flat.requires_grad or self.weight.requires_grad):
            out = Product.apply(flat, self.weight, self.bias)
        else:
            out = product(flat, self.weight, self.bias)
        return out.view(*states.shape[:-1], out.shape[-1])


def use_products(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose linear layers compute by `product` from here on. Their parameters stay the same tensors."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
