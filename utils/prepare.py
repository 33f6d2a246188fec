"""What a run needs before a model loads: tokenizer and problems, checked against the flags, and the plan in words."""

from dataclasses import dataclass

from transformers import AutoConfig, PreTrainedTokenizerBase

from inference.torch_engine import check_supported
from utils.checks import is_first_process, load_tokenizer, require, require_divides, world_size
from utils.data import Problem, fingerprint, load_problems
from utils.hints import check_prompt_lengths, encode


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of a run. `tokenizer` is None only under --check, for a model that cannot be reached from here."""

    tokenizer: PreTrainedTokenizerBase | None
    problems: list[Problem]
    test_problems: list[Problem]


def load_inputs(
    *, model: str, data: str, splits: tuple[str, ...], max_prompt_length: int, max_response_length: int,
    eval_problems: int, skip_long_prompts: bool, may_be_unreachable: bool,
) -> Inputs:  # fmt: skip
    """Tokenizer and problems of the named splits ("train", "test"). `eval_problems` 0 keeps all test problems.

    Raises:
        BadInput: anything that is missing, unreadable or too long.
    """
    require(eval_problems >= 0, "--eval_problems", eval_problems, "must not be negative (0 means all)")
    require(max_prompt_length > 0, "--max_prompt_length", max_prompt_length, "must be greater than 0")
    require(max_response_length > 0, "--max_response_length", max_response_length, "must be greater than 0")
    tokenizer = load_tokenizer(model, may_be_unreachable)
    if tokenizer is not None:
        config = AutoConfig.from_pretrained(model)
        check_supported(config)
        positions = config.max_position_embeddings
        require(max_prompt_length + max_response_length <= positions, "--max_response_length", max_response_length,
                f"with --max_prompt_length {max_prompt_length} exceeds the {positions} positions of {model}")
    loaded = {split: load_problems(data, split) for split in splits}
    if "test" in loaded:
        require(eval_problems <= len(loaded["test"]), "--eval_problems", eval_problems,
                f"is more than the {len(loaded['test'])} test problems of --data {data}")
        loaded["test"] = loaded["test"][: eval_problems or None]
    if tokenizer is not None:
        loaded = {split: check_prompt_lengths(problems, tokenizer, max_prompt_length, split, skip_long_prompts)
                  for split, problems in loaded.items()}
    return Inputs(tokenizer, loaded.get("train", []), loaded.get("test", []))


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
    require(mini_batch_prompts % world_size() == 0, "--mini_batch_prompts", mini_batch_prompts,
            f"must be a multiple of the number of processes, {world_size()}")
    require(max_tokens_per_micro_batch >= longest_group, "--max_tokens_per_micro_batch", max_tokens_per_micro_batch,
            f"must hold {longest_group_is} = {longest_group} tokens")


def print_plan(title: str, inputs: Inputs, facts: dict[str, object]) -> None:
    """For --check, from the first process: `facts`, the data, and the first prompt exactly as the model will get it."""
    if not is_first_process():
        return
    first = (inputs.problems or inputs.test_problems)[0]
    facts = facts | {
        "processes": world_size(),
        "training problems": f"{len(inputs.problems)} (fingerprint {fingerprint(inputs.problems)})",
        "test problems": f"{len(inputs.test_problems)} (fingerprint {fingerprint(inputs.test_problems)})",
        "first prompt": repr(first.prompt),
        "first solution": repr(list(first.solution)),
        "first prompt, tokens": "not known, the tokenizer of --model cannot be reached from this machine"
        if inputs.tokenizer is None else len(encode(first.prompt, inputs.tokenizer)),
    }
    width = max(map(len, facts))
    print(f"{title}: all checks passed. The plan:", *(f"  {name:<{width}}  {fact}" for name, fact in facts.items()),
          sep="\n", flush=True)
