"""Every reference answer under a folder through its verifier, and the verifiers' answers per second. Run by hand.

    python -m tests.bench.gold_answers --data ../shared/reference_data

The completion is a row's `answer` text; a row without one is answered with its target. Each row that does not score 1.0
is printed. Then every mathematical answer is sent to math-verify, without the rules that come first, as the worst case.
"""

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import tyro

from rewards import VERIFIERS, competition_math, score_all
from rewards.answer import last_answer
from rewards.kk_logic import parse_ground_truth
from rewards.pool import Comparison, Pool, Worker

Item = tuple[str, str, Mapping[str, Any]]


@dataclass
class Args:
    data: str  # folder; every parquet file in it or below is read
    workers: tuple[int, ...] = (1, 2)  # numbers of worker processes for the second part


def main(args: Args) -> None:
    items: list[Item] = []
    start = time.perf_counter()
    for path in sorted(Path(args.data).rglob("*.parquet")):
        of_file = [item(row) for row in pyarrow.parquet.read_table(path).to_pylist()]
        items += of_file
        scores = score_all(of_file)
        print(f"{path}: {len(scores)} rows, {sum(score.reward == 1.0 for score in scores)} with reward 1.0")
        for index, (row, score) in enumerate(zip(of_file, scores, strict=True)):
            if score.reward != 1.0:
                data_source, completion, ground_truth = row
                print(f"  {index} {data_source} {ground_truth} {completion[-100:]!r}: {score.reason}")
    print(f"read and scored: {len(items)} in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    score_all(items)
    seconds = time.perf_counter() - start
    print(f"scored: {len(items)} in {seconds:.1f} s, {len(items) / seconds:.0f} answers per second")
    comparisons = [comparison(row) for row in items if VERIFIERS[row[0]] is competition_math.verify]
    if comparisons:
        for num_workers in args.workers:
            time_pool(comparisons, num_workers)


def item(row: Mapping[str, Any]) -> Item:
    ground_truth = row["reward_model"]["ground_truth"]
    return row["data_source"], row.get("answer") or f"<answer> {target_text(ground_truth)} </answer>", ground_truth


def target_text(ground_truth: Mapping[str, Any]) -> str:
    if "target" in ground_truth:
        return str(ground_truth["target"])
    return "\n".join(f"{name} is a {'knight' if is_knight else 'knave'}"
                     for name, is_knight in parse_ground_truth(ground_truth).items())


def comparison(row: Item) -> Comparison:
    _, completion, ground_truth = row
    clean = competition_math.clean
    return Comparison(clean(str(ground_truth["target"])), clean(last_answer(completion)))


def time_pool(comparisons: list[Comparison], num_workers: int) -> None:
    """Each comparison once, none left out for being equal to another; the start of the processes is not counted."""
    pool = Pool(num_workers)
    try:
        with ThreadPoolExecutor(num_workers) as threads:
            list(threads.map(Worker.compare, pool.workers, comparisons))
            start = time.perf_counter()
            scores = list(threads.map(pool.compare, comparisons))
            seconds = time.perf_counter() - start
    finally:
        pool.close()
    reasons = dict(Counter(score.reason for score in scores))
    print(f"math-verify alone, {num_workers} workers: {len(scores)} in {seconds:.1f} s, "
          f"{len(scores) / seconds:.0f} answers per second, {reasons}")


if __name__ == "__main__":
    main(tyro.cli(Args))
