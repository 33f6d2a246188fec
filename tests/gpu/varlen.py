"""torch.nn.attention.varlen.varlen_attn as attention by response uses it."""

from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, at_most, check, equal
from tests.gpu.heads import (
    attend,
    bottom_right,
    difference,
    exact,
    layouts_of,
    not_finite,
    packed,
    random_heads,
    varlen,
    with_gradients,
)
from utils.types import PADDING

ERROR = 0.01  # of an output or gradient in bfloat16, against float64
PREFIXES = (64, 1, 63, 200, 1024)
RESPONSES = (1, 63, 64, 65, 1024)
PARTS = ("output", "grad of queries", "grad of keys", "grad of values")


@check(3, "varlen", seconds=12, needs=("sm80",), cpu="quick")
def varlen_against_float64(box: Box) -> Iterator[Figure]:
    """Responses after their prefixes (aligned at the end), grouped queries, gradients, lengths 1, 63, 64, 65, 1,024."""
    device, lengths = box.device, list(zip(PREFIXES, RESPONSES, strict=True))
    short = box.pick(lengths, lengths[:4])
    for head_dim, heads in ((128, (16, 2)), (64, (14, 2))) if box.has_gpu else ((64, (14, 2)),):
        name = f"{heads[0]}/{heads[1]} x {head_dim}"
        if box.has_gpu:
            yield from of_kernel(name, short, heads, head_dim, device)
        else:
            yield equal(f"shape on fake CUDA tensors, {name}", fake_shape(lengths, heads, head_dim),
                        (sum(RESPONSES), heads[0], head_dim))
        micro_batches = packed(groups_of([(prefix, [one, one]) for prefix, one in short]), 4_000, device)
        for number, micro_batch in enumerate(micro_batches):
            leaves = random_heads(*micro_batch.input_ids.shape, heads, head_dim, device, torch.bfloat16)
            mask = micro_batch.attention_mask
            seen = (micro_batch.branch_ids != PADDING).to(device)[..., None, None]  # padding may hold anything
            expected = with_gradients(exact(*leaves, mask) * seen, leaves)
            for kind, layout in layouts_of(micro_batch, leaves[0]).items():
                found = with_gradients(attend(layout, *leaves) * seen, leaves)
                yield equal(f"{kind}, {name}, micro-batch {number}: not finite", not_finite(found), 0)
                for part, one, right in zip(PARTS, found, expected, strict=True):
                    yield at_most(f"{kind}, {name}, micro-batch {number}: error of {part}", difference(one, right),
                                  ERROR)


def of_kernel(name: str, lengths: list[tuple[int, int]], heads: tuple[int, int], head_dim: int,
              device: torch.device) -> Iterator[Figure]:
    """The worst of each part over the sequences."""
    queries, keys = [one for _, one in lengths], [prefix + one for prefix, one in lengths]
    leaves = [random_heads(1, sum(counts), (count, count), head_dim, device, torch.bfloat16, seed=number)[0][0]
              .transpose(0, 1).detach().requires_grad_()
              for number, (counts, count) in enumerate(((queries, heads[0]), (keys, heads[1]), (keys, heads[1])))]
    found = with_gradients(varlen(*leaves, queries, keys), leaves)
    parts = [some.split(counts) for some, counts in zip(leaves, (queries, keys, keys), strict=True)]
    outputs = []
    for query, key, value in zip(*parts, strict=True):
        mask = bottom_right(len(query), len(key), device)[None, None]
        outputs.append(exact(*(some.transpose(0, 1)[None] for some in (query, key, value)), mask)[0])
    expected = with_gradients(torch.cat(outputs), leaves)
    yield equal(f"varlen_attn, {name}: not finite", not_finite(found), 0)
    for part, one, right, counts in zip(PARTS, found, expected, (queries, queries, keys, keys), strict=True):
        errors = [difference(some, its) for some, its in zip(one.split(counts), right.split(counts), strict=True)
                  if its.norm() > 0]
        yield at_most(f"varlen_attn, {name}: error of {part}", max(errors), ERROR)


def fake_shape(lengths: list[tuple[int, int]], heads: tuple[int, int], head_dim: int) -> tuple[int, ...]:
    """Of what varlen_attn returns, where nothing is computed: its signature and ours agree."""
    queries, keys = [one for _, one in lengths], [prefix + one for prefix, one in lengths]
    with FakeTensorMode():
        tensors = [torch.empty(sum(counts), count, head_dim, dtype=torch.bfloat16, device="cuda")
                   for counts, count in ((queries, heads[0]), (keys, heads[1]), (keys, heads[1]))]
        return tuple(varlen(*tensors, queries, keys).shape)
