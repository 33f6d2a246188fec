"""Attention by a kernel of a CPU, in training: against attention under a mask in float64, and where it is taken."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.helpers.models import CPU, group_length, group_sizes, random_advantages, random_groups, scorer, tiny_model
from utils import cpu_kernels
from utils.attention import Scores
from utils.layouts import Masked, Tiles, kinds_of_layouts
from utils.packing import pack
from utils.response_batches import Batches
from utils.types import PADDING

pytestmark = pytest.mark.numerics
HEADS, KV_HEADS = 4, 2


@pytest.fixture(autouse=True, scope="module")
def kernels():
    if not cpu_kernels.are_there():
        pytest.skip("no compiler here")


def random_heads(micro_batch, size, seed=0):
    """Queries, keys, values and a gradient of the result, laid out as a model's layers do."""
    random = torch.Generator().manual_seed(seed)
    rows = micro_batch.input_ids.shape
    query, key, value, slopes = (torch.randn(*rows, heads, size, generator=random)
                                 for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    real = (micro_batch.branch_ids != PADDING)[..., None, None]
    return [some.transpose(1, 2) for some in (query, key, value)], slopes * real


def results(layout, operands, slopes, scores, dtype):
    operands = [some.to(dtype).requires_grad_() for some in operands]
    mixed = layout.mix(None, *operands, scores)
    return [mixed, *torch.autograd.grad(mixed, operands, slopes.to(dtype))]


def compare(micro_batch, size, scores):
    operands, slopes = random_heads(micro_batch, size)
    found = results(Tiles.of(micro_batch, torch.float), operands, slopes, scores, torch.float)
    expected = results(Masked.of(micro_batch, torch.double), operands, slopes, scores, torch.double)
    real = micro_batch.branch_ids != PADDING
    assert (found[0][~real] == 0).all()
    torch.testing.assert_close(found[0][real].double(), expected[0][real], rtol=1e-5, atol=2e-6)
    for one, exact in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=group_sizes, slack=st.integers(0, 60), seed=st.integers(0, 99), share_prefix=st.booleans())
def test_values_and_gradients_are_those_under_a_mask(sizes, slack, seed, share_prefix):
    groups = random_groups(sizes, seed)
    budget = max(map(group_length, groups)) + slack
    for micro_batch in pack(groups, random_advantages(groups), budget, CPU, share_prefix):
        compare(micro_batch, 16, Scores(0.25))


@pytest.mark.parametrize("size", [16, 32, 48, 64, 112])
def test_stretches_longer_than_a_block_and_heads_of_any_size(size):
    groups = random_groups([(70, 7, [33, 1, 65, 32]), (1, 0, [100]), (31, 0, [])])
    [micro_batch] = pack(groups, random_advantages(groups), 600, CPU)
    compare(micro_batch, size, Scores(size**-0.5))


def test_large_scores_are_no_infinity():
    groups = random_groups([(20, 0, [30, 9])])
    [micro_batch] = pack(groups, random_advantages(groups), 80, CPU)
    operands, slopes = random_heads(micro_batch, 16)
    operands[0] *= 300
    found, expected = (results(kind.of(micro_batch, dtype), operands, slopes, Scores(0.25), dtype)
                       for kind, dtype in ((Tiles, torch.float), (Masked, torch.double)))
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    assert all(one.isfinite().all() for one in found)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("operand", range(3))
def test_what_is_not_finite_stays_so(bad, operand):
    """The guard of updates looks for it."""
    groups = random_groups([(20, 0, [30, 9])])
    [micro_batch] = pack(groups, random_advantages(groups), 80, CPU)
    operands, slopes = random_heads(micro_batch, 16)
    operands[operand][0, 0, 3, 2] = bad
    found = results(Tiles.of(micro_batch, torch.float), operands, slopes, Scores(0.25), torch.float)
    assert not all(one.isfinite().all() for one in found)


def test_numbers_depend_neither_on_threads_nor_on_other_rows():
    groups = random_groups([(40, 3, [50, 20, 33]), (25, 0, [9, 41])])
    [both] = pack(groups, random_advantages(groups), 400, CPU)
    operands, slopes = random_heads(both, 32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(results(Tiles.of(both, torch.float), operands, slopes, Scores(0.2), torch.float))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
    last = int((both.segment_ids[0] == both.segment_ids[0, 0]).sum())  # tokens of the first group of the row
    alone = SimpleNamespace(**{name: getattr(both, name)[:, :last] for name in ("input_ids", "segment_ids",
                                                                                 "branch_ids")})
    of_first = results(Tiles.of(alone, torch.float), [some[:, :, :last] for some in operands], slopes[:, :last],
                       Scores(0.2), torch.float)
    assert torch.equal(of_first[0], found[0][0][:, :last])
    assert all(torch.equal(one, whole[:, :, :last]) for one, whole in zip(of_first[1:], found[0][1:], strict=True))


def test_a_layout_written_out():
    """Row 0: a prefix of 2 with responses of 1 and 2; row 1: a prefix of 3, one without responses, padding."""
    rows = SimpleNamespace(segment_ids=torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, -1]]),
                           branch_ids=torch.tensor([[0, 0, 1, 2, 2], [0, 0, 0, 0, PADDING]]))
    tiles = Tiles.of(rows, torch.float)
    assert tiles.starts.tolist() == [0, 2, 3, 5, 8] and tiles.lengths.tolist() == [2, 1, 2, 3, 1]
    assert tiles.groups.tolist() == [0, 3, 4, 5] and tiles.longest == 4


@pytest.mark.parametrize(("window", "is_known"), [(12, False), (29, False), (30, True), (None, True)])
def test_a_window_that_leaves_something_out_is_not_the_kernels(window, is_known, monkeypatch):
    groups = random_groups([(10, 0, [20, 4])])
    [micro_batch] = pack(groups, random_advantages(groups), 60, CPU)
    used = []
    monkeypatch.setattr(Batches, "mix", lambda *about, mix=Batches.mix: used.append(about) or mix(*about))
    operands, slopes = random_heads(micro_batch, 16)
    found, expected = (results(kind.of(micro_batch, torch.float), operands, slopes, Scores(0.25, window), torch.float)
                       for kind in (Tiles, Masked))
    real = micro_batch.branch_ids != PADDING
    torch.testing.assert_close(found[0][real], expected[0][real], rtol=1e-5, atol=1e-5)
    assert bool(used) == (not is_known)


def test_what_does_not_fit_is_an_error():
    """A kernel has pointers: it would read on."""
    query, key = torch.randn(6, HEADS, 16), torch.randn(6, KV_HEADS, 16)
    numbers = [torch.tensor(values) for values in ([0, 3], [3, 3], [0, 2])]
    forward, backward = torch.ops.cpu_kernels.attend_packed, torch.ops.cpu_kernels.attend_packed_backward
    out, sums = forward(query, key, key, *numbers, 1.0)
    changed = [
        (query[:5], key, key, *numbers), (query, key, key[:, :1], *numbers), (query[:, :3], key, key, *numbers),
        (query[..., :8], key[..., :8], key[..., :8], *numbers), (query.transpose(0, 2), *[key] * 2, *numbers),
        (query, key, key, torch.tensor([0, 4]), *numbers[1:]), (query, key, key, torch.tensor([-1, 3]), *numbers[1:]),
        (query, key, key, numbers[0], torch.tensor([3, 0]), numbers[2]),
        (query, key, key, numbers[0], torch.tensor([3]), numbers[2]),
        (query, key, key, *numbers[:2], torch.tensor([0, 3])), (query, key, key, *numbers[:2], torch.tensor([0, 2, 2])),
        (query, key, key, *numbers[:2], torch.tensor([1, 2])),
    ]
    for operands in changed:
        with pytest.raises(RuntimeError, match="attend_packed|kernel: shapes"):
            forward(*operands, 1.0)
    for bad in ((out[:5], out, sums), (out[:, :2], out[:, :2], sums), (out, out, sums[:5])):
        with pytest.raises(RuntimeError, match="attend_packed|kernel: shapes"):
            backward(bad[0], query, key, key, *bad[1:], *numbers, 1.0)


# ----- where it is taken -----


def test_where_the_kernel_is_tried(monkeypatch):
    config = Qwen2Config(hidden_size=64, num_attention_heads=4)
    assert kinds_of_layouts(CPU, torch.float32, config) == [Tiles, Batches]
    assert kinds_of_layouts(CPU, torch.bfloat16, config) == kinds_of_layouts(CPU, torch.float64, config) == [Batches]
    assert kinds_of_layouts(CPU, torch.float32, Qwen2Config(hidden_size=96, num_attention_heads=4)) == [Batches]
    monkeypatch.setattr(cpu_kernels, "are_there", lambda: False)
    assert kinds_of_layouts(CPU, torch.float32, config) == [Batches]


@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM])
def test_a_model_scores_and_learns_the_same_by_it(kind):
    model = tiny_model(kind, seed=1, head_dim=16)
    groups = random_groups([(9, 2, [17, 2]), (40, 0, [35, 1, 1])])
    [micro_batch] = pack(groups, random_advantages(groups), 160, CPU)
    actor, found = scorer(model), []
    assert actor.layout_of == Tiles.of
    for layout in (Tiles, Masked):
        actor.layout_of = layout.of
        logprobs, entropies = actor(micro_batch)
        loss = (logprobs * torch.linspace(-1, 1, len(logprobs)) + entropies).mean()
        found.append([logprobs, entropies, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_kernel_that_is_wrong_is_not_taken(monkeypatch, capsys):
    forward = cpu_kernels.AttendPacked.forward
    monkeypatch.setattr(cpu_kernels.AttendPacked, "forward",
                        staticmethod(lambda ctx, *operands: 1.1 * forward(ctx, *operands)))
    assert scorer(tiny_model(Qwen2ForCausalLM, seed=1, head_dim=16)).layout_of == Batches.of
    assert "by Tiles (utils/layouts.py) changes the log-probabilities" in capsys.readouterr().err
