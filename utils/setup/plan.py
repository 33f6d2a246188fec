"""What a run will do and need, before a model loads: batch sizes checked, memory estimated, the plan in words."""

from collections.abc import Mapping
from typing import Any

import torch

from utils.actor import resolve_dtype
from utils.data import fingerprint
from utils.prompts import printable_prompt
from utils.run import distributed
from utils.run.errors import require, require_divides
from utils.setup.inputs import Inputs
from utils.setup.memory import Generation, Run, evaluation_facts, memory_facts


def check_batch(
    *, prompts_per_step: int, mini_batch_prompts: int, longest_group: int, longest_group_is: str,
    max_tokens_per_micro_batch: int, num_problems: int,
) -> None:  # fmt: skip
    """Raises BadInput where a step cannot be divided into mini-batches, ranks and micro-batches.

    `longest_group` is the number of tokens that a prompt and all that is trained on it can have; `longest_group_is`
    says in flags how it comes about.
    """
    require(prompts_per_step <= num_problems, "--prompts_per_step", prompts_per_step,
            f"is more than the {num_problems} training problems")
    require_divides("--mini_batch_prompts", mini_batch_prompts, "--prompts_per_step", prompts_per_step)
    require(mini_batch_prompts % distributed.world_size() == 0, "--mini_batch_prompts", mini_batch_prompts,
            f"must be a multiple of the number of processes, {distributed.world_size()}")
    require(max_tokens_per_micro_batch >= longest_group, "--max_tokens_per_micro_batch", max_tokens_per_micro_batch,
            f"must hold {longest_group_is} = {longest_group} tokens")


def longest_rows(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the longest row that training packs with these flags, and how many such rows a prompt makes."""
    if "group_size" not in settings:  # demonstrations
        return settings["max_length"], 1
    shared = settings["group_size"] if settings["share_prefix"] else 1  # responses in a row
    row_length = settings["max_prompt_length"] + shared * settings["max_response_length"]
    return row_length, settings["group_size"] // shared


def memory_plan(inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run with these flags needs on each process, for `print_plan`. Without group_size nothing is sampled in
    training, which then packs demonstrations of at most max_length tokens; without zero_stage nothing is trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight_bytes = resolve_dtype(settings["dtype"], device).itemsize
    tests = -(-len(inputs.test_problems) // distributed.world_size())
    lengths = {name: settings[name] for name in ("max_prompt_length", "max_response_length", "kv_cache_gb")}
    if "zero_stage" not in settings:
        return evaluation_facts(inputs.shape, Generation(weight_bytes=weight_bytes, **lengths), tests,
                                settings["num_samples"] or 1)
    row_length, rows_per_prompt = longest_rows(settings)
    of_vllm = {"  vLLM": f"{settings['engine_memory_fraction']:.0%} of each GPU, instead of the replica and of what "
                         "generating takes here"} if inputs.engine == "vllm" else {}
    names = ("zero_stage", "offload", "gradient_checkpointing", "prompts_per_step", "mini_batch_prompts",
             "max_tokens_per_micro_batch")
    return memory_facts(inputs.shape, Run(
        weight_bytes=weight_bytes, processes=distributed.world_size(), has_reference=settings.get("kl_coef", 0) > 0,
        group_size=settings.get("group_size", 0), row_length=row_length, rows_per_prompt=rows_per_prompt,
        test_problems=len(inputs.test_problems),
        **lengths, **{name: settings[name] for name in names},
    )) | of_vllm


def print_plan(title: str, inputs: Inputs, facts: dict[str, object]) -> None:
    """For --check, from the first process: `facts`, the data, and the first prompt exactly as the model will get it."""
    if not distributed.is_main():
        return
    first = (inputs.problems or inputs.test_problems)[0]
    prompt, num_tokens = repr(first.prompt), "not known, the tokenizer of --model cannot be reached from this machine"
    if inputs.tokenizer is not None:
        prompt, num_tokens = printable_prompt(first, inputs.tokenizer, inputs.bos)
    facts = facts | {
        "engine": f"{inputs.engine} ({inputs.engine_reason})",
        "processes": distributed.world_size(),
        **{name: f"{len(problems)} (fingerprint {fingerprint(problems)}"
                 f"{f'; {count} left out: longer than --max_prompt_length' if count else ''})"
           for name, problems, count in (("training problems", inputs.problems, inputs.left_out.get("train", 0)),
                                         ("test problems", inputs.test_problems, inputs.left_out.get("test", 0)))},
        "first prompt": prompt,
        "first solution": repr(list(first.solution)),
        "first prompt, tokens": num_tokens,
    }
    width = max(map(len, facts))
    print(f"{title}: all checks passed. The plan:", *(f"  {name:<{width}}  {fact}" for name, fact in facts.items()),
          sep="\n", flush=True)
