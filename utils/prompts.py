"""The hint-truncated prompt builder: a problem's prompt, followed by the first slices of its reference solution.

Prompt and hint are tokenised separately and stay apart as two lists of ids: nothing later has to find out by value
where one ends and the other begins.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from utils.types import Problem, Prompt


def solution_slices(solution: Sequence[str], slices_max: int) -> list[str]:
    """The solution cut into at most `slices_max` slices of whole chunks: slice i ends at chunk round(i / num * len).

    Python's rounding (half to even), as in the authors' code. A solution of fewer chunks has one chunk a slice.
    """
    num = min(slices_max, len(solution))
    ends = [round(i / num * len(solution)) for i in range(num + 1)] if num else []
    return ["".join(solution[start:end]) for start, end in zip(ends, ends[1:], strict=False)]


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the raw text: no chat template, no special tokens added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def start_ids(tokenizer: PreTrainedTokenizerBase, bos: bool) -> list[int]:
    """The ids before a prompt: the beginning-of-sequence token where `bos` asks for it and the tokenizer has one."""
    return [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []


def encode_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, bos: bool) -> list[int]:
    return start_ids(tokenizer, bos) + encode(problem.prompt, tokenizer)


def printable_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, bos: bool) -> tuple[str, int]:
    """The prompt as the model gets it, with whatever is put before it, in quotes; and its tokens."""
    start = tokenizer.bos_token if start_ids(tokenizer, bos) else ""
    return repr(start + problem.prompt), len(encode_prompt(problem, tokenizer, bos))


def build_prompt(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, bos: bool, hint: Sequence[str] = ()
) -> Prompt:
    """The prompt of `problem`, followed by the slices of `hint` as far as they fit.

    Where prompt and hint are longer than `max_prompt_length` tokens, whole slices are left out, the last first; the
    prompt itself is never cut (`check_prompt_lengths` has seen to it that it fits).
    """
    prompt_ids = encode_prompt(problem, tokenizer, bos)
    assert len(prompt_ids) <= max_prompt_length
    for shown in range(len(hint), 0, -1):
        hint_ids = encode("".join(hint[:shown]), tokenizer)
        if len(prompt_ids) + len(hint_ids) <= max_prompt_length:
            return Prompt(problem, prompt_ids, hint_ids, shown)
    return Prompt(problem, prompt_ids, [], 0)


def build_demonstration(problem: Problem, tokenizer: PreTrainedTokenizerBase, bos: bool) -> Prompt:
    """The whole reference as a hint: the demonstration and an end-of-sequence token follow the prompt."""
    ids = [*encode(problem.demonstration, tokenizer), tokenizer.eos_token_id]
    return Prompt(problem, encode_prompt(problem, tokenizer, bos), ids, len(problem.solution))


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
