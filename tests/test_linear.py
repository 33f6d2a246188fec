"""Linear layers by oneDNN against double precision and torch's own, values and gradients."""

import copy

import pytest
import torch
from torch import nn

from utils import linear
from utils.linear import Linear, add_product, product, use_onednn

needs_onednn = pytest.mark.skipif(not linear.HAS_ONEDNN, reason="torch without oneDNN, or not x86")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("transpose_states", [False, True])
@pytest.mark.parametrize("transpose_weight", [False, True])
@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 1, 1), (7, 5, 3), (130, 64, 96)])
def test_product_is_that_of_double_precision(n, inputs, outputs, transpose_states, transpose_weight):
    states = random(inputs, n).T if transpose_states else random(n, inputs)
    weight = random(inputs, outputs, seed=1).T if transpose_weight else random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2)
    for added in (None, bias):
        exact = states.double() @ weight.double().T + (0 if added is None else added.double())
        torch.testing.assert_close(product(states, weight, added).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [8_192, 4])
def test_add_product_adds_whatever_the_blocks(rows, monkeypatch):
    monkeypatch.setattr(linear, "ROWS", rows)
    out, states, weight = random(10, 6), random(3, 10, seed=1).T, random(3, 6, seed=2).T
    expected = out + states @ weight.T
    add_product(out, states, weight)
    torch.testing.assert_close(out, expected)


def small_model(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20, bias=bias), nn.SiLU(), nn.Linear(20, 4, bias=bias))


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_torchs_layer(bias, monkeypatch):
    plain = small_model(bias)
    fast = use_onednn(copy.deepcopy(plain))
    calls = []
    monkeypatch.setattr(linear, "product", lambda *operands: calls.append(1) or product(*operands))
    found = []
    for model in (plain, fast):
        states = random(2, 5, 12).requires_grad_()
        out = model(states)
        assert out.shape == (2, 5, 4)
        (out * random(2, 5, 4, seed=3)).sum().backward()
        found.append([out, states.grad, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(calls) == 6  # two layers, each forward, for its input and for its weight


def test_gradient_of_a_frozen_weight_or_a_constant_input_is_not_computed():
    model = use_onednn(small_model(bias=True))
    model[0].requires_grad_(False)
    out = model(random(3, 12))  # the first layer has nothing to learn and nothing below
    out.sum().backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    model.requires_grad_(False)
    assert not model(random(3, 12)).requires_grad
    states = random(3, 12).requires_grad_()
    model(states).sum().backward()
    assert states.grad.abs().sum() > 0


def test_other_types_and_empty_batches_are_torchs_own():
    model = use_onednn(small_model(bias=True))
    assert model(random(0, 12)).shape == (0, 4)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(random(3, 12).double()).float(), model(random(3, 12)))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(random(3, 12).bfloat16()).dtype == torch.bfloat16


def test_parameters_stay_the_same_tensors_and_subclasses_are_left_alone():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Other(3, 3))
    before = dict(model.named_parameters())
    assert use_onednn(model) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert [type(module) for module in model] == [Linear, Other]
