"""One evaluation path, for training and for eval.py: greedy or sampled responses without hints, verified, counted."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from utils.prompts import PromptBuilder, decode, encode
from utils.rollouts import score_rollouts
from utils.run import distributed, watchdog
from utils.types import Engine, Problem, Rollout, Sampling


@dataclass(frozen=True)
class Response:
    """One scored response; the fields are those of a line of responses.jsonl, after its model and data."""

    index: int
    sample: int
    data_source: str
    prompt: str
    response: str
    response_tokens: int
    truncated: bool
    reward: float
    correct: bool
    reason: str

    def texts(self) -> dict[str, str | float]:
        return {"prompt": self.prompt, "hint": "", "response": self.response, "reward": self.reward,
                "reason": self.reason, "index": self.index, "sample": self.sample, "truncated": self.truncated}


def some_texts(responses: Sequence[Response], step: int, number: int = 8) -> list[dict[str, str | float]]:
    """At most `number` responses for people, beginning with another one at each step."""
    n = len(responses)
    return [responses[(step + place) % n].texts() for place in range(min(number, n))]


def evaluate(
    engine: Engine, problems: Sequence[Problem], prompts: PromptBuilder, sampling: Sampling
) -> list[Response]:
    """The responses to every problem, problem by problem, on every rank. The problems are divided over the ranks; what
    is sampled is drawn by (seed, step 0, problem, sample), however they are divided."""
    watchdog.phase("evaluation")
    mine = distributed.share(list(problems))
    return _scored(engine.generate([prompts.build(problem) for problem in mine], sampling), prompts.tokenizer)


def _scored(groups: Sequence[Sequence[Rollout]], tokenizer: PreTrainedTokenizerBase) -> list[Response]:
    """The responses of all ranks, in the order of the problems before they were divided."""
    responses = []
    for group, scores in zip(groups, score_rollouts(groups, tokenizer), strict=True):
        problem = group[0].prompt.problem
        responses.append([
            Response(problem.index, sample, problem.data_source, problem.prompt,
                     decode(rollout.response_ids, tokenizer), len(rollout.response_ids), rollout.finish == "length",
                     score.reward, score.correct, score.reason)
            for sample, (rollout, score) in enumerate(zip(group, scores, strict=True))
        ])
    return [response for group in distributed.gather(responses) for response in group]


def summary(responses: Sequence[Response]) -> dict[str, float]:
    """Accuracy (reward exactly 1), format (an answer is there), mean reward, length and truncation of `responses`."""
    n = len(responses)
    return {
        "n": n,
        "accuracy": sum(response.correct for response in responses) / n,
        "format": sum(response.reason != "no answer" for response in responses) / n,
        "reward": sum(response.reward for response in responses) / n,
        "response_tokens": sum(response.response_tokens for response in responses) / n,
        "truncated": sum(response.truncated for response in responses) / n,
    }


def by_data_source(responses: Sequence[Response]) -> dict[str, list[Response]]:
    """The responses of each data source."""
    parts = defaultdict(list)
    for response in responses:
        parts[response.data_source].append(response)
    return dict(parts)


def reasons(responses: Sequence[Response]) -> dict[str, int]:
    """How often the verifier gave each reason, most frequent first."""
    return dict(Counter(response.reason for response in responses).most_common())


def tokenizer_mismatch(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A warning where the tokens of `text` do not decode to it, else nothing."""
    decoded = decode(encode(text, tokenizer), tokenizer)
    return "" if decoded == text else f"tokenizer mismatch: the prompt's ids decode to {decoded!r}"
