"""What --check says: what a run or an evaluation will do, and what it needs, in words."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from utils.data import fingerprint
from utils.policy import memory_of
from utils.pretrained import resolve_dtype
from utils.run import distributed
from utils.setup.cards import card_facts
from utils.setup.duration import card_here, duration_facts
from utils.setup.inputs import Inputs
from utils.setup.memory import evaluation_facts, memory_facts
from utils.setup.memory_terms import Generation, Run
from utils.setup.references import judge_references
from utils.tasks.own import own_facts
from utils.types import LongestGroup, Problem


class Planned(Protocol):
    """What of a plan.Plan is told here, and read by the memory probe."""

    flags: Any
    longest: LongestGroup
    inputs: Inputs
    problems: list[Problem]
    has_reference: bool
    num_adapted: int
    num_updates: int


# ----- a run -----


def of_a_step(plan: Planned) -> dict[str, object]:
    """What it does."""
    flags, group_size = plan.flags, plan.longest.responses
    if group_size:
        per_step = {
            "steps": flags.total_steps,
            "rollouts per step": f"{flags.prompts_per_step} prompts x {group_size} responses = "
                                 f"{flags.prompts_per_step * group_size}",
            "updates per step": f"{plan.num_updates}, of {flags.mini_batch_prompts * group_size} rollouts each",
        }
        if plan.longest.demonstration:
            per_step |= {
                "demonstrations per step": flags.prompts_per_step,
                "left out, demonstration too long": len(plan.inputs.problems) - len(plan.problems),
            }
            if plan.inputs.prompts is not None and distributed.is_main():
                per_step |= {"references": judge_references(plan.problems, plan.inputs.prompts, together=False)}
    else:
        epochs = flags.total_steps * flags.prompts_per_step / len(plan.problems)
        per_step = {
            "steps": f"{flags.total_steps}, {epochs:.2f} epochs",
            "demonstrations per step": flags.prompts_per_step,
            "left out as longer than --max_length": len(plan.inputs.problems) - len(plan.problems),
            "updates per step": f"{plan.num_updates}, of {flags.mini_batch_prompts} demonstrations each",
        }
    return per_step | {"tokens per micro-batch": f"at most {flags.max_tokens_per_micro_batch} on each process"}


def of_the_machine(plan: Planned) -> dict[str, str]:
    """What the run needs of it, and how long it takes."""
    flags = plan.flags
    names = ("zero_stage", "offload", "gradient_checkpointing", "prompts_per_step", "mini_batch_prompts",
             "max_tokens_per_micro_batch", "max_prompt_length", "max_response_length", "kv_cache_gb",
             "free_replica", "engine_memory_fraction", "sleep_level")
    shape, run = plan.inputs.shape, Run(
        weight_bytes=weight_bytes(flags.dtype), gpu_bytes=gpu_bytes(), processes=distributed.world_size(),
        has_reference=plan.has_reference, group_size=plan.longest.responses, row_length=plan.longest.row_length,
        rows_per_prompt=plan.longest.rows, max_demonstration_length=plan.longest.demonstration,
        test_problems=len(plan.inputs.test_problems), engine=plan.inputs.engine, num_adapted=plan.num_adapted,
        **{name: getattr(flags, name) for name in names},
    )
    on_gpu = replace(run, weight_bytes=resolve_dtype(flags.dtype, torch.device("cuda")).itemsize)
    here = card_here(torch.cuda.get_device_name(), run.gpu_bytes) if run.gpu_bytes else None
    return (memory_facts(shape, run) | card_facts(shape, on_gpu)
            | duration_facts(shape, on_gpu, flags.total_steps, flags.eval_every, here))


# ----- an evaluation, and both -----


def weight_bytes(dtype: str) -> int:
    """Bytes of a weight under --dtype on this machine."""
    return resolve_dtype(dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")).itemsize


def gpu_bytes() -> int:
    """Memory of the GPU of this machine; 0 without one."""
    return memory_of(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else 0


def evaluation_memory(inputs: Inputs, num_samples: int, dtype: str, **flags: Any) -> dict[str, str]:
    """What an evaluation needs on each process, for `print_plan`; `flags` are those of memory_terms.Generation."""
    tests = -(-len(inputs.test_problems) // distributed.world_size())
    run = Generation(weight_bytes=weight_bytes(dtype), gpu_bytes=gpu_bytes(), engine=inputs.engine, **flags)
    return evaluation_facts(inputs.shape, run, tests, num_samples)


def print_plan(title: str, inputs: Inputs, facts: Mapping[str, object]) -> None:
    """For --check, from the first process: `facts`, the data, and the first prompt exactly as the model will get it."""
    if not distributed.is_main():
        return
    first = (inputs.problems or inputs.test_problems)[0]
    prompt, num_tokens = repr(first.prompt), "not known, the tokenizer of --model cannot be reached from this machine"
    if inputs.prompts is not None:
        prompt, num_tokens = inputs.prompts.printable(first)
    lines = dict(facts) | {"engine": f"{inputs.engine} ({inputs.engine_reason})",
                           "processes": distributed.world_size()}
    for name, split, problems in (("training problems", "train", inputs.problems),
                                  ("test problems", "test", inputs.test_problems)):
        count = inputs.left_out.get(split, 0)
        left_out = f"; {count} left out: longer than --max_prompt_length" if count else ""
        lines[name] = f"{len(problems)} (fingerprint {fingerprint(problems)}{left_out})"
    lines |= {"first prompt": prompt, "first solution": repr(list(first.solution)), "first prompt, tokens": num_tokens}
    if inputs.data_words:
        lines |= own_facts(inputs.data_words, inputs.problems or inputs.test_problems)
    width = max(map(len, lines))
    print(f"{title}: all checks passed. The plan:", *(f"  {name:<{width}}  {fact}" for name, fact in lines.items()),
          sep="\n", flush=True)
