"""Sudoku: fill the grid by the rules. Any grid that keeps to them and to the given cells is right."""

from collections.abc import Mapping
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT, Score, last_answer

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size of the grid -> rows and columns of a box
BLANK = "0"


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of the last closed answer in `completion`: the digits of the whole grid, row by row, whatever white
    space stands around or between them.

    `ground_truth` is {"grid": str}, the given cells in the same form, 0 where one is to be filled. ValueError if it is
    not, or if the grid is not 4 x 4, 6 x 6 or 9 x 9.
    """
    grid = ground_truth.get("grid")
    if not isinstance(grid, str):
        raise ValueError(f"sudoku ground_truth {ground_truth!r}: grid must be a text")
    given = cells_of(grid)
    size = size_of(given)
    if size is None or not given.isascii() or not given.isdigit():
        raise ValueError(f"sudoku ground_truth {ground_truth!r}: grid must be 16, 36 or 81 digits")
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    filled = cells_of(answer)
    keeps = len(filled) == len(given) and all(g in (BLANK, f) for g, f in zip(given, filled, strict=True))
    return CORRECT if keeps and is_solved(filled, size) else WRONG_RESULT


def cells_of(grid: str) -> str:
    """Its characters without the white space around and between them."""
    return "".join(grid.split())


def size_of(cells: str) -> int | None:
    """Rows of a grid of so many cells; None where there is none."""
    return next((size for size in BOXES if size**2 == len(cells)), None)


def is_solved(cells: str, size: int) -> bool:
    """Whether every row, column and box of the size ** 2 cells holds each of the digits 1 .. size."""
    digits = set("123456789"[:size])
    return all({cells[i] for i in unit} == digits for unit in units(size))


def units(size: int) -> list[list[int]]:
    """The rows, columns and boxes, as indices of cells counted row by row."""
    box_rows, box_columns = BOXES[size]
    rows = [[row * size + column for column in range(size)] for row in range(size)]
    columns = [[row * size + column for row in range(size)] for column in range(size)]
    boxes = [
        [(top + row) * size + left + column for row in range(box_rows) for column in range(box_columns)]
        for top in range(0, size, box_rows)
        for left in range(0, size, box_columns)
    ]
    return [*rows, *columns, *boxes]
