"""Sudoku: its puzzles, its splits, its verifier, and the texts of its base model."""

from itertools import islice, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import score
from rewards.sudoku import is_solved
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import sudoku
from utils.tasks.tiny_texts import sudoku_texts

GIVEN, SOLVED = "1000 0000 2143 4321", "1234 3412 2143 4321"  # one of two solutions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sudoku") / "data"
    sudoku.build(folder, train_problems=64, test_problems=32)
    return folder


def cells(grid: str) -> str:
    return "".join(grid.split())


# ---- puzzles ----


def test_a_puzzle_by_hand():
    """a2 has one digit left at once (row 1 3 4), then b1 (column 1 2 4), then c4."""
    given, solved = cells("1034 0412 2340 4123"), cells("1234 3412 2341 4123")
    puzzle = sudoku.solve(given, 4)
    assert puzzle == sudoku.Puzzle(given, (1, 4, 11), solved)
    assert sudoku.chunks(puzzle.steps, solved, 4) == ["a2 = 2\n", "b1 = 3\n", "c4 = 1"]
    assert sudoku.demonstration(puzzle.steps, solved, 4) == \
        "a2 = 2\nb1 = 3\nc4 = 1 </think>\n<answer> 1234 3412 2341 4123 </answer>"
    assert sudoku.instruction(given, 4).endswith("\nGrid: 1034 0412 2340 4123\n<think> ")


def test_a_cell_waits_until_one_digit_is_left():
    """a1 could be 1 or 2 until b1 has been found."""
    given = cells("0034 0412 0341 4123")
    puzzle = sudoku.solve(given, 4)
    left = [sudoku.digits_left(given, cell, 4) for cell in (0, 1, 4, 8)]
    assert left == [["1", "2"], ["2"], ["3"], ["2"]] and puzzle.steps == (1, 0, 4, 8)


def test_a_grid_that_is_not_determined_is_no_puzzle():
    assert sudoku.solve(cells(GIVEN), 4) is None


@pytest.mark.parametrize("size", [4, 6, 9])
def test_puzzles_have_their_blanks_and_the_solution_keeps_the_rules(size):
    setting = {"size": size, "min_blanks": size, "max_blanks": 2 * size}
    puzzles = sudoku.make_puzzles(sudoku.Args(output_dir="", **setting), "train", 2 * (size + 1))
    assert sorted(puzzle.given.count("0") for puzzle in puzzles) == sorted(2 * list(range(size, 2 * size + 1)))
    for puzzle in puzzles:
        assert is_solved(puzzle.solved, size) and len(puzzle.steps) == puzzle.given.count("0")
        filled = list(puzzle.given)
        for cell in puzzle.steps:  # each forced when its turn comes, so there is one solution
            assert sudoku.digits_left(filled, cell, size) == [puzzle.solved[cell]]
            filled[cell] = puzzle.solved[cell]
        assert "".join(filled) == puzzle.solved


def test_all_grids_of_size_4_are_known_as_solved_and_no_other():
    """There are 288, a 24th of them for each first row."""
    rows = ["".join(row) for row in permutations("1234")]
    assert sum(is_solved("1234" + "".join(others), 4) for others in product(rows, repeat=3)) == 12


# ---- the data ----


def test_rows_are_solved_right_and_splits_share_no_grid(data):
    splits = [load_problems(str(data), split, needs=("hint", "answer")) for split in ("train", "test")]
    assert list(map(len, splits)) == [64, 32]
    prompts = [problem.prompt for problems in splits for problem in problems]
    assert len(set(prompts)) == len(prompts)
    solved = [{sudoku.solve(cells(problem.ground_truth["grid"]), 4).solved for problem in problems}
              for problems in splits]
    assert not solved[0] & solved[1]
    for problem in splits[0] + splits[1]:
        assert 4 <= cells(problem.ground_truth["grid"]).count("0") == len(problem.solution) <= 8
        assert problem.ground_truth["grid"] in problem.prompt
        assert problem.demonstration.startswith("".join(problem.solution) + " </think>")
        assert score("sudoku", problem.demonstration, problem.ground_truth).reward == 1.0


def test_same_flags_same_bytes_and_another_seed_other_puzzles(data, tmp_path):
    sudoku.build(tmp_path / "again", train_problems=64, test_problems=32)
    sudoku.build(tmp_path / "other", seed=1, train_problems=64, test_problems=32)
    for split in ("train", "test"):
        bytes_of = [(folder / f"{split}.parquet").read_bytes()
                    for folder in (data, tmp_path / "again", tmp_path / "other")]
        assert bytes_of[0] == bytes_of[1] != bytes_of[2]


@pytest.mark.parametrize(("flags", "rule"), [
    ({"size": 5}, "flag --size 5: must be one of 4, 6, 9"),
    ({"min_blanks": 0}, "flag --min_blanks 0: must be at least 1"),
    ({"max_blanks": 3}, "flag --max_blanks 3: must lie in --min_blanks 4..9"),
    ({"max_blanks": 10}, "flag --max_blanks 10: must lie in --min_blanks 4..9"),
    ({"train_problems": 0}, "flag --train_problems 0: must be at least 1"),
])
def test_bad_flags_are_named(tmp_path, flags, rule):
    with pytest.raises(BadInput) as error:
        sudoku.build(tmp_path / "data", **flags)
    assert rule in str(error.value)
    assert not (tmp_path / "data").exists()


def test_too_few_puzzles_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sudoku, "MAX_FRUITLESS_DRAWS", 30)
    with pytest.raises(BadInput, match=r"--test_problems 4000: only \d+ puzzles with 1..1 blank cells could be found"):
        sudoku.build(tmp_path / "data", min_blanks=1, max_blanks=1, test_problems=4000, train_problems=1)


def test_the_best_constant_grid_is_counted_over_the_givens(data):
    test = load_problems(str(data), "test")
    grid, accuracy = sudoku.best_constant_pattern(test)
    right = [score("sudoku", f"<answer>{grid}</answer>", problem.ground_truth).correct for problem in test]
    assert sum(right) / 32 == accuracy > 0
    others = {sudoku.solve(cells(problem.ground_truth["grid"]), 4).solved for problem in test}
    assert all(sum(score("sudoku", f"<answer>{other}</answer>", problem.ground_truth).correct for problem in test) / 32
               <= accuracy for other in others)


def test_a_folder_of_another_task_has_no_sudoku_setting(countdown_data):
    with pytest.raises(BadInput, match="must have been written by utils.tasks.sudoku"):
        sudoku.load_setting(countdown_data)


# ---- the verifier ----


@pytest.mark.parametrize(("completion", "reward", "reason"), [
    (f"a2 = 2 </think>\n<answer> {SOLVED} </answer>", 1.0, "correct"),
    (f"<answer>{cells(SOLVED)}</answer>\n\n", 1.0, "correct"),
    ("<answer> 1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1 </answer>", 1.0, "correct"),
    ("<answer> 1432 3214 2143 4321 </answer>", 1.0, "correct"),  # the other solution
    ("<answer> 3412 1234 2143 4321 </answer>", 0.1, "wrong result"),  # keeps the rules, not the given a1
    ("<answer> 1234 3412 2341 4123 </answer>", 0.1, "wrong result"),  # keeps the rules, not the given c2
    ("<answer> 1324 3412 2143 4321 </answer>", 0.1, "wrong result"),  # columns
    ("<answer> 1233 3412 2143 4321 </answer>", 0.1, "wrong result"),  # a row
    ("<answer> 1432 3412 2143 4321 </answer>", 0.1, "wrong result"),  # boxes
    (f"<answer> {SOLVED} 1 </answer>", 0.1, "wrong result"),
    (f"<answer> {SOLVED[:-1]} </answer>", 0.1, "wrong result"),
    (f"<answer> {GIVEN} </answer>", 0.1, "wrong result"),
    ("<answer> 1234,3412,2143,4321 </answer>", 0.1, "wrong result"),
    ("<answer>  </answer>", 0.1, "wrong result"),
    (SOLVED, 0.0, "no answer"),
    (f"<answer> {SOLVED}", 0.0, "no answer"),
])
def test_rules_and_given_cells_are_kept(completion, reward, reason):
    judged = score("sudoku", completion, {"grid": GIVEN})
    assert (judged.reward, judged.correct, judged.reason) == (reward, reward == 1.0, reason)


def test_any_solution_is_right():
    given = {"grid": "0000 0000 2143 4321"}
    for rows in ("1234 3412", "3412 1234", "1432 3214", "3214 1432"):
        assert score("sudoku", f"<answer> {rows} 2143 4321 </answer>", given).correct


@pytest.mark.parametrize("ground_truth", [{}, {"grid": ""}, {"grid": 5}, {"grid": None}, {"grid": "1234"},
                                          {"grid": "12a4 3412 2341 4123"}, {"grid": "1234 3412 2341 412\u0663"}])
def test_a_ground_truth_without_a_grid_is_refused(ground_truth):
    with pytest.raises(ValueError, match="sudoku ground_truth"):
        score("sudoku", "", ground_truth)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("1234 \n0\u0661</answer>", max_size=40))
def test_no_completion_raises_and_only_a_solution_is_right(text):
    judged = score("sudoku", f"<answer>{text}</answer>", {"grid": SOLVED.replace("4", "0")})
    if judged.correct:
        assert cells(SOLVED) in cells(text)


# ---- the base's texts ----


def test_the_base_looks_at_the_row_only(data):
    right = total = 0
    for prompt, completion in islice(sudoku_texts(data, [], 0.0, seed=0), 300):
        given = cells(prompt.split("Grid: ")[1].split("\n")[0])
        puzzle = sudoku.solve(given, 4)
        answer = cells(completion.split("<answer> ")[1].split("</answer>")[0])
        assert completion == sudoku.demonstration(puzzle.steps, answer, 4)
        for cell in puzzle.steps:
            row = given[cell // 4 * 4 :][:4]
            assert answer[cell] not in row
            total, right = total + 1, right + (answer[cell] == puzzle.solved[cell]) / (1 / row.count("0"))
    assert abs(right / total - 1) < 0.15  # right as often as a guess among the digits that the row leaves


def test_solved_texts_are_right_and_none_is_a_grid_of_the_test_split(data):
    test = load_problems(str(data), "test")
    held_out = {sudoku.solve(cells(problem.ground_truth["grid"]), 4).solved for problem in test}
    for prompt, completion in islice(sudoku_texts(data, test, 1.0, seed=0), 300):
        grid = prompt.split("Grid: ")[1].split("\n")[0]
        assert score("sudoku", completion, {"grid": grid}).correct
        assert cells(completion.split("<answer> ")[1].split("</answer>")[0]) not in held_out
