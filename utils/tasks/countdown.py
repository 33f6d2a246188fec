"""Countdown: combine the given numbers, each exactly once, into an expression that equals the target.

    python -m utils.tasks.countdown --output_dir D            # D/train.parquet and D/test.parquet

A puzzle is made backwards: draw the numbers, join random pairs with random operators until one number is left, and keep
the puzzle if that number lies in the target range. The joining is its solution, so every puzzle has one. All
intermediate results are exact positive integers. Rows follow the parquet schema of the authors' release.

`--max_pattern_share` keeps every constant answer pattern (see constant_patterns.py) under a share of each split.
"""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from utils.run.cli import run_script
from utils.run.errors import require
from utils.tasks.countdown_patterns import best_constant_pattern, pattern_hits
from utils.tasks.parquet import make_row, read_setting, setting_of, write_splits

METADATA_KEY = b"countdown_setting"  # the parquet schema carries the Setting as JSON
MAX_FRUITLESS_DRAWS = 200_000  # draws in a row without a new puzzle before a setting counts as exhausted
CAP_BATCH = 1_024  # puzzles looked at together where constant patterns are capped


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which puzzles there are."""

    # fewest numbers in a puzzle, 2..5; each count from here to --max_numbers gets an equal part of a split
    min_numbers: int = 3
    max_numbers: int = 4  # most numbers in a puzzle, up to 5
    min_number: int = 1  # smallest number that may be given, at least 1
    max_number: int = 99  # largest number that may be given
    min_target: int = 10  # smallest target, at least 1
    max_target: int = 100  # largest target
    operators: str = "+-*/"  # the allowed operators, a selection of +-*/


@dataclass(frozen=True, kw_only=True)
class Args(Setting):
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced
    seed: int = 0  # same flags and seed, same bytes
    train_problems: int = 10_240  # rows of train.parquet
    test_problems: int = 1_024  # rows of test.parquet; none of its puzzles occurs in train.parquet
    # largest share of a split's puzzles (of one count of numbers) that any constant answer pattern may solve, 0..1; 1
    # leaves the puzzles as they are drawn
    max_pattern_share: float = 1.0


@dataclass(frozen=True)
class Puzzle:
    numbers: tuple[int, ...]
    target: int
    lines: tuple[str, ...]  # one operation each: "19 + 35 = 54"
    expression: str

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """What makes two puzzles the same: the numbers in any order and the target."""
        return tuple(sorted(self.numbers)), self.target

    @property
    def ground_truth(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers), "target": self.target}


def validate(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    rules = [
        ("min_numbers", args.min_numbers >= 2, "must be at least 2"),
        ("max_numbers", args.min_numbers <= args.max_numbers <= 5, f"must lie in --min_numbers {args.min_numbers}..5"),
        ("min_number", args.min_number >= 1, "must be at least 1"),
        ("max_number", args.max_number >= args.min_number, f"must be at least --min_number {args.min_number}"),
        ("min_target", args.min_target >= 1, "must be at least 1"),
        ("max_target", args.max_target >= args.min_target, f"must be at least --min_target {args.min_target}"),
        ("operators", set(args.operators) <= set("+-*/") and args.operators != "", "must be a selection of +-*/"),
        ("operators", len(set(args.operators)) == len(args.operators), "must name each operator once"),
        ("train_problems", args.train_problems >= 1, "must be at least 1"),
        ("test_problems", args.test_problems >= 1, "must be at least 1"),
        ("max_pattern_share", 0 < args.max_pattern_share <= 1, "must lie in (0, 1]"),
    ]
    for name, holds, rule in rules:
        require(holds, f"--{name}", asdict(args)[name], rule)


# ---- one puzzle ----------------------------------------------------------------------------------------------------


def instruction(numbers: Sequence[int], target: int, operators: str) -> str:
    return (
        f"Combine the given numbers into an arithmetic expression whose value is the target. Use every number exactly "
        f"once; allowed are {' '.join(operators)} and parentheses. Reason between <think> and </think>, then only the "
        f"expression between <answer> and </answer>.\n"
        f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}\n<think> "
    )


def derive(numbers: Sequence[int], operators: str, rng: random.Random) -> tuple[int, tuple[str, ...], str]:
    """Join random pairs until one number is left: its value, the arithmetic lines, the whole expression.

    Operands stand larger first. Only operators with an exact positive result are drawn; where a pair has none, the
    joining ends early, with a value of 0.
    """
    terms = [(number, str(number)) for number in numbers]
    lines: list[str] = []
    while len(terms) > 1:
        first, second = rng.sample(range(len(terms)), 2)
        (large, large_text), (small, small_text) = sorted((terms[first], terms[second]), key=lambda t: -t[0])
        results = {"+": large + small, "*": large * small}
        if large > small:
            results["-"] = large - small
        if large % small == 0:
            results["/"] = large // small
        allowed = [operator for operator in operators if operator in results]
        if not allowed:
            return 0, (), ""
        operator = rng.choice(allowed)
        lines.append(f"{large} {operator} {small} = {results[operator]}")
        terms = [term for i, term in enumerate(terms) if i not in (first, second)]
        terms.append((results[operator], f"({large_text} {operator} {small_text})"))
    value, text = terms[0]
    return value, tuple(lines), text[1:-1]


def draw_puzzle(count: int, setting: Setting, rng: random.Random) -> Puzzle | None:
    """A puzzle with `count` numbers, or None where the draw misses the target range."""
    numbers = tuple(rng.randint(setting.min_number, setting.max_number) for _ in range(count))
    target, lines, expression = derive(numbers, setting.operators, rng)
    if not setting.min_target <= target <= setting.max_target:
        return None
    return Puzzle(numbers, target, lines, expression)


def chunks(puzzle: Puzzle) -> list[str]:
    """The solution: one line per operation, then a sentence with the whole expression (no newline at its end)."""
    return [f"{line}\n" for line in puzzle.lines] + [f"All in one expression: {puzzle.expression}"]


def demonstration(puzzle: Puzzle) -> str:
    return "".join(chunks(puzzle)) + f" </think>\n<answer> {puzzle.expression} </answer>"


# ---- the two splits ------------------------------------------------------------------------------------------------


def distinct_puzzles(count: int, args: Args) -> Iterator[Puzzle]:
    """Puzzles with `count` numbers, no two with the same target and the same numbers in any order, until none is left
    (MAX_FRUITLESS_DRAWS in a row brought nothing new)."""
    rng = random.Random(f"countdown {args.seed} {count}")
    seen: set[tuple[tuple[int, ...], int]] = set()
    fruitless = 0
    while fruitless < MAX_FRUITLESS_DRAWS:
        fruitless += 1
        puzzle = draw_puzzle(count, args, rng)
        if puzzle is not None and puzzle.key not in seen:
            seen.add(puzzle.key)
            fruitless = 0
            yield puzzle


def capped(puzzles: Iterator[Puzzle], num_problems: int, max_share: float) -> list[Puzzle]:
    """The first `num_problems` puzzles of which no constant pattern solves more than `max_share`; fewer, if a whole
    batch brings none that may be added."""
    chosen: list[Puzzle] = []
    num_solved = np.zeros(1, dtype=int)  # (patterns,) from the first batch on
    num_before = -1
    while num_before < len(chosen) < num_problems:
        num_before = len(chosen)
        batch = list(islice(puzzles, CAP_BATCH))
        if not batch:
            break
        numbers, targets = np.array([p.numbers for p in batch]), np.array([p.target for p in batch])
        hits = np.stack([hit for _, hit in pattern_hits(numbers, targets)], axis=1)  # (batch, patterns)
        num_solved = np.broadcast_to(num_solved, hits.shape[1:]).copy()
        for puzzle, hit in zip(batch, hits, strict=True):
            if len(chosen) < num_problems and np.all(num_solved[hit] + 1 <= max_share * num_problems):
                num_solved[hit] += 1
                chosen.append(puzzle)
    return chosen


def make_puzzles(args: Args) -> tuple[list[Puzzle], list[Puzzle]]:
    """Train and test puzzles, the counts of numbers in equal parts and mixed. BadInput where there are too few."""
    splits: dict[str, list[Puzzle]] = {"test": [], "train": []}  # the test puzzles are drawn first
    num_problems = {"test": args.test_problems, "train": args.train_problems}
    counts = range(args.min_numbers, args.max_numbers + 1)
    for i, count in enumerate(counts):
        puzzles = distinct_puzzles(count, args)
        for split, chosen in splits.items():
            wanted = (num_problems[split] + i) // len(counts)  # over the counts these add up to num_problems
            if args.max_pattern_share < 1:
                found = capped(puzzles, wanted, args.max_pattern_share)
            else:
                found = list(islice(puzzles, wanted))
            require(len(found) == wanted, f"--{split}_problems", num_problems[split],
                    f"only {len(found)} of {wanted} puzzles of {count} numbers could be found; allow larger numbers "
                    f"(--max_number {args.max_number}), targets {args.min_target}..{args.max_target} or operators "
                    f"{args.operators}, or a larger --max_pattern_share {args.max_pattern_share}")
            chosen += found
    for split, chosen in splits.items():
        random.Random(f"countdown {args.seed} {split} order").shuffle(chosen)
    return splits["train"], splits["test"]


def to_row(puzzle: Puzzle, index: int, split: str, operators: str) -> dict[str, Any]:
    text = instruction(puzzle.numbers, puzzle.target, operators)
    return {"target": puzzle.target, "nums": list(puzzle.numbers)} | make_row(
        "countdown", text, chunks(puzzle), demonstration(puzzle), puzzle.ground_truth, index, split)


def generate(args: Args) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train rows and test rows, in the columns of the authors' release. BadInput where the flags allow no such data."""
    validate(args)
    train, test = make_puzzles(args)
    train_rows = [to_row(puzzle, i, "train", args.operators) for i, puzzle in enumerate(train)]
    test_rows = [to_row(puzzle, i, "test", args.operators) for i, puzzle in enumerate(test)]
    return train_rows, test_rows


def build(output_dir: str | os.PathLike, **flags: Any) -> None:
    """Write both splits; `flags` are other fields of Args.

    Files are renamed into place whole, so two ranks may build the same folder at once.
    """
    args = Args(output_dir=str(output_dir), **flags)
    train_rows, test_rows = generate(args)
    write_splits(args.output_dir, {"train": train_rows, "test": test_rows}, (METADATA_KEY, setting_of(args, Setting)))


def load_setting(folder: str | os.PathLike) -> Setting:
    """The setting of a folder that `build` wrote. BadInput for other folders with a test.parquet."""
    return Setting(**read_setting(folder, METADATA_KEY, "countdown"))


def main(args: Args) -> None:
    build(**asdict(args))
    _, test = make_puzzles(args)
    text, accuracy = best_constant_pattern(test)
    print(f"{args.output_dir}: {args.train_problems} train and {args.test_problems} test problems of Countdown")
    print(f"best constant answer pattern on the test split: {accuracy:.1%} ({text})")


if __name__ == "__main__":
    run_script(main, Args, computes=False)
