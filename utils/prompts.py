"""The hint-truncated prompt builder: a problem's prompt, followed by the first slices of its reference solution.

Prompt and hint are tokenised separately and stay apart as two lists of ids: nothing later has to find out by value
where one ends and the other begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from utils.chat import ChatTemplate
from utils.types import Problem, Prompt, Rollout

REFERENCE = "A reference solution to the problem that follows:\n{solution}\n\n{problem}"


def solution_slices(solution: Sequence[str], slices_max: int) -> list[str]:
    """The solution cut into at most `slices_max` slices of whole chunks: slice i ends at chunk round(i / num * len).

    Python's rounding (half to even), as in the authors' code. A solution of fewer chunks has one chunk a slice.
    """
    num = min(slices_max, len(solution))
    ends = [round(i / num * len(solution)) for i in range(num + 1)] if num else []
    return ["".join(solution[start:end]) for start, end in zip(ends, ends[1:], strict=False)]


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the text as it is: no special tokens added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class PromptBuilder:
    """Turns problems into what the model is given, of at most `max_length` tokens; with `bos` it begins with the
    tokenizer's beginning-of-sequence token, where there is one. A chat template writes its own, or none."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    bos: bool
    chat: ChatTemplate | None = None

    @property
    def start_ids(self) -> list[int]:
        """The ids before the text of a prompt."""
        has_bos = self.bos and self.chat is None and self.tokenizer.bos_token_id is not None
        return [self.tokenizer.bos_token_id] if has_bos else []

    @property
    def end_id(self) -> int:
        """The id that ends a demonstration."""
        return self.tokenizer.eos_token_id if self.chat is None else self.chat.end_id

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a response where a chat template says so, besides those of the model's generation config."""
        return frozenset() if self.chat is None else frozenset([self.tokenizer.eos_token_id, self.end_id])

    def text(self, problem: Problem) -> str:
        """The text of its prompt, after `start_ids`."""
        return problem.prompt if self.chat is None else self.chat.prompt(problem.prompt)

    def encode(self, problem: Problem) -> list[int]:
        return self.start_ids + encode(self.text(problem), self.tokenizer)

    def build(self, problem: Problem, hint: Sequence[str] = ()) -> Prompt:
        """The prompt of `problem`, followed by the slices of `hint` as far as they fit: whole slices are left out, the
        last first. The prompt itself is never cut; setup/inputs.py has checked that it fits."""
        prompt_ids = self.encode(problem)
        assert len(prompt_ids) <= self.max_length
        for shown in range(len(hint), 0, -1):
            text = "".join(hint[:shown])
            hint_ids = encode(text, self.tokenizer)
            if len(prompt_ids) + len(hint_ids) <= self.max_length:
                whole = max(len(text), sum(map(len, problem.solution)), 1)
                return Prompt(problem, prompt_ids, hint_ids, shown, hint_share=len(text) / whole)
        return Prompt(problem, prompt_ids, [], 0)

    def build_share(self, problem: Problem, share: float, slices_max: int = 0) -> Prompt:
        """The prompt of `problem`, followed by the first `share` of its solution, as far as it fits: of its n token ids
        the first floor(share * n); or, of the n slices that `slices_max` makes, the first floor(share * (n + 1)), so
        that a uniform share shows any number of them as often."""
        if slices_max:
            slices = solution_slices(problem.solution, slices_max)
            return self.build(problem, slices[: int(share * (len(slices) + 1))])
        prompt_ids, ids = self.encode(problem), encode("".join(problem.solution), self.tokenizer)
        assert len(prompt_ids) <= self.max_length
        shown = min(int(share * len(ids)), self.max_length - len(prompt_ids))
        return Prompt(problem, prompt_ids, ids[:shown], 0, hint_share=shown / max(len(ids), 1))

    def for_teacher(self, problem: Problem) -> Prompt:
        """The prompt of `problem` with as many chunks of its solution before it, in the user's turn if there is one, as
        fit; `hint_share` is the share of the solution's characters that they are."""
        for shown in range(len(problem.solution), 0, -1):
            solution = "".join(problem.solution[:shown])
            text = REFERENCE.format(solution=solution, problem=problem.prompt)
            ids = self.encode(replace(problem, prompt=text))
            if len(ids) <= self.max_length:
                return Prompt(problem, ids, [], shown, hint_share=len(solution) / sum(map(len, problem.solution)))
        return self.build(problem)

    def demonstration(self, problem: Problem) -> Prompt:
        """The whole reference as a hint: the demonstration and `end_id` follow the prompt."""
        ids = [*encode(problem.demonstration, self.tokenizer), self.end_id]
        return Prompt(problem, self.encode(problem), ids, len(problem.solution), hint_share=1.0)

    def demonstrate(self, prompt: Prompt) -> Rollout:
        """The reference as a member of the group behind `prompt`: what `demonstration` has as a hint, not sampled."""
        assert not prompt.hint_ids, "a demonstration would repeat what the hint shows"
        ids = self.demonstration(prompt.problem).hint_ids
        return Rollout(prompt, ids, [0.0] * len(ids), finish="stop", demonstration=True)

    def printable(self, problem: Problem) -> tuple[str, int]:
        """The prompt as the model gets it, in quotes, and its number of tokens."""
        start = self.tokenizer.bos_token if self.start_ids else ""
        return repr(start + self.text(problem)), len(self.encode(problem))
