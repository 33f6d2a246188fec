"""The torch engine's decoding: milliseconds a token, with CUDA graphs and without, and its share of the bandwidth."""

from collections.abc import Iterator

import torch

from inference.decoder import Step
from inference.torch_engine import TorchEngine
from tests.bench.cards import present_card, seconds_of
from tests.bench.estimates import decoding
from tests.bench.shapes import QWEN, config_of, decode_bytes, random_model
from tests.gpu.checks import Box, Figure, at_most, check, equal, goal, note
from utils.setup.shapes import Shape, shape_of
from utils.types import Problem, Prompt, Rollout, Sampling

GOAL = 0.5  # of the memory's bandwidth
OVER_ESTIMATE = 1.1  # of the peak
KV_CACHE_GB = 16.0


@check(7, "decode", seconds=60, cpu="quick")
def decode(box: Box) -> Iterator[Figure]:
    """64 prompts x 4 responses of 256 tokens at 0.5B and 3B shapes: time a token, captures, bandwidth, peak."""
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}
    configs = box.pick({name: config_of(QWEN[name]) for name in ("0.5B", "3B")},
                       {"small": config_of(QWEN["0.5B"], **small)})
    for name, config in configs.items():
        model = random_model(config, box.device, box.pick(torch.bfloat16, torch.float32))
        yield from of_model(name, TorchEngine(model, [], KV_CACHE_GB), shape_of(config), box)
        del model


def of_model(name: str, engine: TorchEngine, shape: Shape, box: Box) -> Iterator[Figure]:
    prompts, samples, length, tokens = box.pick((64, 4, 256, 256), (3, 2, 20, 12))
    sampling = Sampling(samples, tokens, 1.0)
    engine.eos_ids = torch.tensor([], dtype=torch.long, device=box.device)  # all responses are as long as allowed
    given = [Prompt(Problem(number, "countdown", "", (), "", {}), [number + 2] * length, [], 0)
             for number in range(prompts)]
    yield from what_it_takes(name, engine)
    captures, make = [], engine.captured or (lambda step: step)

    def counting(step):
        captures.append(step)
        return make(step)

    found: dict[str, list[list[Rollout]]] = {}
    fixed, taken = "graphs" if box.has_gpu else "fixed shapes", engine.decoder.step_type
    variants = [(fixed, counting, taken), *[(f"{fixed}, {Step.__name__}", counting, Step)] * (taken is not Step),
                ("growing shapes", None, Step)]
    for how, captured, step_type in variants:
        engine.captured, engine.decoder.step_type = captured, step_type
        engine.generate(given[:2], Sampling(samples, 4, 1.0))  # libraries warm up
        captures.clear()
        if box.has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        found[how], whole = timed(engine, given, sampling)
        if box.has_gpu and captured:
            peak = torch.cuda.max_memory_allocated() - before
            foreseen = decoding(shape, prompts, samples, weight_bytes=2, max_prompt_length=length,
                                max_response_length=tokens, kv_cache_gb=KV_CACHE_GB)
            yield note(f"{name}, {how}: peak beside the weights, GiB", peak / 2**30)
            yield at_most(f"{name}, {how}: peak over the estimate", peak / foreseen, OVER_ESTIMATE)
        _, prefill = timed(engine, given, Sampling(samples, 1, 1.0))
        a_token = (whole - prefill) / (tokens - 1)
        yield note(f"{name}, {how}: ms a token", 1e3 * a_token)
        yield note(f"{name}, {how}: tokens/s", prompts * samples * tokens / whole)
        yield note(f"{name}, {how}: steps captured", len(captures))
        if card := present_card(box.device):
            moved = decode_bytes(shape, prompts, samples, length, tokens / 2, 2)
            yield goal(f"{name}, {how}: share of bandwidth", moved / a_token / card[1].bandwidth,
                       GOAL if how == fixed else None)
    if not box.has_gpu:
        ids = [[rollout.response_ids for group in groups for rollout in group] for groups in found.values()]
        yield equal("fixed shapes give the tokens of growing ones", ids[0] == ids[-1], True)


def what_it_takes(name: str, engine: TorchEngine) -> Iterator[Figure]:
    """How it decodes, and whether its own comparison with the model, at the first sync, leaves it at that."""
    before = f"{type(engine.decoder).__name__}, {engine.decoder.step_type.__name__}"
    engine.sync()
    yield equal(f"{name}: decodes by", f"{type(engine.decoder).__name__}, {engine.decoder.step_type.__name__}", before)


def timed(engine: TorchEngine, prompts: list[Prompt], sampling: Sampling) -> tuple[list[list[Rollout]], float]:
    """The groups, and the seconds they took."""
    groups: list[list[Rollout]] = []
    return groups, seconds_of(lambda: groups.extend(engine.generate(prompts, sampling)), engine.device)
