"""How much memory a run needs on each GPU: arithmetic on the model's shape, before anything is loaded.

The terms are what this code, DeepSpeed 0.19.8 and PyTorch 2.13 allocate where every response is as long as allowed.
Activations agree with what autograd saves on a CPU (test_memory.py), weights, gradients and optimiser states with
the growth of a CPU process (tests/bench/memory.py). Nothing was measured on a GPU: its context, communication buffers
and the gaps of its allocator (a few GiB) come on top.

Letters: n parameters, b bytes of a weight (2 in bfloat16, 4 in float32), W processes. Sizes are in bytes.
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from inference.kv_cache import max_batch
from inference.llama_decoder import TYPES
from inference.torch_engine import PREFILL_TOKENS
from utils.policy import CHUNK_LOGITS

GIB = 2**30
NO_ESTIMATE = {"memory": f"no estimate: it needs the config of --model, of type {', '.join(TYPES)}, within reach"}
BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size, gradients on their way; at stage 3 it always exists
LIVE = 1_000_000_000  # elements: its stage3_max_live_parameters, weights gathered at once


@dataclass(frozen=True)
class Shape:
    """A model of a type that inference.torch_engine knows. `layer_biases` counts the bias elements of a layer; `tied`:
    the head is the embedding; `head_norms`: queries and keys are normalised (Qwen3)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_biases: int = 0
    tied: bool = True
    head_norms: bool = False

    @property
    def parameters(self) -> int:
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.head_norms
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms + self.layer_biases
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    @property
    def cache_elements(self) -> int:
        """Number of elements that one token takes in the KV cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


SHAPES = {  # for machines that cannot reach the hub
    "Qwen/Qwen2.5-0.5B": Shape(151_936, 896, 4_864, 24, 14, 2, 64, layer_biases=1_152),
    "Qwen/Qwen2.5-1.5B": Shape(151_936, 1_536, 8_960, 28, 12, 2, 128, layer_biases=2_048),
    "Qwen/Qwen2.5-3B": Shape(151_936, 2_048, 11_008, 36, 16, 2, 128, layer_biases=2_560),
    "meta-llama/Llama-3.2-1B": Shape(128_256, 2_048, 8_192, 16, 32, 8, 64),
    "meta-llama/Llama-3.2-3B": Shape(128_256, 3_072, 8_192, 28, 24, 8, 128),
}


def shape_of(config: PretrainedConfig) -> Shape | None:
    """The shape of a model, None for a type that is not among inference.llama_decoder.TYPES."""
    if config.model_type not in TYPES:
        return None
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    settings = config.to_dict()  # the types have different ones
    head_dim = settings.get("head_dim") or config.hidden_size // heads
    biases = 0
    if config.model_type == "qwen2" or settings.get("attention_bias"):
        biases += (heads + 2 * kv_heads) * head_dim
    if settings.get("attention_bias"):  # Qwen2 has no such setting, and no bias here
        biases += config.hidden_size
    if settings.get("mlp_bias"):
        biases += 2 * config.intermediate_size + config.hidden_size
    return Shape(config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads,
                 kv_heads, head_dim, biases, config.tie_word_embeddings, config.model_type == "qwen3")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The flags that memory depends on while generating."""

    weight_bytes: int
    max_prompt_length: int
    max_response_length: int
    kv_cache_gb: float


@dataclass(frozen=True, kw_only=True)
class Run(Generation):
    """The flags that memory depends on in training, and the number of `processes` and of `test_problems`. `row_length`
    is the longest row that training packs, `rows_per_prompt` the number of such rows that a prompt makes."""

    processes: int
    zero_stage: int
    offload: bool
    gradient_checkpointing: bool
    has_reference: bool
    prompts_per_step: int
    mini_batch_prompts: int
    group_size: int
    row_length: int
    rows_per_prompt: int
    max_tokens_per_micro_batch: int
    test_problems: int

    @property
    def responses_per_row(self) -> int:
        return self.group_size // self.rows_per_prompt


def training_states(parameters: int, run: Run) -> tuple[dict[str, float], float]:
    """The actor's weights, gradients and optimiser states on one process: {name: bytes} on the GPU, bytes on the CPU.

    Float32 weights have a master copy too, except at stage 0: DeepSpeed makes one. Offloading moves optimiser states,
    gradients (held there in float32 too) and at stage 3 the weights.
    """
    n, b, share = parameters, run.weight_bytes, parameters / run.processes
    offload = run.offload and run.zero_stage > 0
    master = 4 if b < 4 or run.zero_stage >= 1 else 0
    states = {
        "weights": b * (share if run.zero_stage == 3 else n),
        "gradients": b * (share if run.zero_stage >= 2 else n),
        "optimiser": (master + 8) * (share if run.zero_stage >= 1 else n),
    }
    if not offload:
        return states, 0.0
    on_cpu = states["optimiser"] + (4 + b) * share + (states["weights"] if run.zero_stage == 3 else 0)
    kept = {"weights": run.zero_stage < 3, "gradients": run.zero_stage == 1, "optimiser": False}
    return {name: size if kept[name] else 0.0 for name, size in states.items()}, on_cpu


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


def head(shape: Shape, tokens: int, b: int) -> float:
    """The LM head's part of the backward pass: the scored states, three float32 tensors of a chunk of logits, all
    log-probabilities where they are kept, and the gradient of the head beside the one it is added to."""
    logits = max(shape.vocab_size, min(CHUNK_LOGITS, tokens * shape.vocab_size))
    kept = tokens * shape.vocab_size if tokens * shape.vocab_size <= CHUNK_LOGITS else 0
    return (tokens * b * shape.hidden_size + (12 + b) * logits + 4 * kept
            + 2 * b * shape.vocab_size * shape.hidden_size)


def key_copies(run: Run) -> float:
    """Keys per token that attention (utils/attention.py) copies: for each response its own and those of its prefix."""
    return run.responses_per_row * (run.max_prompt_length + run.max_response_length) / run.row_length


def masks(run: Run) -> float:
    """The masks of a micro-batch, a number for each pair of a response's token and one of its prefix or its own."""
    length = run.max_response_length
    per_row = run.responses_per_row * length * (run.max_prompt_length + length)
    return run.weight_bytes * (run.max_tokens_per_micro_batch // run.row_length) * per_row


def cache_need(shape: Shape, run: Generation, prompts: int, samples: int) -> float:
    """Keys and values of `prompts` prompts, `samples` responses each, all at full length."""
    tokens = run.max_prompt_length + samples * run.max_response_length
    return prompts * tokens * run.weight_bytes * shape.cache_elements


def generation(shape: Shape, run: Generation, prompts: int, samples: int) -> float:
    """The torch engine's peak for `prompts` prompts of one process: prefill, some prompts at a time, or decoding with
    the caches that --kv_cache_gb lets in, a layer's a second time while the finished rows leave, and logits with three
    float32 copies, twice, since a CUDA graph of a new step is made while the memory of the last is held."""
    b = run.weight_bytes
    budget = int(run.kv_cache_gb * GIB // (b * shape.cache_elements))
    fit, samples = max_batch(budget, run.max_prompt_length, run.max_response_length, samples)
    together = min(prompts, fit)
    caches = cache_need(shape, run, together, samples)
    at_once = min(together, max(1, PREFILL_TOKENS // run.max_prompt_length))
    prefill = run.max_prompt_length * b * (at_once * (4 * shape.hidden_size + 3 * shape.intermediate_size)
                                           + together * shape.cache_elements)
    logits = together * samples * shape.vocab_size * (b + 12)
    return max(prefill, caches * (1 + 1 / shape.num_layers) + 2 * logits)


def estimate(shape: Shape, run: Run) -> tuple[dict[str, float], dict[str, float], float]:
    """({name: bytes} that are always there, {phase: bytes that come on top}, bytes in CPU memory), for one process.

    The peak is the sum of the first and the largest of the second.
    """
    n, b, share = shape.parameters, run.weight_bytes, shape.parameters / run.processes
    sharded = run.zero_stage == 3
    always, on_cpu = training_states(n, run)
    reference = b * (share if sharded else n) * run.has_reference
    if sharded and run.offload:
        on_cpu, reference = on_cpu + reference, 0.0
    always |= {
        "reference": reference,
        "replica for generating": b * n if sharded else 0.0,
        "gradient bucket": BUCKET * b if sharded else 0.0,
    }
    tokens = run.max_tokens_per_micro_batch
    communication = {0: 0, 1: BUCKET * b, 2: BUCKET * b, 3: min(n, LIVE) * b}[run.zero_stage]
    stepping = 0.0 if run.offload and run.zero_stage else 4 * (share if run.zero_stage else n)  # Adam's temporary
    if b < 4 or run.zero_stage in (1, 2):
        stepping *= 2  # and the gradients as float32
    prompts, tests = -(-run.prompts_per_step // run.processes), -(-run.test_problems // run.processes)
    phases = {
        "backward pass": activations(shape, tokens, key_copies(run), b, run.gradient_checkpointing)
        + head(shape, tokens, b) + masks(run) + communication,
        "optimiser step": stepping,
        "rollout or evaluation": max(generation(shape, run, prompts, run.group_size) if run.group_size else 0.0,
                          generation(shape, run, tests, 1)),
    }
    return always, phases, on_cpu


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def evaluation_facts(shape: Shape | None, run: Generation, prompts: int, samples: int) -> dict[str, str]:
    """As `memory_facts`, where a process has the weights and generates `samples` responses to `prompts` prompts."""
    if shape is None:
        return NO_ESTIMATE
    weights, on_top = run.weight_bytes * shape.parameters, generation(shape, run, prompts, samples)
    return {
        "parameters": f"{shape.parameters:,}",
        "memory per GPU": f"about {gib(weights + on_top)} at most: weights {gib(weights)}, generating {gib(on_top)}",
        "  keys and values": f"{gib(cache_need(shape, run, prompts, samples))} for all problems, at most "
                             f"{run.kv_cache_gb:g} GiB at a time",
    }


def memory_facts(shape: Shape | None, run: Run) -> dict[str, str]:
    """The estimate in words, for the plan of --check. `shape` None: the model's config cannot be had."""
    if shape is None:
        return NO_ESTIMATE
    always, phases, on_cpu = estimate(shape, run)
    worst = max(phases, key=phases.__getitem__)
    prompts, samples = -(-run.prompts_per_step // run.processes), run.group_size or 1
    need = gib(cache_need(shape, run, prompts if run.group_size else -(-run.test_problems // run.processes), samples))
    return {
        "parameters": f"{shape.parameters:,}",
        "memory per GPU": f"about {gib(sum(always.values()) + phases[worst])} at most, in the {worst}; all the time:",
        **{f"  {name}": gib(size) for name, size in always.items()},
        "  on top, one at a time": ", ".join(f"{name} {gib(size)}" for name, size in phases.items()),
        "  keys and values": f"{need} for the whole batch, at most {run.kv_cache_gb:g} GiB at a time",
        "  in CPU memory": gib(on_cpu),
    }
