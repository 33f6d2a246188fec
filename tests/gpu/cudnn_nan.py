"""Attention where every score is near -120, as in Qwen2.5-0.5B's layer 8: cuDNN's gradients have been NaN there."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, at_most, check, equal, note
from tests.gpu.heads import (
    attend,
    bottom_right,
    difference,
    exact,
    layouts_of,
    not_finite,
    packed,
    random_heads,
    with_gradients,
)

SCORE = -120.0
ERROR = 0.02  # of an output or gradient, against float64
HEADS, HEAD_DIM = (16, 2), 128  # Qwen2.5-3B's
KEYS = ((192, 512), (704, 512))  # prefix and response: 704 and 1,216 keys, which are 64 mod 128
SMALL_KEYS = ((24, 40),)
PARTS = ("output", "grad of queries", "grad of keys", "grad of values")


@check(1, "cudnn_nan", seconds=15, cpu="quick")
def cudnn_nan(box: Box) -> Iterator[Figure]:
    """Attention by response is finite and right in bfloat16 where all scores are near -120; what cuDNN makes of it."""
    device = box.device
    if box.has_gpu:
        yield equal("cuDNN's attention is on", torch.backends.cuda.cudnn_sdp_enabled(), False)
    for prefix, response in box.pick(KEYS, SMALL_KEYS):
        keys = prefix + response
        [micro_batch] = packed(groups_of([(prefix, [response, response - 5])]), 10_000, device)
        leaves = random_heads(*micro_batch.input_ids.shape, HEADS, HEAD_DIM, device, torch.bfloat16, SCORE)
        expected = with_gradients(exact(*leaves, micro_batch.attention_mask), leaves)
        for name, layout in layouts_of(micro_batch, leaves[0]).items():
            found = with_gradients(attend(layout, *leaves), leaves)
            yield equal(f"{name}, {keys} keys: not finite", not_finite(found), 0)
            for part, one, right in zip(PARTS, found, expected, strict=True):
                yield at_most(f"{name}, {keys} keys: error of {part}", difference(one, right), ERROR)
            if box.has_gpu:
                yield note(f"{name}, {keys} keys: kernels",
                           kernels(lambda where=layout, x=leaves: with_gradients(attend(where, *x), x)))
        yield from of_one_kernel(box, "rectangle", response, keys)
    yield from of_one_kernel(box, "square", keys, keys)


def of_one_kernel(box: Box, name: str, queries: int, keys: int) -> Iterator[Figure]:
    """SDPA under a mask, as the project sets it and by cuDNN alone."""
    query = random_heads(2, queries, HEADS, HEAD_DIM, box.device, torch.bfloat16, SCORE)[0]
    _, key, value = random_heads(2, keys, (HEADS[0], HEADS[0]), HEAD_DIM, box.device, torch.bfloat16, SCORE, seed=1)
    mask = bottom_right(queries, keys, box.device).expand(2, 1, queries, keys)
    leaves = [query, key, value]
    expected = with_gradients(exact(*leaves, mask), leaves)

    def sdpa() -> list[Tensor]:
        mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=HEAD_DIM**-0.5)
        return with_gradients(mixed.transpose(1, 2), leaves)

    found = sdpa()
    yield equal(f"masked {name}, {keys} keys: not finite", not_finite(found), 0)
    yield at_most(f"masked {name}, {keys} keys: error of {PARTS[1]}", difference(found[1], expected[1]), ERROR)
    if not box.has_gpu:
        return
    yield note(f"masked {name}, {keys} keys: kernels", kernels(sdpa))
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            found = sdpa()
        for part, tensor in zip(PARTS, found, strict=True):
            yield note(f"cuDNN {name}, {keys} keys: not finite in {part}", not_finite([tensor]))
    except RuntimeError as error:  # no such kernel for this card
        yield note(f"cuDNN {name}, {keys} keys", " ".join(str(error).split())[:120])
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


def kernels(work: Callable[[], object]) -> str:
    """Names of the attention kernels that run, shortened."""
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as traced:
        work()
        torch.cuda.synchronize()
    words = ("fmha", "flash", "cudnn", "attention", "attn")
    names = {event.key for event in traced.key_averages() if any(word in event.key.lower() for word in words)}
    return ", ".join(sorted({name.removeprefix("void ").split("<")[0][:60] for name in names}))
