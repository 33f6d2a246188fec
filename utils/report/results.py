"""The results of an evaluation: pass@k, intervals over problems, results.json and its table."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, variance

from utils.evaluation import Response, reasons, summary
from utils.report.runs import table, wilson_interval


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


def results_of(responses: Sequence[Response], num_samples: int) -> dict[str, object]:
    """The numbers of a data source: `summary` and `reasons` of the responses, n as the number of problems, the 95 %
    interval of the accuracy, and with `num_samples` (0: greedy) pass@k, each with its interval."""
    correct = Counter()
    for response in responses:
        correct[response.index] += response.correct
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
    ]
    header = [*named, "data source", "n", accuracy, "95 % interval", *(f"pass@{k}" for k in ks), "format",
              "response tokens", "verdicts"]
    return table(header, rows)


def _interval(results: dict, name: str) -> str:
    return f"{results[f'{name}_low']:.1%} to {results[f'{name}_high']:.1%}"
