"""One evaluation path, for training and for eval.py: greedy (or sampled) responses without hints, verified."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from inference.hybrid_engine import Engine, decode
from utils import distributed
from utils.data import Problem
from utils.hints import build_prompt
from utils.metrics import verify


@dataclass(frozen=True)
class Response:
    """One judged response; the fields are those of a line of responses.jsonl."""

    index: int
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
    engine: Engine,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    max_response_length: int,
) -> list[Response]:
    """The greedy response to every problem, in their order, on every rank. The problems are divided over the ranks."""
    mine = distributed.share(list(problems))
    prompts = [build_prompt(problem, tokenizer, max_prompt_length) for problem in mine]
    groups = engine.generate(prompts, 1, max_response_length, temperature=0.0)
    responses = []
    for problem, [rollout], [judged] in zip(mine, groups, verify(groups, tokenizer), strict=True):
        responses.append(Response(
            problem.index, problem.data_source, problem.prompt, decode(rollout.response_ids, tokenizer),
            len(rollout.response_ids), rollout.finish == "length", judged.reward, judged.correct, judged.reason,
        ))  # fmt: skip
    return distributed.gather(responses)


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
