"""What attention costs the first time it meets a shape, and the second: nearly every micro-batch brings new ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.cards import seconds_of
from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, at_most, check, note
from tests.gpu.heads import attend, bottom_right, layouts_of, packed, random_heads, varlen
from utils.types import MicroBatch

SHAPES = {"3B": ((16, 2), 128), "0.5B": ((14, 2), 64)}  # query and key heads, and their size
LAYOUTS, CUDNN_LAYOUTS = 20, 3
TOKENS = 16_384
BATCHES = 4  # of responses of like lengths, under a mask
FIRST_OVER_SECOND = 3.0
Lengths = list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Kernels:
    """Ways to compute a micro-batch's attention, forward and backward: each takes it and returns the work."""

    heads: tuple[int, int]
    head_dim: int
    device: torch.device

    def by_layout(self, kind: str, micro_batch: MicroBatch) -> Callable[[], object]:
        leaves = random_heads(*micro_batch.input_ids.shape, self.heads, self.head_dim, self.device, torch.bfloat16)
        layout = layouts_of(micro_batch, leaves[0])[kind]  # in a run, made once for all layers
        return lambda: torch.autograd.grad(attend(layout, *leaves).sum(), leaves)

    def kinds(self, micro_batch: MicroBatch) -> list[str]:
        query = torch.empty(1, self.heads[0], 1, self.head_dim, device=self.device, dtype=torch.bfloat16)
        return list(layouts_of(micro_batch, query))

    def under_masks(self, micro_batch: MicroBatch) -> Callable[[], object]:
        """Keys are repeated for all query heads beforehand."""
        calls = masked_calls(lengths_of(micro_batch), self.heads[0], self.head_dim, self.device)
        return lambda: [torch.autograd.grad(call().sum(), leaves) for call, leaves in calls]

    def by_varlen(self, micro_batch: MicroBatch) -> Callable[[], object]:
        """The keys of prefixes are copied for their responses beforehand."""
        queries, keys = sequences(lengths_of(micro_batch))
        leaves = [torch.randn(sum(counts), count, self.head_dim, device=self.device, dtype=torch.bfloat16,
                              requires_grad=True)
                  for counts, count in ((queries, self.heads[0]), (keys, self.heads[1]), (keys, self.heads[1]))]
        return lambda: torch.autograd.grad(varlen(*leaves, queries, keys).sum(), leaves)

    def measure(self, name: str, prepare: Callable, micro_batches: Sequence[MicroBatch], bound: float | None):
        times = [twice(prepare(micro_batch), self.device) for micro_batch in micro_batches][1:]  # the first warms up
        first, second = (median(values) for values in zip(*times, strict=True))
        work = [flops(lengths_of(micro_batch), self.heads[0] * self.head_dim) for micro_batch in micro_batches[1:]]
        yield note(f"{name}: first ms", 1e3 * first)
        yield note(f"{name}: second ms", 1e3 * second)
        yield note(f"{name}: TFLOP/s",
                   median(some / again for some, (_, again) in zip(work, times, strict=True)) / 1e12)
        yield at_most(f"{name}: first over second", first / second, bound)


@check(2, "new_shapes", seconds=40, cpu="quick")
def new_shapes(box: Box) -> Iterator[Figure]:
    """20 layouts of random response lengths: forward and backward the first time and the second, by each kernel."""
    bound = box.only_here(FIRST_OVER_SECOND)
    for name, (heads, head_dim) in box.pick(SHAPES, {"small": ((4, 2), 16)}).items():
        some = [layout(seed, box) for seed in range(box.pick(LAYOUTS, 2) + 1)]
        kernels = Kernels(heads, head_dim, box.device)
        for kind in kernels.kinds(some[0]):
            yield from kernels.measure(f"{kind}, {name}", partial(kernels.by_layout, kind), some, bound)
        yield from kernels.measure(f"masked, {name}", kernels.under_masks, some, bound)
        if box.has_gpu and torch.cuda.get_device_capability() >= (8, 0):
            yield from kernels.measure(f"varlen_attn, {name}", kernels.by_varlen, some, bound)
        if box.has_gpu and name == "3B":
            was_on = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(True)
            try:
                yield from kernels.measure(f"masked by cuDNN, {name}", kernels.under_masks, some[: CUDNN_LAYOUTS + 1],
                                           None)
            finally:
                torch.backends.cuda.enable_cudnn_sdp(was_on)


def layout(seed: int, box: Box) -> MicroBatch:
    """The first micro-batch of groups of four whose responses end when they like."""
    random = np.random.default_rng(seed)
    longest, tokens = box.pick((1024, TOKENS), (60, 600))
    lengths = [(int(random.integers(longest // 5, longest // 3)),
                np.minimum(longest, random.lognormal(np.log(longest / 3), 0.6, 4).astype(int) + 1).tolist())
               for _ in range(tokens // longest)]
    return packed(groups_of(lengths), tokens, box.device)[0]


def lengths_of(micro_batch: MicroBatch) -> Lengths:
    """Tokens of each group's prefix and responses."""
    found = []
    for segments, branches in zip(micro_batch.segment_ids.numpy(), micro_batch.branch_ids.numpy(), strict=True):
        for segment in range(segments.max() + 1):
            prefix, *responses = np.bincount(branches[segments == segment]).tolist()
            found.append((prefix, responses))
    return found


def sequences(lengths: Lengths) -> tuple[list[int], list[int]]:
    """Tokens of queries and of keys: prefixes, then responses after theirs."""
    prefixes = [prefix for prefix, _ in lengths]
    responses = [(one, prefix + one) for prefix, group in lengths for one in group]
    return prefixes + [one for one, _ in responses], prefixes + [keys for _, keys in responses]


def flops(lengths: Lengths, width: int) -> float:
    """Of forward and backward, the pairs of tokens that see each other: 4 and 10 for each pair and dimension."""
    queries, keys = sequences(lengths)
    return 14 * width * sum(own * (seen - own) + own * (own + 1) / 2 for own, seen in zip(queries, keys, strict=True))


def masked_calls(lengths: Lengths, heads: int, head_dim: int, device: torch.device):
    """SDPA over the prefixes and over batches of responses padded to the longest, as (call, its leaves)."""
    prefixes = [prefix for prefix, _ in lengths]
    responses = sorted(((one, prefix) for prefix, group in lengths for one in group if one), reverse=True)
    shapes = [(len(prefixes), max(prefixes), max(prefixes))]
    for some in np.array_split(np.array(responses), BATCHES):
        shapes.append((len(some), int(some[:, 0].max()), int(some[:, 0].max()) + max(prefixes)))

    def leaf(batch: int, length: int) -> Tensor:
        return torch.randn(batch, heads, length, head_dim, device=device, dtype=torch.bfloat16, requires_grad=True)

    calls = []
    for batch, queries, keys in shapes:
        leaves = leaf(batch, queries), leaf(batch, keys), leaf(batch, keys)
        mask = torch.zeros(batch, 1, queries, -(-keys // 16) * 16, device=device, dtype=torch.bfloat16)[..., :keys]
        mask = None if queries == keys else mask.masked_fill_(~bottom_right(queries, keys, device), -torch.inf)
        calls.append((lambda x=leaves, m=mask: F.scaled_dot_product_attention(*x, m, is_causal=m is None), leaves))
    return calls


def twice(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    return seconds_of(work, device), seconds_of(work, device)
