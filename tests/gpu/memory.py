"""The memory probe against a real step, and both against the estimate, at every ZeRO stage."""

import gc
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from inference.hybrid_engine import build_engine
from tests.bench.estimates import training
from tests.bench.shapes import QWEN, config_of, random_model, save_without_weights
from tests.bench.workload import groups_of
from tests.gpu.checks import Box, Figure, between, check, equal, note
from tests.gpu.heads import packed
from training import uft
from utils.actor import Actor
from utils.setup.memory_probe import probe_memory
from utils.setup.plan import Plan, make_plan
from utils.setup.shapes import shape_of
from utils.tasks import countdown
from utils.types import LongestGroup

STAGES = (0, 1, 2, 3)
NEAR_STEP, NEAR_ESTIMATE = (0.95, 1.05), (0.9, 1.1)
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}


@check(9, "memory", seconds=45, needs=("deepspeed",), cpu="quick")
def memory(box: Box) -> Iterator[Figure]:
    """The probe of the worst micro-batches takes what a real step takes, and what the estimate says."""
    box.join()
    config = config_of(QWEN["0.5B"], **box.pick({}, SMALL))
    folder = save_without_weights(config, box.folder / "model")
    countdown.build(box.folder / "data", train_problems=50, test_problems=8)
    for stage in STAGES:
        plan = plan_of(folder, box, stage)
        flags = plan.flags
        before = allocated(box)
        actor = Actor(
            random_model(config, box.device, box.pick(torch.bfloat16, torch.float32)),
            betas=(flags.beta1, flags.beta2), weight_decay=flags.weight_decay, max_grad_norm=flags.max_grad_norm,
            temperature=flags.temperature, zero_stage=stage, offload=False, gradient_checkpointing=False)
        engine = build_engine("torch", actor, plan.tokenizer, max_length=128, kv_cache_gb=1.0, free_replica=False,
                              tp_size=1, memory_fraction=0.3, sleep_level=0)
        weights, logger = fingerprint(actor), plan.open_logger()
        probe_memory(actor, engine, plan, logger)
        probed = peak(box) - before
        yield equal(f"stage {stage}: the probe changes weights", fingerprint(actor) != weights, False)
        norm = real_step(actor, plan, box)
        stepped = peak(box) - before
        logger.close()
        yield equal(f"stage {stage}: a step changes weights", fingerprint(actor) != weights, True)
        yield note(f"stage {stage}: gradient norm", norm)
        yield from compared(stage, probed, stepped, shape_of(config), plan, box)
        del actor, engine
        gc.collect()
        if box.has_gpu:
            torch.cuda.empty_cache()
            yield note(f"stage {stage}: left behind, GiB", (allocated(box) - before) / 2**30)


def plan_of(folder: Path, box: Box, stage: int) -> Plan:
    lengths = box.pick(
        {"max_prompt_length": 300, "max_response_length": 1024, "max_tokens_per_micro_batch": 16_384},
        {"max_prompt_length": 300, "max_response_length": 16, "max_tokens_per_micro_batch": 1_000})
    flags = uft.Args(
        model=str(folder), data=str(box.folder / "data"), output_dir=str(box.folder / f"run{stage}"), **lengths,
        prompts_per_step=8, mini_batch_prompts=8, group_size=4, eval_problems=1, kl_coef=0.0, zero_stage=stage,
        dtype=box.pick("bfloat16", "float32"), engine="torch", probe_memory="always")
    longest = LongestGroup(flags.max_prompt_length, flags.group_size, flags.max_response_length)
    return make_plan(flags, longest, needs=("hint",))


def real_step(actor: Actor, plan: Plan, box: Box) -> float:
    """An update of 8 groups as long as allowed, and of shorter ones of which a row more fits; its gradient norm."""
    flags, longest = plan.flags, plan.longest
    limit = flags.max_tokens_per_micro_batch
    rows = limit // longest.row_length + 1
    shorter = (limit // rows - longest.prefix) // longest.responses
    lengths = [(longest.prefix, [longest.response] * longest.responses)] * 8
    micro_batches = [
        *packed(groups_of(lengths), limit, box.device),
        *packed(groups_of([(longest.prefix, [shorter] * longest.responses)] * rows), limit, box.device),
    ]
    if box.has_gpu:
        torch.cuda.reset_peak_memory_stats()
    for number, micro_batch in enumerate(micro_batches, start=1):
        logprobs, entropies = actor(micro_batch)
        actor.backward((logprobs - 0.001 * entropies).mean(), is_last=number == len(micro_batches))
    return actor.step(1e-3)


def compared(stage: int, probed: float, stepped: float, shape, plan: Plan, box: Box) -> Iterator[Figure]:
    flags, longest = plan.flags, plan.longest
    names = ("zero_stage", "gradient_checkpointing", "prompts_per_step", "mini_batch_prompts", "group_size",
             "max_tokens_per_micro_batch", "max_prompt_length", "max_response_length")
    phases = training(shape, row_length=longest.row_length, rows_per_prompt=longest.rows,
                      weight_bytes=box.pick(2, 4), **{name: getattr(flags, name) for name in names})
    foreseen = max(phases["backward pass"], phases["optimiser step"])
    yield note(f"stage {stage}: estimate, GiB", foreseen / 2**30)
    if box.has_gpu:
        yield note(f"stage {stage}: probe, GiB", probed / 2**30)
        yield note(f"stage {stage}: step, GiB", stepped / 2**30)
        yield between(f"stage {stage}: probe over step", probed / stepped, *NEAR_STEP)
        yield between(f"stage {stage}: step over estimate", stepped / foreseen, *NEAR_ESTIMATE)


def fingerprint(actor: Actor) -> list[float]:
    """Sums over each whole weight, in float64."""
    def total(weight: Tensor) -> float:
        return weight.double().square().sum().item()

    return [total(weight) for bucket in actor.whole_weights() for weight in bucket.values()]


def allocated(box: Box) -> int:
    return torch.cuda.memory_allocated() if box.has_gpu else 0


def peak(box: Box) -> int:
    return torch.cuda.max_memory_allocated() if box.has_gpu else 0
