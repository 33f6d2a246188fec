"""Kernels of a CPU against the formulas in float64, and which layers of a model take them."""

import copy
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.models import VOCABULARY
from tests.inference.test_architectures import random_model
from utils import cpu_kernels, policy
from utils.cpu_kernels import (
    KernelMLP,
    KernelNorm,
    RMSNorm,
    Rotate,
    SwiGLU,
    mlp_like,
    norm_like,
    prepare_for_cpu,
    rotate_in,
)

pytestmark = pytest.mark.numerics


@pytest.fixture(autouse=True, scope="module")
def kernels():
    if not cpu_kernels.are_there():
        pytest.skip("no compiler here")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(states, weight):
    return states * (states.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * weight


def gated(gate, up):
    return F.silu(gate) * up


def turned(heads, cos, sin):
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def results(function, operands, slopes, num_learned):
    """Result and gradients of the first operands."""
    operands = [one.detach().requires_grad_(number < num_learned) for number, one in enumerate(operands)]
    out = function(*operands)
    return [out, *torch.autograd.grad(out, operands[:num_learned], slopes)]


CASES = {
    "norm": (lambda states, weight: RMSNorm.apply(states, weight, 1e-6), norm, 2),
    "gated": (SwiGLU.apply, gated, 2),
    "turned": (Rotate.apply, turned, 1),
}


def operands_of(case, rows, size):
    if case == "norm":
        return [3 * random(2, rows, size), random(size, seed=1)], random(2, rows, size, seed=2)
    if case == "gated":
        return [3 * random(2, rows, size), random(2, rows, size, seed=1)], random(2, rows, size, seed=2)
    heads, slopes = random(2, rows, 3, size).transpose(1, 2), random(2, 3, rows, size, seed=2)
    return [heads, random(1, rows, size, seed=1), random(1, rows, size, seed=3)], slopes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rows", "size"), [(1, 2), (5, 14), (200, 64)])
def test_kernels_and_their_gradients_are_the_formulas_to_rounding(case, rows, size):
    function, formula, num_learned = CASES[case]
    operands, slopes = operands_of(case, rows, size)
    found = results(function, operands, slopes, num_learned)
    expected = results(formula, [one.double() for one in operands], slopes.double(), num_learned)
    for one, exact in zip(found, expected, strict=True):
        scale = exact.abs().amax(dim=-1, keepdim=True)  # terms that cancel were as large as others of their row
        assert ((one.double() - exact).abs() <= 2e-6 * scale + 2e-6 * exact.abs()).all()


def test_gates_far_from_zero_do_not_overflow():
    gate = torch.linspace(-120, 120, 2_401)
    found = results(SwiGLU.apply, [gate, torch.ones_like(gate)], torch.ones_like(gate), 2)
    expected = results(gated, [gate.double(), torch.ones_like(gate).double()], torch.ones_like(gate).double(), 2)
    for one, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_stays_so(case):
    """The guard of updates looks for it."""
    function, _, num_learned = CASES[case]
    for bad in (torch.nan, torch.inf):
        operands, slopes = operands_of(case, 5, 14)
        operands[0][1, 1, 1, ...] = bad
        found = results(function, operands, slopes, num_learned)
        assert not found[0].isfinite().all() or not found[1].isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_numbers_do_not_depend_on_threads(case):
    function, _, num_learned = CASES[case]
    operands, slopes = operands_of(case, 1_000, 64)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(results(function, operands, slopes, num_learned))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_what_does_not_fit_is_an_error():
    """Kernels have pointers: they would read on. ZeRO-3 leaves a weight empty where nobody has gathered it."""
    kernels, states, empty, three = torch.ops.cpu_kernels, random(3, 8), torch.empty(0), [random(3)] * 3
    for call in (lambda: kernels.rms_norm(states, empty, 1e-6),
                 lambda: kernels.rms_norm_backward(states, states, empty, random(3)),
                 lambda: kernels.rms_norm_backward(states[:2], states, random(8), random(3)),
                 lambda: kernels.swiglu(states, states[:2]), lambda: kernels.swiglu_backward(empty, states, states),
                 lambda: kernels.rotate(random(2, 1, 3, 8), random(1, 2, 8), random(1, 2, 8), False),
                 lambda: kernels.rotate(random(2, 1, 3, 7), random(1, 3, 7), random(1, 3, 7), True),
                 lambda: kernels.rms_norm_backward(states, states, random(8), random(2)),
                 lambda: kernels.softmax_sums(random(3)), lambda: kernels.softmax_sums(random(8, 3).T),
                 lambda: kernels.logit_gradients(states, random(2), torch.tensor([0, 1, 2]), *three, states),
                 lambda: kernels.logit_gradients(states, random(3), torch.tensor([0, 1]), *three, states),
                 lambda: kernels.logit_gradients(states, random(3), torch.tensor([0, 1, 2]), *three, states[:2])):
        with pytest.raises(RuntimeError, match="rms_norm: a weight of|kernel: shapes|rotate: angles|head: "):
            call()


# ----- the head -----


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 2), (5, 15), (7, 16), (4, 10_007), (2, 150_000)])
@pytest.mark.parametrize("shift", [0.0, 80.0, -500.0])
def test_sums_and_entropies_of_logits(rows, size, shift):
    """In one part and in some."""
    logits = 4 * random(rows, size) + shift
    exact = logits.double().log_softmax(dim=-1)
    for num_parts in (1, 3):
        parts = [policy.softmax_sums(part.contiguous(), True) for part in logits.chunk(num_parts, dim=1)]
        log_sums, entropies = (one.double() for one in policy.join_parts(parts))
        torch.testing.assert_close(log_sums, logits.double().logsumexp(dim=1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(entropies, -(exact.exp() * exact).sum(dim=1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("most", [2**26, 150])  # logits that are kept: all, none
def test_gradients_of_a_head_are_the_formulas_in_float64(soft_cap, most, monkeypatch):
    monkeypatch.setattr(policy, "PART_LOGITS", most)
    states, weight, bias = random(23, 12), random(19, 12, seed=1), random(19, seed=2)
    targets = torch.arange(23) % 19
    found = []
    for dtype in (torch.float, torch.double):
        operands = [one.to(dtype).requires_grad_() for one in (states, weight, bias)]
        logprobs, entropies = policy.FusedLinearLogProbs.apply(*operands, targets, 0.7, policy.Logits(1.3, soft_cap))
        slopes = random(2, 23, seed=3).to(dtype)
        loss = (slopes[0] * logprobs + slopes[1] * entropies).sum()
        found.append([logprobs, entropies, *torch.autograd.grad(loss, operands, retain_graph=True),
                      *torch.autograd.grad(loss, operands)])  # a second time: nothing that is kept was overwritten
    for one, exact in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)


def test_scores_without_gradients_take_the_kernels(monkeypatch):
    taken = []
    monkeypatch.setattr(cpu_kernels, "are_there", lambda: taken.append(1) or True)
    states, weight, targets = random(3, 8), random(5, 8, seed=1), torch.tensor([0, 4, 2])
    expected = (states @ weight.T).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    found = policy.PartedHead(nn.Parameter(weight))(states, targets, 1.0, with_entropies=False)[0]
    torch.testing.assert_close(found, expected)
    assert taken


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_not_finite_is_seen(bad):
    states, weight = random(3, 8), random(40, 8, seed=1)
    states[1, 7] = bad
    logprobs, entropies, *_ = policy.score(states, weight, None, torch.tensor([0, 4, 2]), 1.0, policy.PLAIN_LOGITS,
                                             with_entropies=True)
    for one in (logprobs, entropies):
        assert not one[1].isfinite() and one[[0, 2]].isfinite().all()


# ----- in models -----


def kinds(model):
    return [sum(isinstance(module, kind) for module in model.modules()) for kind in (KernelNorm, KernelMLP)]


@pytest.mark.parametrize(("name", "expected"), [
    ("Llama", [5, 2]), ("Qwen2", [5, 2]), ("Qwen3", [9, 2]), ("Mistral", [5, 2]),
    ("Gemma3", [13, 0]),  # its weights count from 1, and its gate is a GELU
])
def test_a_models_log_probabilities_and_gradients_stay_what_they_are(name, expected):
    plain = random_model(name).float()
    fast = prepare_for_cpu(copy.deepcopy(plain))
    assert kinds(plain) == [0, 0] and kinds(fast) == expected
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (plain.double(), fast):
        loss = F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for exact, one in zip(*found, strict=True):
        assert (one - exact).norm() <= 1e-4 * exact.norm() + 1e-7


class CentredRMSNorm(nn.Module):
    """By its name, weight and eps a norm that the kernel knows."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, states):
        return norm(states - states.mean(dim=-1, keepdim=True), self.weight)


def test_a_layer_that_computes_something_else_is_left_alone():
    assert norm_like(CentredRMSNorm()) is None and norm_like(nn.LayerNorm(8)) is None
    [mlp] = [module for module in random_model("Qwen2", num_hidden_layers=1).float().modules() if mlp_like(module)]
    mlp.act_fn = nn.GELU()
    assert mlp_like(mlp) is None


def test_a_function_that_turns_otherwise_is_left_alone():
    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        return turned(q, cos, -sin), turned(k, cos, -sin)

    file = ModuleType("modeling")
    file.apply_rotary_pos_emb = apply_rotary_pos_emb
    rotate_in(file)
    assert file.apply_rotary_pos_emb is apply_rotary_pos_emb
    file.apply_rotary_pos_emb = lambda q, k, cos, sin: (turned(q, cos, sin), turned(k, cos, sin))
    rotate_in(file)
    assert hasattr(file.apply_rotary_pos_emb, "__wrapped__")
    operands, _ = operands_of("turned", 5, 14)
    for dtype in (torch.float32, torch.float64):  # of the latter the function's own
        heads, cos, sin = (one.to(dtype) for one in operands)
        for found in file.apply_rotary_pos_emb(heads, heads[:, :1], cos, sin):
            torch.testing.assert_close(found, turned(heads, cos, sin)[:, : found.shape[1]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_the_models_own(dtype):
    ids = torch.arange(9)[None]
    fast = prepare_for_cpu(random_model("Qwen2").float())
    assert torch.equal(copy.deepcopy(fast).to(dtype)(ids).logits, random_model("Qwen2").to(dtype)(ids).logits)
    assert kinds(prepare_for_cpu(random_model("Qwen2").to(dtype))) == [0, 0]


def test_parameters_and_classes_stay():
    model = random_model("Qwen2").float()
    before, names = dict(model.named_parameters()), [type(module) for module in model.modules()]
    assert prepare_for_cpu(prepare_for_cpu(model)) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(map(isinstance, model.modules(), names))


def test_without_a_compiler_there_is_a_line_and_layers_stay(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # neither c++ nor ninja
    cpu_kernels.are_there.cache_clear()
    try:
        assert kinds(prepare_for_cpu(random_model("Qwen2").float())) == [0, 0]
        assert "cpu_kernels.cpp was not compiled (" in capsys.readouterr().out
        monkeypatch.setenv("CPU_KERNELS", "0")
        cpu_kernels.are_there.cache_clear()
        assert not cpu_kernels.are_there() and not capsys.readouterr().out
    finally:
        monkeypatch.undo()
        cpu_kernels.are_there.cache_clear()
        assert cpu_kernels.are_there()
