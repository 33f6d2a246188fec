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
    """One judged response; the fields are those of a line of responses.jsonl, after its model and data."""

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
                "reason": self.reason}


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
    for group, judged in zip(groups, score_rollouts(groups, tokenizer), strict=True):
        problem = group[0].prompt.problem
        responses.append([
            Response(problem.index, sample, problem.data_source, problem.prompt,
                     decode(rollout.response_ids, tokenizer), len(rollout.response_ids), rollout.finish == "length",
                     one.reward, one.correct, one.reason)
            for sample, (rollout, one) in enumerate(zip(group, judged, strict=True))
        ])
    return [one for group in distributed.gather(responses) for one in group]


def summary(responses: Sequence[Response]) -> dict[str, float]:
    """Accuracy (reward exactly 1), format (an answer is there), mean reward, length and truncation of `responses`."""
    n = len(responses)
    return {
        "n": n,
        "accuracy": sum(one.correct for one in responses) / n,
        "format": sum(one.reason != "no answer" for one in responses) / n,
        "reward": sum(one.reward for one in responses) / n,
        "response_tokens": sum(one.response_tokens for one in responses) / n,
        "truncated": sum(one.truncated for one in responses) / n,
    }


def by_data_source(responses: Sequence[Response]) -> dict[str, list[Response]]:
    """The responses of each data source."""
    parts = defaultdict(list)
    for one in responses:
        parts[one.data_source].append(one)
    return dict(parts)


def reasons(responses: Sequence[Response]) -> dict[str, int]:
    """How often the verifier gave each reason, most frequent first."""
    return dict(Counter(one.reason for one in responses).most_common())


def tokenizer_mismatch(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A warning where the tokens of `text` do not decode to it, else nothing."""
    decoded = decode(encode(text, tokenizer), tokenizer)
    return "" if decoded == text else f"tokenizer mismatch: the prompt's ids decode to {decoded!r}"
