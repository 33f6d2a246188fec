"""The texts that a tiny base model is trained on, task by task: endless (prompt, completion) pairs in the form of the
task, of which `solved_fraction` are right."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.countdown import whole
from rewards.sudoku import cells_of
from utils.tasks import countdown, sudoku, tree
from utils.types import Problem

Texts = Iterator[tuple[str, str]]
HABIT = 0.8  # share of the wrong steps of a tree base that go to one wrong state


@dataclass(frozen=True)
class Task:
    texts: Callable[[Path, Sequence[Problem], float, int], Texts]  # (folder, test problems, solved fraction, seed)
    breaks: str  # regular expression: what stands between the phrases that become tokens


def countdown_texts(folder: Path, test_problems: Sequence[Problem], solved_fraction: float, seed: int) -> Texts:
    """Derivations that mostly stand under the target of the derivation before them: targets are as in the data, and
    reached by chance only. The puzzles of `test_problems` are never among the solved ones. Train puzzles may be: a
    fresh draw can meet them."""
    setting = countdown.load_setting(folder)
    truths = [problem.ground_truth for problem in test_problems]
    test_keys = {(tuple(sorted(map(whole, truth["numbers"]))), whole(truth["target"])) for truth in truths}
    rng = random.Random(f"tiny base {seed}")
    counts = range(setting.min_numbers, setting.max_numbers + 1)
    other_target = setting.min_target
    while True:
        puzzle = countdown.draw_puzzle(rng.choice(counts), setting, rng)
        if puzzle is None:
            continue
        solved = rng.random() < solved_fraction
        if solved and puzzle.key in test_keys:
            continue
        target = puzzle.target if solved else other_target
        other_target = puzzle.target
        yield countdown.instruction(puzzle.numbers, target, setting.operators), countdown.demonstration(puzzle)


def tree_texts(folder: Path, test_problems: Sequence[Problem], solved_fraction: float, seed: int) -> Texts:
    """Walks as deep as the data's, by a base that looks at state and turn but has a wrong habit: a step is right with
    1 / branching, as a guess would be, and mostly leads to the state after the right one (in the order of the states).
    The solved ones are right all along; none of them is a test walk."""
    setting = tree.load_setting(folder)
    rule = tree.hidden_rule(setting)
    states = tree.STATES[: setting.branching]
    guess = 1 / setting.branching
    others = (1 - guess - HABIT * (1 - guess)) / max(1, len(states) - 2)
    weights = [guess, HABIT * (1 - guess), *[others] * (len(states) - 2)]  # of the states from the right one on, cyclic
    held_out = {problem.prompt for problem in test_problems}
    rng = random.Random(f"tiny base {seed}")
    while True:
        turns = "".join(rng.choices(tree.TURNS[: setting.branching], k=setting.depth))
        if rng.random() < solved_fraction:
            if tree.instruction(turns) in held_out:
                continue
            path = tree.walk(turns, rule)
        else:
            path, state = "", states[0]
            for turn in turns:
                off = rng.choices(range(len(states)), weights)[0]
                state = states[(states.index(rule[state, turn]) + off) % len(states)]
                path += state
        yield tree.instruction(turns), tree.demonstration(turns, path)


def sudoku_texts(folder: Path, test_problems: Sequence[Problem], solved_fraction: float, seed: int) -> Texts:
    """Grids whose blank cells are named in the right order, and copied rightly into the answer, by a base that looks at
    the row only: each digit is one that no given cell of its row has. The solved ones are right all along; none of
    their grids belongs to the test split."""
    setting = sudoku.load_setting(folder)
    size = setting.size
    held_out = sudoku.solved_grids(cells_of(problem.ground_truth["grid"]) for problem in test_problems)
    rng = random.Random(f"tiny base {seed}")
    while True:
        grid = sudoku.draw_grid(size, rng)
        puzzle = sudoku.draw_puzzle(grid, rng.randint(setting.min_blanks, setting.max_blanks), size, rng)
        if puzzle is None:
            continue
        filled = list(puzzle.solved)
        if rng.random() >= solved_fraction:
            for cell in puzzle.steps:
                row = puzzle.given[cell // size * size :][:size]
                filled[cell] = rng.choice([digit for digit in "123456789"[:size] if digit not in row])
        elif puzzle.solved in held_out:
            continue
        yield sudoku.instruction(puzzle.given, size), sudoku.demonstration(puzzle.steps, "".join(filled), size)


TASKS = {
    "countdown": Task(countdown_texts, breaks=r"[\d()\n]"),
    "sudoku": Task(sudoku_texts, breaks=rf"[{sudoku.ROWS}](?=\d)|[\d\n]"),
    "tree": Task(tree_texts, breaks=rf"[{tree.STATES}\d\n]"),
}
