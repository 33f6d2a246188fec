"""The equations, against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.float64 import CLOSE
from utils.losses import clipped_surrogate, flat_groups, group_advantages, k3_divergence, masked_mean

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
LOG = {ratio: math.log(ratio) for ratio in (0.5, 0.9, 1.1, 1.5, 2.0, 10.0)}


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **(CLOSE | tolerance))


# ---- advantages ----


def test_advantages_by_hand_with_the_unbiased_standard_deviation():
    # Means 0.5 and 0.4; squared deviations 1 / 3 and (2 * 0.09 + 0.36) / 2 = 0.27.
    close(group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0]])), [[0.8660, -0.8660, 0.8660, -0.8660]],
          atol=1e-4, rtol=0)
    close(group_advantages(torch.tensor([[0.1, 0.1, 1.0]])), [[-0.57735, -0.57735, 1.15470]], atol=1e-4, rtol=0)


def test_a_millionth_is_added_to_the_standard_deviation():
    # Rewards 0 and 2e-6: mean 1e-6, standard deviation sqrt(2) * 1e-6, so 1 / (sqrt(2) + 1) = 0.41421.
    close(group_advantages(torch.tensor([[0.0, 2e-6]])), [[-0.41421, 0.41421]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("group_size", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flat_groups_get_exact_zeros(reward, group_size, dtype):
    """Also where the mean of equal numbers is not that number; rewards of a run are float32."""
    rewards = torch.from_numpy(np.full((1, group_size), reward, dtype))
    assert flat_groups(rewards).tolist() == [True]
    assert group_advantages(rewards).tolist() == [[0.0] * group_size]


def test_groups_are_compared_within_themselves_and_a_flat_one_is_known_by_its_extremes():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.1, 0.1], [0.0, 0.1]])
    assert flat_groups(rewards).tolist() == [True, False, True, False]
    close(group_advantages(rewards), [[0.0, 0.0], [-0.70711, 0.70711], [0.0, 0.0], [-0.70710, 0.70710]],
          atol=1e-4, rtol=0)


# ---- PPO's surrogate ----


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (0.5, 1.0, -0.5, -0.5),  # a good token became rarer: full gradient back
        (0.9, 1.0, -0.9, -0.9),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),  # a good token is frequent enough: clipped
        (0.5, -1.0, 0.8, 0.0),  # a bad token is rare enough: clipped
        (0.9, -1.0, 0.9, 0.9),
        (1.1, -1.0, 1.1, 1.1),
        (1.5, -1.0, 1.5, 1.5),
        (10.0, -2.0, 20.0, 20.0),  # no dual clip
        (2.0, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_and_its_gradient_inside_and_outside_the_clip(ratio, advantage, loss, gradient):
    logprobs = torch.tensor([-3.0 + LOG[ratio]], requires_grad=True)
    actual = clipped_surrogate(logprobs, torch.tensor([-3.0]), torch.tensor([advantage]), 0.2)
    actual.sum().backward()
    close(actual.detach(), [loss])
    close(logprobs.grad, [gradient])


def test_clip_eps_is_the_width_of_the_clip():
    ratios = torch.tensor([1.5, 0.5]).log()
    close(clipped_surrogate(ratios, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.3), [-1.3, 0.7])


# ---- k3 ----


def test_k3_is_zero_at_equality_and_by_hand_elsewhere():
    # d = ref - logprob = ln 2: 2 - ln 2 - 1 = 0.30685; d = -ln 2: 1/2 + ln 2 - 1 = 0.19315.
    logprobs = torch.tensor([-1.5, -1.5 - LOG[2.0], -1.5 + LOG[2.0]], requires_grad=True)
    divergence = k3_divergence(logprobs, torch.full((3,), -1.5))
    assert divergence[0].item() == 0.0
    close(divergence.detach(), [0.0, 0.30685, 0.19315], atol=1e-5, rtol=0)
    divergence.sum().backward()
    close(logprobs.grad, [0.0, -1.0, 0.5])  # 1 - exp(d)


def test_k3_clamps_the_difference_at_ten_and_has_no_gradient_beyond():
    logprobs = torch.tensor([-30.0, -10.0], requires_grad=True)
    divergence = k3_divergence(logprobs, torch.tensor([-10.0, -30.0]))
    divergence.sum().backward()
    close(divergence.detach(), [math.exp(10) - 11, math.exp(-10) + 9])
    assert logprobs.grad.tolist() == [0.0, 0.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=20))
def test_k3_is_never_negative(pairs):
    logprobs, ref_logprobs = torch.tensor(pairs).T
    assert k3_divergence(logprobs, ref_logprobs).min() >= -1e-15  # rounding of three numbers near 1


# ---- means ----


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=30), st.data())
def test_parts_of_micro_batches_add_up_to_the_mean(tokens, data):
    values, mask = torch.tensor([value for value, _ in tokens]), torch.tensor([masked for _, masked in tokens])
    count = int(mask.sum())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    parts = [masked_mean(values[i:j], mask[i:j], count)
             for i, j in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    expected = values[mask].mean() if count else torch.tensor(0.0)
    close(torch.stack(parts).sum(), expected)


def test_mean_divides_by_the_whole_mini_batch():
    close(masked_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True]), 10), 0.5)


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_what_is_outside_of_the_mask_has_no_effect(outside):
    values = torch.tensor([3.0, outside], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False]), 1)
    mean.backward()
    assert mean.item() == 3.0
    assert values.grad.tolist() == [1.0, 0.0]


def test_the_mean_of_no_tokens_is_zero_and_attached():
    values = torch.tensor([3.0, 5.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([False, False]), 0)
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0]


# ---- all ----


def test_functions_do_not_write_to_their_arguments():
    random = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(3, 4, generator=random) for _ in range(3))
    mask = first > 0
    before = [tensor.clone() for tensor in (first, second, third, mask)]
    group_advantages(first)
    flat_groups(first)
    masked_mean(first, mask, 5)
    clipped_surrogate(first, second, third, 0.2)
    k3_divergence(first, second)
    assert all(torch.equal(old, new) for old, new in zip(before, (first, second, third, mask), strict=True))
