"""How much memory a run needs on each GPU: arithmetic on the model's shape, before anything is loaded."""

from utils.deepspeed_config import GATHER_BUCKET
from utils.setup.memory_terms import (
    BUCKET,
    Generation,
    Run,
    activations,
    cache_need,
    communication,
    generation,
    gib,
    head,
    key_copies,
    masks,
    stepping,
    training_states,
)
from utils.setup.shapes import TYPES, Shape

NO_ESTIMATE = {"memory": f"no estimate: it needs the config of --model, of type {', '.join(TYPES)}, within reach"}


def estimate(shape: Shape, run: Run) -> tuple[dict[str, float], dict[str, float], float]:
    """({name: bytes} that are always there, {phase: bytes that come on top}, bytes in CPU memory), for one process.

    The peak is the sum of the first and the largest of the second.
    """
    n, b, share = shape.parameters, run.weight_bytes, shape.parameters / run.processes
    sharded, has_vllm = run.zero_stage == 3, run.vllm_bytes > 0
    always, on_cpu = training_states(n, run)
    reference = b * (share if sharded else n) * (run.has_reference and not run.num_adapted)
    if sharded and run.offload:
        on_cpu, reference = on_cpu + reference, 0.0
    if has_vllm and run.sleep_level == 1:
        on_cpu += b * n
    replica = b * n if sharded and not has_vllm else 0.0
    gives_back = run.sleep_level if has_vllm else run.free_replica
    returned = run.vllm_bytes + replica if gives_back else 0.0  # while the actor learns
    always |= {
        "reference": reference,
        "vLLM" if has_vllm else "replica for generating": run.vllm_bytes + replica - returned,
        "gradient bucket": BUCKET * b if sharded else 0.0,
        "context, NCCL, gaps": run.overhead,
    }
    tokens = run.max_tokens_per_micro_batch
    prompts, tests = -(-run.prompts_per_step // run.processes), -(-run.test_problems // run.processes)
    gathered = b * min(n, GATHER_BUCKET + shape.vocab_size * shape.hidden_size) if sharded else 0.0
    generating = 0.0 if has_vllm else max(
        generation(shape, run, prompts, run.group_size) if run.group_size else 0.0, generation(shape, run, tests, 1))
    phases = {
        "backward pass": activations(shape, tokens, key_copies(run), b, run.gradient_checkpointing)
        + head(shape, tokens, b, run.gpu_bytes, run.num_adapted > 0) + masks(run) + communication(shape, run),
        "optimiser step": stepping(run.num_adapted or n, run),
        "sync": returned + gathered,
        "rollout or evaluation": returned + generating,
    }
    return always, phases, on_cpu


def peak(shape: Shape, run: Run) -> float:
    """Bytes that a GPU must have."""
    always, phases, _ = estimate(shape, run)
    return sum(always.values()) + max(phases.values())


def evaluation_parts(shape: Shape, run: Generation, prompts: int, samples: int) -> dict[str, float]:
    """{name: bytes} of a process that generates `samples` responses to `prompts` prompts, on a GPU."""
    parts = {"weights": run.weight_bytes * shape.parameters, "generating": generation(shape, run, prompts, samples)}
    if run.vllm_bytes:
        parts = {"vLLM": run.vllm_bytes}
    return parts | ({"context and gaps": run.overhead} if run.overhead else {})


def evaluation_facts(shape: Shape | None, run: Generation, prompts: int, samples: int) -> dict[str, str]:
    """As `memory_facts`, for an evaluation."""
    if shape is None:
        return NO_ESTIMATE
    parts = evaluation_parts(shape, run, prompts, samples)
    return {
        "parameters": f"{shape.parameters:,}",
        "memory per GPU": f"about {gib(sum(parts.values()))} at most: "
                          + ", ".join(f"{name} {gib(size)}" for name, size in parts.items()),
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
    learning = f", beside which {run.num_adapted:,} of adapters learn" if run.num_adapted else ""
    return {
        "parameters": f"{shape.parameters:,}{learning}",
        "memory per GPU": f"about {gib(peak(shape, run))} at most, in the {worst}; all the time:",
        **{f"  {name}": gib(size) for name, size in always.items()},
        "  on top, one at a time": ", ".join(f"{name} {gib(size)}" for name, size in phases.items()),
        "  keys and values": f"{need} for the whole batch, at most {run.kv_cache_gb:g} GiB at a time",
        "  in CPU memory": gib(on_cpu),
    }
