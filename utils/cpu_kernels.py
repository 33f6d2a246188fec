"""Kernels for a CPU, compiled at first use: norms, gated layers and rotations in one pass over memory each way
(cpu_kernels.cpp), attention where responses share a prefix (cpu_attention.cpp), and the layers of a decoding step in
one call (cpu_decoding.cpp).

PyTorch takes six passes for an RMSNorm and some twelve for its gradients, each as slow as memory is. Only what computes
the same as a kernel, as tried on random numbers, is replaced by it, and only in float32; without a compiler nothing is.
"""

import contextlib
import copy
import hashlib
import inspect
import os
import platform
import subprocess
import sys
from functools import cache, partial, wraps
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension
from transformers import PreTrainedModel

from utils.cpu_linear import use_products
from utils.run import distributed
from utils.run.environment import extensions_root

UNITS = [Path(__file__).with_name(f"cpu_{name}.cpp") for name in ("kernels", "attention", "decoding")]
SOURCES = [*UNITS, Path(__file__).with_name("cpu_kernels.h")]
# NaN and infinity stay what they are; sums may be added in another order than written.
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math",
         "-fno-signed-zeros"]
EPS_NAMES = ("variance_epsilon", "eps")  # of norms
ROTARY, OPERANDS = "apply_rotary_pos_emb", ["q", "k", "cos", "sin"]  # in a model's file
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
HEAD_DIVISOR = 16  # the kernels of attention take heads of a multiple of it
TRIED_ROWS, TRIED_SIZE = 4, 8
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@cache
def are_there() -> bool:
    """Compiles and loads the kernels, or loads what was compiled for such a processor before. False where that fails,
    with a line that says why. CPU_KERNELS=0: they are not asked for."""
    if os.environ.get("CPU_KERNELS") == "0" or sys.platform != "linux":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), "") \
        if cpuinfo.exists() else platform.processor()
    made_of = "\n".join([*(source.read_text(encoding="utf-8") for source in SOURCES), *FLAGS, torch.__version__, flags])
    name = f"cpu_kernels_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    folder = extensions_root() / name
    whole = folder / "whole"  # says that what lies there was loaded once
    try:
        if whole.exists():
            torch.ops.load_library(folder / f"{name}.so")
        else:
            folder.mkdir(exist_ok=True)
            cpp_extension.load(name, list(map(str, UNITS)), extra_cflags=FLAGS, build_directory=str(folder),
                               is_python_module=False)
            whole.touch()
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        if distributed.is_main():
            print(f"warning: utils/cpu_kernels.cpp was not compiled ({str(error).strip().splitlines()[0]}): norms, "
                  "gated layers and attention take longer on this CPU")
        return False
    return True


def attend(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention can be computed by the kernels there."""
    return device.type == "cpu" and dtype is torch.float32 and head_dim % HEAD_DIVISOR == 0 and are_there()


def take(*operands: Tensor) -> bool:
    """Whether kernels can compute with what is not a layer's: they have to be compiled."""
    return is_for_kernels(*operands) and are_there()


def is_for_kernels(*operands: Tensor) -> bool:
    return all(one.dtype is torch.float32 and one.device.type == "cpu" and one.numel() > 0 for one in operands)


class RMSNorm(torch.autograd.Function):
    """(.., D) states, (D,) weight -> states / sqrt(mean of squares + eps) * weight."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        states = states.contiguous()
        out, factors = torch.ops.cpu_kernels.rms_norm(states, weight, eps)
        ctx.save_for_backward(states, weight, factors)
        return out

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        grads = torch.ops.cpu_kernels.rms_norm_backward(grad_output.contiguous(), *ctx.saved_tensors)
        return *grads, None


class SwiGLU(torch.autograd.Function):
    """(.., F) gate, (.., F) up -> silu(gate) * up."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return torch.ops.cpu_kernels.swiglu(gate, up)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.cpu_kernels.swiglu_backward(grad_output.contiguous(), *ctx.saved_tensors)


class Rotate(torch.autograd.Function):
    """(B, H, L, D) heads, (B or 1, L, D) cosines and sines -> heads * cos + (-second half, first half) * sin."""

    @staticmethod
    def forward(ctx, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.ops.cpu_kernels.rotate(heads, cos, sin, False)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        if grad_output.stride(-1) != 1:
            grad_output = grad_output.contiguous()
        return torch.ops.cpu_kernels.rotate(grad_output, *ctx.saved_tensors, True), None, None


class AttendPacked(torch.autograd.Function):
    """(N, H * Q, D) queries, (N, H, D) keys and values of packed tokens -> (N, H * Q, D). Stretch i has `lengths`[i]
    tokens from `starts`[i] on; stretches `groups`[g] to `groups`[g + 1] are a prefix and responses to it, each causal,
    that see it whole."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, lengths: Tensor, groups: Tensor,
                scale: float) -> Tensor:
        out, sums = torch.ops.cpu_kernels.attend_packed(query, key, value, starts, lengths, groups, scale)
        ctx.save_for_backward(query, key, value, out, sums, starts, lengths, groups)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.cpu_kernels.attend_packed_backward(grad_output.contiguous(), *ctx.saved_tensors, ctx.scale)
        return *grads, None, None, None, None


class NoContext:
    """Of a pass without gradients."""

    def save_for_backward(self, *operands: Tensor) -> None:
        pass


def result_of(function: type[torch.autograd.Function], *operands) -> Tensor:
    """What `function.apply` gives, without autograd's bookkeeping where nobody asks for gradients: that takes as long
    as a small norm."""
    return function.apply(*operands) if torch.is_grad_enabled() else function.forward(NoContext(), *operands)


class KernelNorm:
    """Before a class of RMSNorm among the bases of a module's class. `offset` is 1 where a weight counts from 1."""

    offset: float
    eps_name: str

    @property
    def kernel_eps(self) -> float:
        return getattr(self, self.eps_name)

    def forward(self, states: Tensor) -> Tensor:
        if not is_for_kernels(states, self.weight):
            return super().forward(states)
        weight = self.weight + self.offset if self.offset else self.weight
        return result_of(RMSNorm, states, weight, self.kernel_eps)


class KernelMLP:
    """Before a class of gated layers among the bases of a module's class."""

    def forward(self, states: Tensor) -> Tensor:
        if not is_for_kernels(states):
            return super().forward(states)
        return self.down_proj(result_of(SwiGLU, self.gate_proj(states), self.up_proj(states)))


def prepare_for_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose linear layers, norms and gated layers compute by what is fast on a CPU from here on. Their
    parameters stay the same tensors."""
    use_products(model)
    kinds = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    if kinds == {(torch.float32, "cpu")} and are_there():
        for module in model.modules():
            if not isinstance(module, KernelNorm | KernelMLP):
                module.__class__ = norm_like(module) or mlp_like(module) or type(module)
        rotate_in(sys.modules[type(model).__module__])
    return model


@torch.no_grad()
def rotate_in(module: ModuleType) -> None:
    """The function that a model's file turns queries and keys by computes by the kernel from here on, if it does the
    same with random numbers."""
    own = getattr(module, ROTARY, None)
    if own is None or hasattr(own, "__wrapped__") or list(inspect.signature(own).parameters)[:4] != OPERANDS:
        return

    @wraps(own)
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others, **named) -> tuple[Tensor, Tensor]:
        is_known = not others and not named and cos.shape == sin.shape and cos.dim() == 3 and not cos.requires_grad
        if not (is_known and is_for_kernels(q, k, cos, sin) and q.stride(-1) == k.stride(-1) == 1
                and cos.shape[1:] == (q.shape[2], q.shape[3]) and cos.shape[0] in (1, q.shape[0])):
            return own(q, k, cos, sin, *others, **named)
        cos, sin = cos.contiguous(), sin.contiguous()
        return result_of(Rotate, q, cos, sin), result_of(Rotate, k, cos, sin)

    random = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, num, 3, TRIED_SIZE, generator=random) for num in (4, 2)]
    angles = [torch.randn(2, 3, TRIED_SIZE, generator=random) for _ in range(2)]
    with contextlib.suppress(RuntimeError):  # of another shape than these
        if all(map(partial(torch.allclose, **CLOSE), rotated(*heads, *angles), own(*heads, *angles))):
            setattr(module, ROTARY, rotated)


@cache
def with_kernel(kernel: type, own: type, **fields) -> type:
    return type(f"{kernel.__name__}Of{own.__name__}", (kernel, own), fields)


@torch.no_grad()
def norm_like(module: nn.Module) -> type | None:
    """The class for a norm that computes what the kernel does, tried with a random weight; None for others."""
    weight = getattr(module, "weight", None)
    eps_name = next((name for name in EPS_NAMES if isinstance(getattr(module, name, None), float)), None)
    if "RMSNorm" not in type(module).__name__ or weight is None or weight.dim() != 1 or eps_name is None:
        return None
    tried, random = copy.deepcopy(module), torch.Generator().manual_seed(0)
    tried.weight.copy_(torch.randn(weight.shape, generator=random))
    states = torch.randn(TRIED_ROWS, len(weight), generator=random)
    expected = tried(states)
    for offset in (0.0, 1.0):
        tried.__class__ = with_kernel(KernelNorm, type(module), offset=offset, eps_name=eps_name)
        if torch.allclose(tried(states), expected, **CLOSE):
            return tried.__class__
    return None


@torch.no_grad()
def mlp_like(module: nn.Module) -> type | None:
    """The class for a gated layer that computes what the kernel does, tried with small random weights; None for
    others."""
    if {name for name, _ in module.named_children()} != MLP:
        return None
    tried, random = copy.copy(module), torch.Generator().manual_seed(0)
    small = {name: nn.utils.skip_init(nn.Linear, TRIED_SIZE, TRIED_SIZE, bias=False) for name in MLP - {"act_fn"}}
    for linear in small.values():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=random))
    tried._modules = module._modules | small
    states = torch.randn(TRIED_ROWS, TRIED_SIZE, generator=random)
    expected = tried(states)
    tried.__class__ = with_kernel(KernelMLP, type(module))
    return tried.__class__ if torch.allclose(tried(states), expected, **CLOSE) else None
