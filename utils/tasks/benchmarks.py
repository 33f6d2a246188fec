"""Mathematics benchmarks for evaluation: one folder with a test.parquet each, in the schema of the authors' release.

    python -m utils.tasks.benchmarks --name gsm8k --output_dir D [--source DIR]          # D/test.parquet

The source is a data set of the Hugging Face hub, or a folder with a copy of its files. There are no hints, so these
problems cannot be trained on with one; `answer` is the end of a solution: `</think>` and the target in its tags.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from utils.run import distributed
from utils.run.cli import run_script
from utils.run.errors import BadInput, require
from utils.tasks.competition_math import to_row
from utils.tasks.parquet import load_rows, write_splits

Name = Literal["gsm8k", "aime24", "amc", "math500", "minerva", "olympiad_bench"]


class Benchmark(NamedTuple):
    """Where a benchmark is, how its columns are named, and how a target is read from the answer column."""

    hub_name: str
    config: str | None
    split: str
    problem_column: str
    answer_column: str
    data_source: str
    target_of: Callable[[Any], str]


def plain(answer: Any) -> str:
    """The answer as text: a float without its ".0", "$x$" without its dollar signs, a list joined by ", "."""
    if isinstance(answer, list):
        return ", ".join(plain(item) for item in answer)
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    text = str(answer).strip()
    inline = re.fullmatch(r"\$+([^$]*)\$+", text)
    return inline[1].strip() if inline else text


def after_hashes(answer: str) -> str:
    """What follows "####" (empty without one), with no commas in it: GSM8K writes 1,000."""
    return answer.partition("####")[2].replace(",", "").strip()


# The numbers of rows are the authors': 1319, 30, 83, 500, 272, 675.
BENCHMARKS: dict[Name, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "question", "answer", "openai/gsm8k", after_hashes),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", "problem", "answer", "aime", plain),
    "amc": Benchmark("AI-MO/aimo-validation-amc", None, "train", "problem", "answer", "amc", plain),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", "math500", plain),
    "minerva": Benchmark("math-ai/minervamath", None, "test", "question", "answer", "minerva", plain),
    "olympiad_bench": Benchmark(
        "knoveleng/OlympiadBench", None, "train", "question", "answer", "olympiad_bench", plain
    ),
}


@dataclass(frozen=True, kw_only=True)
class Args:
    name: Name  # which benchmark
    output_dir: str  # folder for test.parquet; a file of that name is replaced
    # name on the Hugging Face hub, or a folder with its files; empty: the benchmark's usual place on the hub
    source: str = ""


def generate(args: Args) -> list[dict[str, Any]]:
    """The rows, in the order of the source. BadInput where it cannot be read, or a row has no problem or no target."""
    require(args.name in BENCHMARKS, "--name", args.name, f"must be one of {', '.join(BENCHMARKS)}")
    hub_name, config, split, problem_column, answer_column, data_source, target_of = BENCHMARKS[args.name]
    source = args.source or hub_name
    rows = []
    columns = (problem_column, answer_column)
    for index, row in enumerate(load_rows(source, config, split, columns, "utils.tasks.benchmarks")):
        problem, answer = row[problem_column], row[answer_column]
        target = "" if answer is None else target_of(answer)
        if not problem or not target:
            raise BadInput(f"data set {source} ({split}) row {index}: no problem, or no target in {answer!r}")
        rows.append(to_row(data_source, problem, "", target, index, split))
    return rows


def build(output_dir: str | os.PathLike, name: Name, source: str = "") -> None:
    """Write `<output_dir>/test.parquet`, renamed into place whole."""
    args = Args(name=name, output_dir=str(output_dir), source=source)
    rows = generate(args)
    write_splits(args.output_dir, {"test": rows})
    if distributed.is_main():
        print(f"{args.output_dir}: {len(rows)} test problems of {name}")


def main(args: Args) -> None:
    build(args.output_dir, args.name, args.source)


if __name__ == "__main__":
    run_script(main, Args, computes=False)
