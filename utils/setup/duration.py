"""How long a run should take on GPUs: FLOPs and bytes, counted, over rates that are assumed. No run was timed.

Letters: n parameters, b bytes of a weight, W processes, each on a GPU of its own.
"""

import math
import re
from dataclasses import dataclass

from utils.setup.cards import VLLM_WORKS, best, on_card
from utils.setup.memory_terms import GIB, Run, decoded_together
from utils.setup.shapes import Shape


@dataclass(frozen=True)
class Card:
    """What its maker says of a GPU: FLOP/s of dense products in bfloat16, bytes/s of its memory, GB of it; and `link`,
    assumed, bytes/s that a collective of the GPUs of one machine gets (NVLink, or PCIe without it)."""

    flops: float
    bandwidth: float
    link: float
    gigabytes: int


TABLE = {
    "H100": Card(989e12, 3_350e9, 370e9, 80),
    "A100-80": Card(312e12, 2_039e9, 240e9, 80),
    "A100-40": Card(312e12, 1_555e9, 240e9, 40),
    "RTX 4090": Card(165e12, 1_008e9, 20e9, 24),
    "L4": Card(121e12, 300e9, 20e9, 24),
}

# Assumed, all of them, until they are measured:
LENGTH = 0.5  # mean length of prompts, responses and demonstrations, as a share of the longest allowed
PRODUCTS = 0.35  # of a card's FLOP/s, in update, log-probabilities and prefill
DECODING = {"vllm": 0.5, "torch": 0.25}  # of a card's bytes/s, while decoding
KERNELS = {"vllm": 12, "torch": 25}  # of a layer, for a token
KERNEL = 2.5e-6  # seconds that one takes at least, in a CUDA graph
PCIE = 20e9  # bytes/s between CPU and GPU, where the optimiser's part is offloaded
CPU_ADAM = 100e9  # bytes/s that Adam reads and writes on the CPU of a machine, for all its GPUs


@dataclass(frozen=True)
class Work:
    """What a forward pass computes: tokens, those of them that are scored, and pairs of tokens that attend."""

    tokens: float
    scored: float
    pairs: float

    def flops(self, shape: Shape) -> tuple[float, float]:
        """Of the trunk, attention included, and of the head."""
        embeddings = shape.vocab_size * shape.hidden_size
        trunk = shape.parameters - embeddings * (1 if shape.tied else 2)
        attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * self.pairs
        return 2 * trunk * self.tokens + attention, 2 * embeddings * self.scored


def work_of(run: Run) -> Work:
    """A step, on all processes. Prefixes are computed once in a row; without responses all but the prompt is scored."""
    prompt, response = LENGTH * run.max_prompt_length, LENGTH * run.max_response_length
    if not run.group_size:
        length = LENGTH * run.row_length
        return Work(run.prompts_per_step * length, run.prompts_per_step * max(length - prompt, 1),
                    run.prompts_per_step * length**2 / 2)
    prefixes, responses = run.prompts_per_step * run.rows_per_prompt, run.prompts_per_step * run.group_size
    demonstration = LENGTH * run.max_demonstration_length
    scored = responses * response + run.prompts_per_step * demonstration
    pairs = prefixes * prompt**2 / 2 + responses * (response * prompt + response**2 / 2)
    return Work(prefixes * prompt + scored, scored,
                pairs + run.prompts_per_step * (demonstration * prompt + demonstration**2 / 2))


def generating(shape: Shape, run: Run, card: Card, prompts: int, samples: int) -> float:
    """Seconds for `samples` responses to each of `prompts` prompts of one process. One of them is as long as allowed,
    so there are that many steps, each of which reads the weights. A token reads the keys and values of its row too; our
    engine reads those of a prompt once for all its samples."""
    prompt, response = LENGTH * run.max_prompt_length, LENGTH * run.max_response_length
    engine, rows = "vllm" if run.engine == "vllm" else "torch", prompts * samples
    weights, of_token = run.weight_bytes * shape.parameters, run.weight_bytes * shape.cache_elements
    if run.vllm_bytes:
        room = run.vllm_bytes - weights - VLLM_WORKS
        rounds = rows * (prompt + response) * of_token / max(room, (prompt + response) * of_token)  # a row at least
        rounds = max(1.0, rounds)
    else:
        together, at_once = decoded_together(shape, run, samples)
        rounds = math.ceil(prompts / together) * math.ceil(samples / at_once)
    steps = rounds * run.max_response_length
    read = (prompts if engine == "torch" else rows) * response * prompt + rows * response**2 / 2
    of_tokens = 2 * shape.parameters / (card.flops * PRODUCTS)
    return prompts * prompt * of_tokens + max(
        (steps * weights + read * of_token) / (card.bandwidth * DECODING[engine]),
        steps * shape.num_layers * KERNELS[engine] * KERNEL,
        rows * response * of_tokens,
    )


def seconds_of_step(shape: Shape, run: Run, card: Card) -> dict[str, float]:
    """Of each phase. What travels does so while products are computed, and counts where it takes longer."""
    work, num_updates = work_of(run), run.prompts_per_step // run.mini_batch_prompts
    trunk, head = (flops / (run.processes * card.flops * PRODUCTS) for flops in work.flops(shape))
    micro_batches = num_updates * math.ceil(
        work.tokens / num_updates / run.processes / run.max_tokens_per_micro_batch)
    reduction = run.weight_bytes * shape.parameters * (1 - 1 / run.processes) / card.link
    gathering = reduction if run.zero_stage == 3 else 0.0  # of all weights, once
    if run.zero_stage == 3 and run.offload:
        gathering += run.weight_bytes * shape.parameters / run.processes / PCIE
    # Backward counts twice; the head's logits are computed again, and with checkpointing the trunk is too.
    computing = 3 * (trunk + head) + head + trunk * run.gradient_checkpointing
    travelling = micro_batches * 2 * gathering + (micro_batches if run.zero_stage > 1 else num_updates) * reduction
    scorings = (num_updates > 1) + run.has_reference if run.group_size else 0
    prompts = math.ceil(run.prompts_per_step / run.processes)
    return {
        "rollout": generating(shape, run, card, prompts, run.group_size) if run.group_size else 0.0,
        "log-probs": scorings * max(trunk + head, micro_batches * gathering),
        "update": max(computing, travelling) + num_updates * adam(shape, run, card),
        "sync": gathering if run.group_size else 0.0,
    }


def adam(shape: Shape, run: Run, card: Card) -> float:
    """Seconds of an optimiser step: it reads and writes 28 bytes a parameter."""
    n, share = shape.parameters, shape.parameters / (run.processes if run.zero_stage else 1)
    if not (run.offload and run.zero_stage):
        return 28 * share / card.bandwidth
    return 28 * n / CPU_ADAM + (run.gradient_bytes + run.weight_bytes) * share / PCIE


def card_here(name: str, gpu_bytes: float) -> str | None:
    """The card of TABLE that a GPU with this name is; None where it is none of them."""
    fitting = [card for card in TABLE if re.search(rf"\b{card.split('-')[0]}\b", name)]
    return min(fitting, key=lambda card: abs(TABLE[card].gigabytes * GIB - gpu_bytes), default=None)


def hours(shape: Shape, run: Run, card: Card, total_steps: int, eval_every: int) -> tuple[dict[str, float], float]:
    """Seconds of each phase of a step, and hours of the run with its evaluations, without start and checkpoints."""
    parts = seconds_of_step(shape, run, card)
    num_evaluations = total_steps // eval_every + 1 + (total_steps % eval_every > 0)
    evaluating = generating(shape, run, card, math.ceil(run.test_problems / run.processes), 1)
    return parts, (total_steps * sum(parts.values()) + num_evaluations * evaluating) / 3600


def duration_facts(
    shape: Shape | None, run: Run, total_steps: int, eval_every: int, here: str | None = None
) -> dict[str, str]:
    """For the plan of --check, the time by card: of `here` with the run's flags, or of all in the table, each with the
    flags that fit it best."""
    if shape is None:
        return {}
    runs = {here: run} if here else {name: best(shape, on_card(run, card.gigabytes)) for name, card in TABLE.items()}
    facts = {"time": f"estimated, never measured: lengths {LENGTH:.0%} of the limits, products at {PRODUCTS:.0%} of a "
                     f"card's FLOP/s, decoding at {DECODING['torch']:.0%} (vLLM {DECODING['vllm']:.0%}) of its bytes/s"}
    for name, fitting in runs.items():
        fact = "does not fit"
        if fitting is not None:
            parts, total = hours(shape, fitting, TABLE[name], total_steps, eval_every)
            phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in parts.items())
            fact = (f"{sum(parts.values()):.1f} s a step ({phases}), {total:.1f} h for {total_steps} steps, "
                    f"{total * run.processes:.1f} GPU-hours")
        facts[f"  on {run.processes} x {name}"] = fact
    return facts
