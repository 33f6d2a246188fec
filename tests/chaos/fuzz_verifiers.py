"""A million mutated completions through every verifier, each judged a second time by checkers.py. Run by hand:

    nice -n 10 python -m tests.chaos.fuzz_verifiers --strings 1000000 --seed 0 --output /tmp/fuzz.json

Countdown, Knights and Knaves, sudoku and the tree get 28 %, 22 %, 7 % and 8 % of the strings, the three data sources
of numbers 5 % each, the four of mathematics 5 % each. All go through the part of the verifier that works in this
process: it must raise nothing, take at most --limit_ms of processor time for a string, and leave the process within
--max_growth_mb. Of what mathematics hands on to math-verify (about a third), the first --compared strings of each data
source are compared in the worker processes, under the limit of rewards/pool.py; the rest counts as "left". Before that
come the LABELLED answers, known to be right or wrong. A disagreement is a reward that checkers.py does not allow. The
status is 1 if anything is amiss.
"""

import json
import random
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from rewards import Score, pool, verify
from rewards.pool import START_LIMIT, TIME_LIMIT, Comparison, Pool
from tests.chaos import checkers
from tests.chaos.strings import LABELLED, Gold, golds, mutate, wrap

SHARES = {
    "countdown": 0.28, "kk_logic": 0.22, "sudoku": 0.07, "tree": 0.08, "openai/gsm8k": 0.05, "aime": 0.05, "amc": 0.05,
    "DigitalLearningGmbH/MATH-lighteval": 0.05, "math500": 0.05, "minerva": 0.05, "olympiad_bench": 0.05,
}
GOLDS_PER_TASK = 300
MAX_EXAMPLES = 20  # of each fault, in the report


@dataclass
class Args:
    strings: int = 1_000_000  # completions, over all data sources
    seed: int = 0  # same seed, same completions
    compared: int = 1_000  # of each data source of mathematics, sent to math-verify
    workers: int = 2  # processes for math-verify
    limit_ms: float = 100.0  # processor time of the part in this process
    max_growth_mb: float = 200.0  # of this process, over all strings
    output: str = ""  # JSON file for the report; none if empty


@dataclass
class Tally:
    """What happened to the strings of a data source."""

    num_strings: int = 0
    exceptions: int = 0
    over_limit: int = 0
    slowest_ms: float = 0.0  # processor time in this process
    compared: int = 0
    not_compared: int = 0
    slowest_compared_s: float = 0.0  # wall clock, a start of the worker included
    timeouts: int = 0  # of math-verify; crashes too
    rewards: Counter = field(default_factory=Counter)
    disagreements: int = 0
    examples: list[dict] = field(default_factory=list)

    def note(self, kind: str, gold: Gold, completion: str, detail: str) -> None:
        if sum(example["kind"] == kind for example in self.examples) < MAX_EXAMPLES:
            self.examples.append({"kind": kind, "ground_truth": str(gold.ground_truth), "detail": detail,
                                  "length": len(completion), "completion": ascii(completion[-400:])})


def main(args: Args) -> None:
    golds_of = golds(GOLDS_PER_TASK, args.seed)
    rng = random.Random(f"fuzz {args.seed}")
    workers = Pool(args.workers)
    tallies: dict[str, Tally] = {}
    start, memory = time.perf_counter(), peak_mb()
    try:
        wrong_labels = check_labels(workers)
        with tqdm(total=args.strings, unit=" strings", smoothing=0.02) as bar:
            for source, share in SHARES.items():
                tallies[source] = fuzz(golds_of[source], round(args.strings * share), rng, args, workers, bar)
    finally:
        workers.close()
    growth = peak_mb() - memory
    print(f"{sum(tally.num_strings for tally in tallies.values())} strings in {time.perf_counter() - start:.0f} s; "
          f"this process grew by {growth:.0f} MB; {len(LABELLED)} labelled answers, {len(wrong_labels)} misjudged")
    print_table(tallies)
    if args.output:
        report = {"args": asdict(args), "growth_mb": growth, "wrong_labels": wrong_labels,
                  "sources": {source: vars(tally) for source, tally in tallies.items()}}
        Path(args.output).write_text(json.dumps(report, indent=1))
    amiss = sum(tally.exceptions + tally.over_limit + tally.disagreements for tally in tallies.values())
    late = [source for source, tally in tallies.items() if tally.slowest_compared_s > TIME_LIMIT + START_LIMIT]
    sys.exit(1 if amiss or wrong_labels or late or growth > args.max_growth_mb else 0)


def fuzz(originals: list[Gold], count: int, rng: random.Random, args: Args, workers: Pool, bar: tqdm) -> Tally:
    """The mutated completions of one data source, judged."""
    tally = Tally()
    waiting: list[tuple[Gold, str, Comparison]] = []
    for _ in range(count):
        gold = rng.choice(originals)
        completion = mutate(gold, rng)
        tally.num_strings += 1
        start = time.thread_time()
        try:
            verdict = verify(*gold._replace(completion=completion))
        except Exception as error:  # what this program is for
            tally.exceptions += 1
            tally.note("exception", gold, completion, repr(error))
            continue
        milliseconds = 1_000 * (time.thread_time() - start)
        tally.slowest_ms = max(tally.slowest_ms, milliseconds)
        if milliseconds > args.limit_ms:
            tally.over_limit += 1
            tally.note("slow", gold, completion, f"{milliseconds:.0f} ms")
        if isinstance(verdict, Score):
            compare(tally, gold, completion, verdict)
        elif len(waiting) < args.compared:
            waiting.append((gold, completion, verdict))
        else:
            tally.not_compared += 1
        bar.update()

    def timed(comparison: Comparison) -> tuple[Score, float]:
        start = time.perf_counter()
        return workers.compare(comparison), time.perf_counter() - start

    with ThreadPoolExecutor(args.workers) as threads:
        for (gold, completion, comparison), (score, seconds) in zip(
            waiting, threads.map(timed, [comparison for _, _, comparison in waiting]), strict=True
        ):
            tally.compared += 1
            tally.slowest_compared_s = max(tally.slowest_compared_s, seconds)
            if score in (pool.TIMEOUT, pool.CRASHED):
                tally.timeouts += 1
                tally.rewards[f"{score.reward} ({score.reason})"] += 1
                tally.note(score.reason, gold, completion, str(comparison))
            else:
                compare(tally, gold, completion, score)
    return tally


def compare(tally: Tally, gold: Gold, completion: str, score: Score) -> None:
    """Count the score, and whether checkers.py allows it."""
    tally.rewards[str(score.reward)] += 1
    allowed = checkers.allowed(gold.data_source, completion, gold.ground_truth)
    if score.reward not in allowed or score.correct != (score.reward == 1.0):
        tally.disagreements += 1
        tally.note("disagreement", gold, completion, f"{score}, allowed {sorted(allowed)}")


def check_labels(workers: Pool) -> list[str]:
    """The LABELLED answers that are not judged as their label says."""
    wrong = []
    for answer, target, is_right in LABELLED:
        verdict = verify("math500", wrap(answer), {"target": target})
        score = workers.compare(verdict) if isinstance(verdict, Comparison) else verdict
        if (score.reward == 1.0) != is_right:
            wrong.append(f"{answer} for {target}: {score}")
    return wrong


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def print_table(tallies: dict[str, Tally]) -> None:
    print(f"{'data source':<36}{'strings':>9}{'except.':>8}{'slow':>6}{'slowest ms':>11}{'compared':>9}{'left':>8}"
          f"{'slowest s':>10}{'disagree':>9}  rewards")
    for source, tally in tallies.items():
        print(f"{source:<36}{tally.num_strings:>9}{tally.exceptions:>8}{tally.over_limit:>6}{tally.slowest_ms:>11.2f}"
              f"{tally.compared:>9}{tally.not_compared:>8}{tally.slowest_compared_s:>10.2f}{tally.disagreements:>9}"
              f"  {dict(sorted(tally.rewards.items()))}")
    for source, tally in tallies.items():
        for example in tally.examples:
            print(f"{source} {example['kind']}: {example['ground_truth']} {example['detail']} "
                  f"{example['completion'][-160:]}")


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
