"""Sudoku with one solution, found cell by cell: always some blank cell has only one digit left.

    python -m utils.tasks.sudoku --output_dir D --size 4        # D/train.parquet and D/test.parquet

The solution names one cell after another, "b3 = 4" for row b, column 3: each time the first blank cell, in reading
order, whose row, column and box leave one digit. It fails in more than one way: a cell that was not blank, one that is
not determined yet, a digit that its row, column or box has already, a grid that was copied with a slip. No solved grid
of the test split occurs in the train split, so grids learned by heart do not help.
"""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rewards.sudoku import BLANK, BOXES, cells_of, size_of, units
from utils.run.cli import run_script
from utils.run.errors import require
from utils.tasks.parquet import make_row, read_setting, setting_of, write_splits

METADATA_KEY = b"sudoku_setting"  # the parquet schema carries the Setting as JSON
ROWS = "abcdefghi"
TEST_SHARE = 0.2  # of the solved grids
MAX_FRUITLESS_DRAWS = 2_000  # grids in a row without a new puzzle before a setting counts as exhausted


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which puzzles there are."""

    size: int = 4  # rows and columns of the grid: 4, 6 or 9
    min_blanks: int = 4  # fewest cells to be filled; each count from here to --max_blanks is as frequent
    max_blanks: int = 8  # most cells to be filled


@dataclass(frozen=True, kw_only=True)
class Args(Setting):
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced
    seed: int = 0  # of the puzzles; same flags and seed, same bytes
    train_problems: int = 2_048  # rows of train.parquet
    test_problems: int = 512  # rows of test.parquet


@dataclass(frozen=True)
class Puzzle:
    given: str  # size ** 2 digits row by row, 0 where blank
    steps: tuple[int, ...]  # the blank cells in the order in which they are found
    solved: str  # the digits of the whole grid


def validate(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    require(args.size in BOXES, "--size", args.size, f"must be one of {', '.join(map(str, BOXES))}")
    require(args.min_blanks >= 1, "--min_blanks", args.min_blanks, "must be at least 1")
    most = args.size**2 // 2 + args.size // 4
    require(args.min_blanks <= args.max_blanks <= most, "--max_blanks", args.max_blanks,
            f"must lie in --min_blanks {args.min_blanks}..{most}")
    require(args.train_problems >= 1, "--train_problems", args.train_problems, "must be at least 1")
    require(args.test_problems >= 1, "--test_problems", args.test_problems, "must be at least 1")


# ---- one puzzle -----------------------------------------------------------------------------------------------------


@cache
def peers(size: int) -> tuple[frozenset[int], ...]:
    """For each cell the others of its row, column and box."""
    return tuple(frozenset(i for unit in units(size) if cell in unit for i in unit) - {cell}
                 for cell in range(size**2))


def digits_left(cells: Sequence[str], cell: int, size: int) -> list[str]:
    """The digits that no peer of `cell` has."""
    taken = {cells[peer] for peer in peers(size)[cell]}
    return [digit for digit in "123456789"[:size] if digit not in taken]


def draw_grid(size: int, rng: random.Random) -> str:
    """A solved grid: the cell with the fewest digits left is filled at random, a dead end begins anew."""
    while True:
        cells = [BLANK] * size**2
        while BLANK in cells:
            left = {cell: digits_left(cells, cell, size) for cell, digit in enumerate(cells) if digit == BLANK}
            fewest = min(map(len, left.values()))
            if fewest == 0:
                break
            cell = rng.choice([cell for cell, digits in left.items() if len(digits) == fewest])
            cells[cell] = rng.choice(left[cell])
        else:
            return "".join(cells)


def solve(given: str, size: int) -> Puzzle | None:
    """The puzzle with its solution; None where at some point no blank cell has one digit left."""
    cells, steps = list(given), []
    while BLANK in cells:
        for cell, digit in enumerate(cells):
            left = digits_left(cells, cell, size) if digit == BLANK else []
            if len(left) == 1:
                cells[cell] = left[0]
                steps.append(cell)
                break
        else:
            return None
    return Puzzle(given, tuple(steps), "".join(cells))


def draw_puzzle(grid: str, num_blanks: int, size: int, rng: random.Random) -> Puzzle | None:
    """Cells of the solved `grid` are blanked in a random order, one that would end the solving is left; None where
    fewer than `num_blanks` can be."""
    cells = list(grid)
    for cell in rng.sample(range(size**2), size**2):
        if cells.count(BLANK) == num_blanks:
            break
        cells[cell] = BLANK
        if solve("".join(cells), size) is None:
            cells[cell] = grid[cell]
    return solve("".join(cells), size) if cells.count(BLANK) == num_blanks else None


# ---- its texts ------------------------------------------------------------------------------------------------------


def in_rows(cells: Sequence[str], size: int) -> str:
    """The digits, a space between rows."""
    return " ".join("".join(cells[row * size : (row + 1) * size]) for row in range(size))


def instruction(given: str, size: int) -> str:
    box_rows, box_columns = BOXES[size]
    return (
        f"Fill the grid so that every row, every column and every box of {box_rows} x {box_columns} holds each digit "
        f"from 1 to {size}; 0 is a blank cell. Between <think> and </think> name one blank cell after another, by its "
        f"row's letter and its column's number, and its digit; between <answer> and </answer> only the whole grid.\n"
        f"Grid: {in_rows(given, size)}\n<think> "
    )


def chunks(steps: Sequence[int], filled: str, size: int) -> list[str]:
    """The solution: one line per cell (no newline after the last). `filled` are the digits of the whole grid."""
    lines = [f"{ROWS[cell // size]}{cell % size + 1} = {filled[cell]}\n" for cell in steps]
    return [*lines[:-1], lines[-1].removesuffix("\n")]


def demonstration(steps: Sequence[int], filled: str, size: int) -> str:
    return "".join(chunks(steps, filled, size)) + f" </think>\n<answer> {in_rows(filled, size)} </answer>"


def to_row(puzzle: Puzzle, size: int, index: int, split: str) -> dict[str, Any]:
    return make_row("sudoku", instruction(puzzle.given, size), chunks(puzzle.steps, puzzle.solved, size),
                    demonstration(puzzle.steps, puzzle.solved, size), {"grid": in_rows(puzzle.given, size)}, index,
                    split, ability="search")


# ---- the two splits -------------------------------------------------------------------------------------------------


def split_of(grid: str, seed: int) -> str:
    """Which split the puzzles of a solved grid belong to."""
    return "test" if random.Random(f"sudoku {seed} {grid}").random() < TEST_SHARE else "train"


def make_puzzles(args: Args, split: str, num_problems: int) -> list[Puzzle]:
    """Different puzzles of a split. BadInput where there are too few."""
    rng = random.Random(f"sudoku {args.seed} {args.size} {split}")
    counts = range(args.min_blanks, args.max_blanks + 1)
    chosen: dict[str, Puzzle] = {}
    fruitless = 0
    while len(chosen) < num_problems:
        fruitless += 1
        require(fruitless < MAX_FRUITLESS_DRAWS, f"--{split}_problems", num_problems,
                f"only {len(chosen)} puzzles with {args.min_blanks}..{args.max_blanks} blank cells could be found")
        grid = draw_grid(args.size, rng)
        if split_of(grid, args.seed) != split:
            continue
        puzzle = draw_puzzle(grid, counts[len(chosen) % len(counts)], args.size, rng)
        if puzzle is not None and puzzle.given not in chosen:
            chosen[puzzle.given] = puzzle
            fruitless = 0
    puzzles = list(chosen.values())
    rng.shuffle(puzzles)
    return puzzles


def build(output_dir: str | os.PathLike, **flags: Any) -> None:
    """Write both splits; `flags` are other fields of Args. BadInput where they allow no such data."""
    args = Args(output_dir=str(output_dir), **flags)
    validate(args)
    splits = {"train": make_puzzles(args, "train", args.train_problems),
              "test": make_puzzles(args, "test", args.test_problems)}
    rows = {split: [to_row(puzzle, args.size, i, split) for i, puzzle in enumerate(puzzles)]
            for split, puzzles in splits.items()}
    write_splits(args.output_dir, rows, (METADATA_KEY, setting_of(args, Setting)))


def load_setting(folder: str | os.PathLike) -> Setting:
    """The setting of a folder that `build` wrote. BadInput for other folders with a test.parquet."""
    return Setting(**read_setting(folder, METADATA_KEY, "sudoku"))


def best_constant_pattern(problems: Iterable[Any]) -> tuple[str, float]:
    """The solved grid that is right for most problems, and its accuracy. `problems` have a `ground_truth` with `grid`,
    of one size, and are solved cell by cell."""
    givens = [cells_of(problem.ground_truth["grid"]) for problem in problems]
    hits = {grid: sum(all(g in (BLANK, d) for g, d in zip(given, grid, strict=True)) for given in givens)
            for grid in sorted(solved_grids(givens))}
    best = max(hits, key=hits.get)
    return in_rows(best, size_of(best)), hits[best] / len(givens)


def solved_grids(givens: Iterable[str]) -> set[str]:
    """Of those that are solved cell by cell."""
    return {puzzle.solved for given in givens if (puzzle := solve(given, size_of(given))) is not None}


def main(args: Args) -> None:
    build(**asdict(args))
    print(f"{args.output_dir}: {args.train_problems} train and {args.test_problems} test grids of size {args.size}, "
          f"{args.min_blanks} to {args.max_blanks} blank cells")


if __name__ == "__main__":
    run_script(main, Args, computes=False)
