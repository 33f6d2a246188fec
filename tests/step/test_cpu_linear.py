"""Linear layers by oneDNN: its float32 against float64 to the bound of rounding, our gradients against torch's."""

import copy

import pytest
import torch
from torch import nn

from inference.torch_engine import TorchEngine
from tests.helpers.float64 import CLOSE
from tests.helpers.models import tiny_model
from utils import cpu_linear
from utils.attention import MAX_DIFFERENCE, tolerance
from utils.cpu_linear import Linear, add_product, outer_product, product, set_matmul_precision, use_products
from utils.pretrained import load_model

pytestmark = pytest.mark.numerics


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_rounded(actual, states, weight, added):
    """(n, O) float32 `actual` is states @ weight.T + added, each entry to what rounding may add up to in whatever order
    the terms are added: eps / 2 of their sizes for each multiplication and addition (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1)."""
    states, weight, added = (operand.double() for operand in (states, weight, added))
    num_terms = states.shape[1] + 1
    bound = num_terms * torch.finfo(torch.float32).eps * (states.abs() @ weight.abs().T + added.abs())
    assert ((actual.double() - states @ weight.T - added).abs() <= bound).all()


@pytest.mark.parametrize("transpose_states", [False, True])
@pytest.mark.parametrize("transpose_weight", [False, True])
@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 1, 1), (7, 5, 3), (130, 64, 96)])
def test_product_is_that_of_double_precision(n, inputs, outputs, transpose_states, transpose_weight):
    states = random(inputs, n).T if transpose_states else random(n, inputs)
    weight = random(inputs, outputs, seed=1).T if transpose_weight else random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2)
    for added in (None, bias):
        assert_rounded(product(states, weight, added), states, weight, torch.zeros(outputs) if added is None else added)


@pytest.mark.parametrize("rows", [8_192, 4])
def test_add_product_adds_whatever_the_blocks(rows, monkeypatch):
    monkeypatch.setattr(cpu_linear, "ROWS", rows)
    out, states, weight = random(10, 6), random(3, 10, seed=1).T, random(3, 6, seed=2).T
    before = out.clone()
    add_product(out, states, weight)
    assert_rounded(out, states, weight, before)


def small_model(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20, bias=bias), nn.SiLU(), nn.Linear(20, 4, bias=bias))


@pytest.mark.float64
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_torchs_layer(bias, monkeypatch):
    plain = small_model(bias)
    fast = use_products(copy.deepcopy(plain))
    calls = []
    monkeypatch.setattr(cpu_linear, "product", lambda *operands: calls.append(1) or product(*operands))
    found = []
    for model in (plain, fast):
        states = random(2, 5, 12).requires_grad_()
        out = model(states)
        assert out.shape == (2, 5, 4)
        (out * random(2, 5, 4, seed=3)).sum().backward()
        found.append([out, states.grad, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert len(calls) == 6  # two layers, each forward, for its input and for its weight


def test_gradient_of_a_frozen_weight_or_a_constant_input_is_not_computed():
    model = use_products(small_model(bias=True))
    model[0].requires_grad_(False)
    out = model(random(3, 12))  # the first layer has nothing to learn and nothing below
    out.sum().backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    model.requires_grad_(False)
    assert not model(random(3, 12)).requires_grad
    states = random(3, 12).requires_grad_()
    model(states).sum().backward()
    assert states.grad.abs().sum() > 0


@pytest.mark.parametrize(("n", "outputs"), [(5, 3), (3, 5)])
def test_the_gradient_of_a_weight_is_the_product_whichever_operand_comes_first(n, outputs):
    slopes, states = random(20, outputs), random(20, n, seed=1)
    assert_rounded(outer_product(slopes, states), slopes.T, states.T, torch.zeros(outputs, n))


def test_other_types_and_empty_batches_are_torchs_own():
    assert use_products(small_model(bias=True))(random(0, 12)).shape == (0, 4)
    for dtype in (torch.float64, torch.bfloat16):
        plain = small_model(bias=True).to(dtype)
        states = random(3, 12).to(dtype)
        assert torch.equal(use_products(copy.deepcopy(plain))(states), plain(states))


def test_parameters_stay_the_same_tensors_and_subclasses_are_left_alone():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Other(3, 3))
    before = dict(model.named_parameters())
    assert use_products(model) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert [type(module) for module in model] == [Linear, Other]


def test_only_what_runs_on_a_cpu_gets_them(base_model, monkeypatch):
    """A model that is loaded where there is CUDA goes to a GPU."""
    kinds = []
    for has_cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        kinds.append({type(module) for module in load_model(base_model, torch.float32).modules()} & {Linear, nn.Linear})
    assert kinds == [{Linear}, {nn.Linear}]
    monkeypatch.undo()
    for device, kind in (("cpu", Linear), ("meta", nn.Linear)):
        with torch.device(device):
            engine = TorchEngine(type(tiny_model())(tiny_model().config), [1], 1.0)
        assert {type(module) for module in engine.model.modules()} & {Linear, nn.Linear} == {kind}


# ----- matmul precision -----


@pytest.fixture
def medium():
    """As after --matmul_precision medium."""
    set_matmul_precision("medium")
    yield
    set_matmul_precision("highest")


def test_coarse_products_are_of_bfloat16_and_added_up_in_float32(medium):
    """Where the processor has such, else they are those of float32. Rounding both factors to eight digits changes their
    product by eps (Higham, as above); sums of 4,096 products in bfloat16 would lose what is below 1 / 256 of them."""
    states, weight = random(64, 4_096), random(32, 4_096, seed=1)
    exact, sizes = states.double() @ weight.double().T, states.double().abs() @ weight.double().abs().T
    error = (product(states, weight).double() - exact).abs()
    assert (error <= 1.01 * torch.finfo(torch.bfloat16).eps * sizes).all()
    assert error.square().mean().sqrt() < torch.finfo(torch.bfloat16).eps * 4_096**0.5  # as of rounded factors alone


def test_only_products_of_linear_layers_are_coarse(medium):
    """Others go through oneDNN where it may compute coarsely, attention's among them, and take longer."""
    states, weight = random(256, 256), random(256, 256, seed=1)
    before = states @ weight.T
    product(states, weight)
    assert torch.equal(states @ weight.T, before)
    assert_rounded(before, states, weight, torch.zeros(256, 256))


def test_after_coarse_products_float32_is_what_it_was():
    states, weight = random(64, 256), random(96, 256, seed=1)
    before = product(states, weight)
    set_matmul_precision("medium")
    product(states, weight)
    set_matmul_precision("highest")
    assert torch.equal(product(states, weight), before)


def test_gradients_by_coarse_products_are_near_those_of_float32(medium):
    found = []
    for precision in ("highest", "medium"):
        set_matmul_precision(precision)
        model, states = use_products(small_model(bias=True)), random(2, 5, 12).requires_grad_()
        (model(states) * random(2, 5, 4, seed=3)).sum().backward()
        found.append([states.grad, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 0.02 * one.norm()


def test_coarse_products_may_differ_as_bfloat16_does(medium):
    assert tolerance(torch.float32, 0.0) == MAX_DIFFERENCE[torch.bfloat16]
    set_matmul_precision("highest")
    assert tolerance(torch.float32, 0.0) == MAX_DIFFERENCE[torch.float32]
