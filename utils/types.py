"""The values on their way from data to loss, Problem -> Prompt -> Rollout -> MicroBatch; and what an engine is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

PREFIX, PADDING = 0, -1  # branch_ids of a token; response j of a group is branch j + 1


@dataclass(frozen=True)
class Problem:
    """One row of a data set.

    Attributes:
        index: row number in its file; with the split, the problem's identity for seeding.
        data_source: which verifier judges it.
        prompt: the text given to the model, as it is.
        solution: the chunks (sentences or lines) of a reference solution, up to but without `</think>`; may be empty.
        demonstration: the full text to imitate: solution, `</think>`, `<answer> .. </answer>`; may be empty.
        ground_truth: what the verifier needs to know.
    """

    index: int
    data_source: str
    prompt: str
    solution: tuple[str, ...]
    demonstration: str
    ground_truth: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What the model is given for one problem: `prompt_ids + hint_ids`. `hint_slices` slices were shown, `hint_share`
    of the solution's characters; of a hint that is counted in tokens no slices, and `hint_share` of its tokens."""

    problem: Problem
    prompt_ids: list[int]
    hint_ids: list[int]
    hint_slices: int
    hint_share: float = 0.0


@dataclass(frozen=True)
class Rollout:
    """One response to one prompt.

    Attributes:
        prompt: what the model was given, prompt and hint.
        response_ids: the sampled ids; where `finish` is "stop" the last one is an end-of-sequence id.
        logprobs: the engine's log-probability of each of them.
        finish: "stop" at an end-of-sequence id, "length" where the limit cut the response off.
        demonstration: it was not sampled: the ids are those of the reference, `logprobs` zeros. Of a group's members
            only the last may be one.
    """

    prompt: Prompt
    response_ids: list[int]
    logprobs: list[float]
    finish: str
    demonstration: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Flat tensors (N,) hold one entry per scored token; see losses.py for the letters.

    Attributes:
        input_ids, position_ids: (R, L).
        segment_ids, branch_ids: (R, L) on the CPU: the segment of its row that a token belongs to, and PREFIX or which
            response of it.
        predictors: (N,) index into the R * L states of the state that predicts the token; targets: (N,) its id.
        response_mask, hint_mask, demonstration_mask: (N,) bool, one of them for each token. A response was sampled.
        advantages: (N,) float; of a hint token the sum over all responses behind it, which is the policy gradient of a
            prefix that they share.
        engine_logprobs: (N,) what the engine computed when it sampled, 0 on other tokens.
        old_logprobs: (N,) under the policy at the start of the step; None where the step has a single update.
        ref_logprobs: (N,) under the reference; None without one.
        owners: (N,) the number of the response that a token belongs to; None where losses do not ask (responses.py).
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    branch_ids: Tensor
    predictors: Tensor
    targets: Tensor
    response_mask: Tensor
    hint_mask: Tensor
    demonstration_mask: Tensor
    advantages: Tensor
    engine_logprobs: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    owners: Tensor | None = None

    @property
    def attention_mask(self) -> Tensor:
        """(R, 1, L, L) bool: a token sees earlier ones of its segment's prefix and of its own branch. Made anew each
        time: those of a whole step may not fit beside it."""
        segment_ids, branch_ids = self.segment_ids.to(self.input_ids.device), self.branch_ids.to(self.input_ids.device)
        same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
        in_prefix = branch_ids[:, None, :] == PREFIX
        return (same_segment & (in_prefix | (branch_ids[:, :, None] == branch_ids[:, None, :]))).tril()[:, None]


@dataclass(frozen=True)
class LongestGroup:
    """The most tokens that a group can have in training: a prefix, `responses` of `response` tokens each, and a
    demonstration beside them. Without responses the prefix is a prompt and its demonstration. `solo` of the responses
    stand alone, each behind a prefix of its own."""

    prefix: int
    responses: int = 0
    response: int = 0
    share_prefix: bool = True
    demonstration: int = 0
    solo: int = 0

    @property
    def tokens(self) -> int:
        """With the prefix once, and without responses that stand alone."""
        return self.prefix + (self.responses - self.solo) * self.response + self.demonstration

    @property
    def members(self) -> int:
        """Responses, and the demonstration."""
        return self.responses + (self.demonstration > 0)

    @property
    def rows(self) -> int:
        """Rows that it is packed into: one, and one for each that stands alone; or one for each member."""
        return 1 + self.solo if self.share_prefix or not self.responses else self.members

    @property
    def members_of_row(self) -> int:
        """Members of the longest row."""
        return self.members - self.solo if self.share_prefix else min(1, self.members)

    @property
    def row_length(self) -> int:
        """Tokens of the longest such row."""
        if self.share_prefix or not self.responses:
            return self.tokens
        return self.prefix + max(self.response, self.demonstration)


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: `group_size` of at most `max_response_length` tokens for each prompt, from the full
    distribution at `temperature` (no top-p, no top-k); 0 is greedy. They are numbered from `first_sample` on: what a
    step samples of a problem at one time and at another are different samples."""

    group_size: int
    max_response_length: int
    temperature: float
    seed: int = 0
    first_sample: int = 0

    def split(self, num_last: int) -> tuple["Sampling", "Sampling"]:
        """The same samples by two calls: all but the last `num_last`, and these."""
        num_first = self.group_size - num_last
        return (replace(self, group_size=num_first),
                replace(self, group_size=num_last, first_sample=self.first_sample + num_first))


class Engine(Protocol):
    def sync(self) -> None: ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """A group of rollouts for every prompt. What is drawn for a sample is a function of (seed, step, problem,
        sample) alone. Log-probabilities are at the temperature of sampling, at 1 where greedy."""
        ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...
