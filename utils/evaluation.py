"""One evaluation path, for training and for eval.py: greedy or sampled responses without hints, verified, counted."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from transformers import PreTrainedTokenizerBase

from utils import distributed, heartbeat
from utils.prompts import build_prompt, decode, encode
from utils.rollouts import verify
from utils.runs import table, wilson_interval
from utils.types import Engine, Problem, Rollout


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
    engine: Engine,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    max_response_length: int,
    bos: bool,
) -> list[Response]:
    """The greedy response to every problem, in their order, on every rank. The problems are divided over the ranks."""
    heartbeat.phase("evaluation")
    mine = distributed.share(list(problems))
    prompts = [build_prompt(problem, tokenizer, max_prompt_length, bos) for problem in mine]
    return _judged(engine.generate(prompts, 1, max_response_length, temperature=0.0), tokenizer)


def evaluate_samples(
    engine: Engine,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    max_response_length: int,
    bos: bool,
    num_samples: int,
    temperature: float,
    seed: int,
) -> list[Response]:
    """`num_samples` sampled responses to every problem, problem by problem, on every rank. Each is drawn by (seed, step
    0, problem, sample), however the problems are divided over the ranks."""
    heartbeat.phase("evaluation")
    mine = distributed.share(list(problems))
    prompts = [build_prompt(problem, tokenizer, max_prompt_length, bos) for problem in mine]
    groups = engine.generate(prompts, num_samples, max_response_length, temperature, seed, step=0)
    return _judged(groups, tokenizer)


def _judged(groups: Sequence[Sequence[Rollout]], tokenizer: PreTrainedTokenizerBase) -> list[Response]:
    """The responses of all ranks, in the order of the problems before they were divided."""
    responses = []
    for group, judged in zip(groups, verify(groups, tokenizer), strict=True):
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


# ----- several samples of a problem -----


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold one of the c correct ones: the unbiased estimate
    1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374)."""
    assert 0 <= c <= n and 1 <= k <= n
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)  # integers up to the one division


def pass_ks(num_samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, .. as far as there are samples, and all samples."""
    return sorted({2**i for i in range(num_samples.bit_length())} | ({num_samples} if num_samples else set()))


def interval_over_problems(rates: Sequence[float], num_samples: int) -> tuple[float, float]:
    """95 % interval of the mean of `rates` in [0, 1], each from `num_samples` responses to one problem.

    Responses to a problem are alike, so they count for less than as many problems: Wilson's interval for the number of
    independent responses m whose mean p would vary as much as the mean of the P rates does, p (1 - p) / m = s^2 / P.
    m lies between P and P * num_samples, and is P where the rates do not differ. With one response a problem this is
    Wilson's interval.
    """
    p, num_problems = fmean(rates), len(rates)
    spread = variance(rates) if num_problems > 1 else 0.0
    independent = num_problems * p * (1 - p) / spread if spread else 0.0
    independent = min(max(independent, num_problems), num_problems * num_samples)
    return wilson_interval(p * independent, independent)


# ----- results.json, and what is printed -----


def results_of(responses: Sequence[Response], num_samples: int) -> dict[str, object]:
    """The numbers of a data source: `summary` and `reasons` of the responses, n as the number of problems, the 95 %
    interval of the accuracy, and with `num_samples` (0: greedy) pass@k, each with its interval."""
    correct = Counter()
    for one in responses:
        correct[one.index] += one.correct
    responses_each = max(1, num_samples)
    rates = {"accuracy": [c / responses_each for c in correct.values()]}
    for k in pass_ks(num_samples):
        rates[f"pass@{k}"] = [pass_at_k(num_samples, c, k) for c in correct.values()]
    numbers: dict[str, object] = summary(responses) | {"n": len(correct)}
    for name, of_problems in rates.items():
        low, high = interval_over_problems(of_problems, responses_each)
        numbers |= {name: fmean(of_problems), f"{name}_low": low, f"{name}_high": high}
    return numbers | {"reasons": reasons(responses)}


def results_table(runs: Sequence[dict], num_samples: int) -> str:
    """Markdown: a row per data source of each of `runs`, {"model", "data", "results": {data_source: results_of}}. What
    all runs have in common, model or data, is no column; nor is pass@1, which is mean@n."""
    named = [name for name in ("model", "data") if len({run[name] for run in runs}) > 1]
    ks = pass_ks(num_samples)[1:]
    accuracy = f"mean@{num_samples}" if num_samples else "accuracy"
    rows = [
        [*(run[name] for name in named), data_source, str(r["n"]), f"{r['accuracy']:.1%}", _interval(r, "accuracy"),
         *(f"{r[f'pass@{k}']:.1%} ({_interval(r, f'pass@{k}')})" for k in ks),
         f"{r['format']:.1%}", f"{r['response_tokens']:.1f}",
         ", ".join(f"{reason} {count}" for reason, count in r["reasons"].items())]
        for run in runs for data_source, r in run["results"].items()
    ]  # fmt: skip
    header = [*named, "data source", "n", accuracy, "95 % interval", *(f"pass@{k}" for k in ks), "format",
              "response tokens", "verdicts"]
    return table(header, rows)


def _interval(results: dict, name: str) -> str:
    return f"{results[f'{name}_low']:.1%} to {results[f'{name}_high']:.1%}"


def tokenizer_mismatch(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A warning where the tokens of `text` do not decode to it, else nothing."""
    decoded = decode(encode(text, tokenizer), tokenizer)
    return "" if decoded == text else f"tokenizer mismatch: the prompt's ids decode to {decoded!r}"
