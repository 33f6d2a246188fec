"""The terms of the memory estimate (memory.py): what each part of a run needs, on one process.

They are what this code, DeepSpeed 0.19.8 and PyTorch 2.13 allocate where every response is as long as allowed.
Activations agree with what autograd saves on a CPU (test_memory.py), weights, gradients and optimiser states with
the growth of a CPU process (tests/bench/memory.py). Nothing was measured on a GPU.

Letters: n parameters, b bytes of a weight (2 in bfloat16, 4 in float32), W processes. Sizes are in bytes.
"""

from dataclasses import dataclass

from inference.kv_cache import PREFILL_TOKENS, max_batch
from utils.deepspeed_config import adds_up_in_float32
from utils.policy import most_logits, part_size
from utils.setup.shapes import Shape

GIB = 2**30
BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size, gradients on their way; at stage 3 it always exists
LIVE = 1_000_000_000  # elements: its stage3_max_live_parameters, weights gathered at once
GPU_OVERHEAD = 3 * GIB  # assumed: CUDA's context, NCCL's buffers, the gaps of PyTorch's allocator


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The flags that memory depends on while generating. `gpu_bytes` is the memory of a GPU, 0 on a CPU."""

    weight_bytes: int
    gpu_bytes: float
    max_prompt_length: int
    max_response_length: int
    kv_cache_gb: float
    engine: str
    engine_memory_fraction: float

    @property
    def vllm_bytes(self) -> float:
        """What vLLM takes on a GPU, its weights included; 0 where it does not generate there."""
        return self.engine_memory_fraction * self.gpu_bytes if self.engine == "vllm" else 0.0

    @property
    def overhead(self) -> float:
        return GPU_OVERHEAD if self.gpu_bytes else 0.0


@dataclass(frozen=True, kw_only=True)
class Run(Generation):
    """The flags that memory depends on in training, and the number of `processes` and of `test_problems`. `row_length`
    is the longest row that training packs, `rows_per_prompt` the number of such rows that a prompt makes."""

    processes: int
    zero_stage: int
    offload: bool
    gradient_checkpointing: bool
    has_reference: bool
    free_replica: bool
    sleep_level: int
    prompts_per_step: int
    mini_batch_prompts: int
    group_size: int
    row_length: int
    rows_per_prompt: int
    max_tokens_per_micro_batch: int
    test_problems: int
    max_demonstration_length: int = 0  # of one beside the responses of a prompt; 0: there is none
    num_adapted: int = 0  # parameters of adapters, which alone learn; 0: all parameters do

    @property
    def members_of_row(self) -> list[int]:
        """Tokens of the responses, and of the demonstration, that follow a prefix in the longest row."""
        demonstration = [self.max_demonstration_length] if self.max_demonstration_length else []
        members = [self.max_response_length] * self.group_size + demonstration
        if self.rows_per_prompt == 1:
            return members
        return [max(members)] * ((self.row_length - self.max_prompt_length) // max(members))

    @property
    def gradient_bytes(self) -> int:
        """Of a gradient that is summed over micro-batches."""
        return 4 if adds_up_in_float32(self.zero_stage, self.offload) else self.weight_bytes


def training_states(parameters: int, run: Run) -> tuple[dict[str, float], float]:
    """The actor's weights, gradients and optimiser states on one process: {name: bytes} on the GPU, bytes on the CPU.

    Float32 weights have a master copy too, except at stage 0: DeepSpeed makes one. Offloading moves optimiser states,
    gradients (held there in float32 too) and at stage 3 the weights.
    """
    b, g, learning = run.weight_bytes, run.gradient_bytes, run.num_adapted or parameters
    offload, share = run.offload and run.zero_stage > 0, learning / run.processes
    master = 4 if b < 4 or run.zero_stage >= 1 else 0
    states = {
        "weights": b * (parameters + run.num_adapted) / (run.processes if run.zero_stage == 3 else 1),
        "gradients": g * (share if run.zero_stage >= 2 else learning),
        "optimiser": (master + 8) * (share if run.zero_stage >= 1 else learning),
    }
    if not offload:
        return states, 0.0
    on_cpu = states["optimiser"] + (4 + g) * share + (states["weights"] if run.zero_stage == 3 else 0)
    kept = {"weights": run.zero_stage < 3, "gradients": run.zero_stage == 1, "optimiser": False}
    return {name: size if kept[name] else 0.0 for name, size in states.items()}, on_cpu


def is_summed_apart(run: Run) -> bool:
    """Whether DeepSpeed's optimiser of stage 1 for bfloat16 is taken, which has whole gradients in float32."""
    return run.zero_stage == 1 and run.weight_bytes < run.gradient_bytes


def communication(shape: Shape, run: Run) -> float:
    """In the backward pass: at stage 3 gathered weights, the copy that a reduction makes of the bucket, and its result
    in the type of sums; below, buckets, two where reductions overlap. Stage 1 in bfloat16 reduces afterwards, and
    converts a gradient at a time."""
    n, b = shape.parameters, run.weight_bytes
    if is_summed_apart(run):
        return 0.0 if run.num_adapted else run.gradient_bytes * shape.vocab_size * shape.hidden_size
    if run.zero_stage == 3:
        reduced = min(run.num_adapted or n, BUCKET)
        return b * min(n, LIVE) + (b + run.gradient_bytes / run.processes) * reduced
    return b * BUCKET * (2 if run.gpu_bytes else 1) if run.zero_stage else 0.0


def stepping(parameters: int, run: Run) -> float:
    """While the optimiser steps: Adam's temporary, and gradients once more in float32 where they are in another type,
    or not in one piece. At stage 1 in bfloat16 what travels to other processes was more."""
    if run.offload and run.zero_stage:
        return 0.0
    if is_summed_apart(run):
        return max(run.weight_bytes * parameters, 4 * parameters / run.processes)
    share = parameters / run.processes if run.zero_stage else parameters
    in_one_piece = run.weight_bytes == 4 if run.zero_stage == 0 else run.zero_stage == 2 and run.weight_bytes < 4
    return 4 * share * (1 if in_one_piece else 2)


def layer_activations(shape: Shape, key_copies: float, b: int) -> float:
    """What one layer keeps for the backward pass, per token: two norms (input in float32, normalised, scaled), those of
    queries and keys (scaled is the query itself), query, output of the attention (in its slots and in the row) with its
    normaliser, keys and values (and `key_copies` of each for every query head, as on a GPU), and four MLP tensors."""
    norms = 2 * (4 + 2 * b) * shape.hidden_size
    norms += (4 + b) * shape.head_dim * (shape.num_heads + shape.num_kv_heads) * shape.head_norms
    attention = (3 * b * shape.head_dim + 4) * shape.num_heads
    attention += 2 * b * shape.head_dim * (shape.num_kv_heads + key_copies * shape.num_heads)
    return norms + attention + 4 * b * shape.intermediate_size


def activations(shape: Shape, tokens: int, key_copies: float, b: int, gradient_checkpointing: bool) -> float:
    """The trunk's activations in the backward pass of a micro-batch. With gradient checkpointing only the inputs of the
    layers are kept, and one layer is recomputed at a time."""
    layer = layer_activations(shape, key_copies, b)
    layers = layer + shape.num_layers * b * shape.hidden_size if gradient_checkpointing else shape.num_layers * layer
    last_norm = (4 + 2 * b) * shape.hidden_size
    gradients = 3 * b * shape.intermediate_size  # of the layer that is gone back through
    return tokens * (layers + last_norm + gradients)


def head(shape: Shape, tokens: int, b: int, gpu_bytes: float, is_frozen: bool = False) -> float:
    """The LM head's part of the backward pass: the scored states and their gradient in float32, three float32 tensors
    of the logits of a part of the vocabulary, all logits where they are kept, and the gradient of the head beside the
    one it is added to."""
    logits = tokens * part_size(tokens, shape.vocab_size, gpu_bytes)
    kept = tokens * shape.vocab_size if tokens * shape.vocab_size <= most_logits(gpu_bytes) else 0
    gradients = 0 if is_frozen else 2 * b * shape.vocab_size * shape.hidden_size
    return tokens * (b + 4) * shape.hidden_size + (12 + b) * logits + 4 * kept + gradients


def key_copies(run: Run) -> float:
    """Keys per token that attention (utils/layouts.py) copies: for each response its own and those of its prefix."""
    return sum(run.max_prompt_length + length for length in run.members_of_row) / run.row_length


def masks(run: Run) -> float:
    """The masks of a micro-batch, a number for each pair of a response's token and one of its prefix or its own."""
    per_row = sum(length * (run.max_prompt_length + length) for length in run.members_of_row)
    return run.weight_bytes * (run.max_tokens_per_micro_batch // run.row_length) * per_row


def cache_need(shape: Shape, run: Generation, prompts: int, samples: int) -> float:
    """Keys and values of `prompts` prompts, `samples` responses each, all at full length."""
    tokens = run.max_prompt_length + samples * run.max_response_length
    return prompts * tokens * run.weight_bytes * shape.cache_elements


def decoded_together(shape: Shape, run: Generation, samples: int) -> tuple[int, int]:
    """How many prompts, and how many of the `samples` of each, the torch engine's cache holds at full length."""
    budget = int(run.kv_cache_gb * GIB // (run.weight_bytes * shape.cache_elements))
    return max_batch(budget, run.max_prompt_length, run.max_response_length, samples)


def generation(shape: Shape, run: Generation, prompts: int, samples: int) -> float:
    """The torch engine's peak for `prompts` prompts of one process: prefill, some prompts at a time, or decoding with
    the caches that --kv_cache_gb lets in, a layer's a second time while the finished rows leave, and logits with three
    float32 copies, twice, since a CUDA graph of a new step is made while the memory of the last is held."""
    b = run.weight_bytes
    fit, samples = decoded_together(shape, run, samples)
    together = min(prompts, fit)
    caches = cache_need(shape, run, together, samples)
    at_once = min(together, max(1, PREFILL_TOKENS // run.max_prompt_length))
    prefill = run.max_prompt_length * b * (at_once * (4 * shape.hidden_size + 3 * shape.intermediate_size)
                                           + together * shape.cache_elements)
    logits = together * samples * shape.vocab_size * (b + 12)
    return max(prefill, caches * (1 + 1 / shape.num_layers) + 2 * logits)
