"""The Countdown generator: what holds for every puzzle, the authors' schema, constant answer patterns, bad settings."""

import re
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.run.errors import BadInput
from utils.tasks import countdown

AUTHORS_DATA = Path(__file__).resolve().parents[3] / "shared" / "reference_data" / "countdown"


def make_args(**flags):
    return countdown.Args(**({"output_dir": "unused", "train_problems": 40, "test_problems": 20} | flags))


def value_of(expression: str) -> Fraction:
    """The generator's own expressions only: digits, spaces, parentheses and single operators."""
    assert re.fullmatch(r"[\d ()+*/-]+", expression) and "**" not in expression and "//" not in expression
    return eval(re.sub(r"\d+", lambda number: f"Fraction({number[0]})", expression))  # noqa: S307


def keys(rows):
    return [(tuple(sorted(row["nums"])), row["target"]) for row in rows]


wide_settings = st.builds(
    make_args,
    seed=st.integers(0, 10**6),
    min_numbers=st.just(3),
    max_numbers=st.integers(3, 5),
    min_number=st.integers(1, 5),
    max_number=st.integers(20, 120),
    min_target=st.integers(1, 20),
    max_target=st.integers(60, 200),
    operators=st.sets(st.sampled_from("+-*/")).map(lambda some: "".join(sorted(some | {"+", "-"}))),
    max_pattern_share=st.sampled_from([1.0, 0.3]),
).filter(lambda args: args.max_numbers < 5 or args.max_pattern_share == 1)  # capping 5 numbers takes seconds


@settings(max_examples=25, deadline=None)
@given(wide_settings)
def test_every_solution_is_exact_uses_each_number_once_and_reaches_the_target(args):
    train, test = countdown.generate(args)
    assert (len(train), len(test)) == (40, 20)
    for row in train + test:
        *lines, sentence = row["hint"]
        assert len(lines) == len(row["nums"]) - 1
        available = list(row["nums"])
        for line in lines:
            left, operator, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)\n", line).groups()
            assert operator in args.operators
            assert value_of(f"{left} {operator} {right}") == int(result) > 0
            available.remove(int(left))
            available.remove(int(right))
            available.append(int(result))
        assert available == [row["target"]]
        expression = re.search(r"[\d(].*", sentence)[0]
        assert value_of(expression) == row["target"]
        assert sorted(map(int, re.findall(r"\d+", expression))) == sorted(row["nums"])
        assert row["answer"] == "".join(row["hint"]) + f" </think>\n<answer> {expression} </answer>"
        assert args.min_target <= row["target"] <= args.max_target
        assert all(args.min_number <= number <= args.max_number for number in row["nums"])
        assert args.min_numbers <= len(row["nums"]) <= args.max_numbers


@settings(max_examples=10, deadline=None)
@given(wide_settings)
def test_no_puzzle_occurs_twice_within_a_split_or_in_both(args):
    train, test = countdown.generate(args)
    assert len(set(keys(train)) | set(keys(test))) == len(train) + len(test)


def test_small_puzzle_space_leaks_nothing_either():
    train, test = countdown.generate(make_args(max_numbers=3, max_number=9, max_target=50, operators="+-*"))
    assert len(set(keys(train)) | set(keys(test))) == 60


def test_counts_of_numbers_share_a_split_equally_and_are_mixed():
    train, test = countdown.generate(make_args(train_problems=101, test_problems=20))
    lengths = [len(row["nums"]) for row in train]
    assert sorted((lengths.count(3), lengths.count(4))) == [50, 51]
    assert lengths != sorted(lengths)
    assert [len(row["nums"]) for row in test].count(3) == 10


def test_prompt_names_the_problem_and_ends_in_an_open_think():
    text = countdown.instruction((44, 19, 35), 98, "+-*/")
    assert text.endswith("\n<think> ") and not text.endswith("  ")
    for part in ("44, 19, 35", "98", "+ - * /", "parentheses", "exactly once", "</think>", "<answer> and </answer>"):
        assert part in text
    assert "/ and" not in countdown.instruction((44, 19, 35), 98, "+-*")


def test_demonstration_word_for_word():
    puzzle = countdown.Puzzle((44, 19, 35), 98, ("35 + 19 = 54", "54 + 44 = 98"), "(35 + 19) + 44")
    assert countdown.demonstration(puzzle) == (
        "35 + 19 = 54\n54 + 44 = 98\nAll in one expression: (35 + 19) + 44 </think>\n<answer> (35 + 19) + 44 </answer>"
    )


# ---- files ----


def test_same_seed_same_bytes_and_another_seed_other_problems(tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        countdown.build(tmp_path / folder, train_problems=30, test_problems=10, seed=seed)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["test.parquet", "train.parquet"]
    for name in ("train.parquet", "test.parquet"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b != c
    a, c = (keys(pq.read_table(tmp_path / folder / "train.parquet").to_pylist()) for folder in "ac")
    assert not set(a) & set(c)


def test_test_split_does_not_depend_on_the_number_of_train_problems():
    _, small = countdown.generate(make_args(train_problems=5))
    _, large = countdown.generate(make_args(train_problems=50))
    assert keys(small) == keys(large)


def test_the_folder_remembers_its_setting(tmp_path):
    countdown.build(tmp_path, train_problems=5, test_problems=5, max_number=50, operators="+-")
    setting = countdown.load_setting(str(tmp_path))
    assert setting == countdown.Setting(max_number=50, operators="+-")


def test_columns_are_those_of_the_authors_files(tmp_path):
    if not AUTHORS_DATA.is_dir():
        pytest.skip(f"the authors' files are not here ({AUTHORS_DATA})")
    countdown.build(tmp_path, train_problems=5, test_problems=5)
    for name in ("train.parquet", "test.parquet"):
        ours, theirs = (pq.read_table(folder / name).schema for folder in (tmp_path, AUTHORS_DATA))
        assert ours.remove_metadata() == theirs.remove_metadata()


def test_the_authors_folder_is_no_source_of_a_setting():
    if not AUTHORS_DATA.is_dir():
        pytest.skip(f"the authors' files are not here ({AUTHORS_DATA})")
    with pytest.raises(BadInput, match="--data .*utils.tasks.countdown"):
        countdown.load_setting(str(AUTHORS_DATA))


# ---- constant answer patterns ----


def problems_of(*pairs):
    return [SimpleNamespace(ground_truth={"numbers": list(numbers), "target": target}) for numbers, target in pairs]


def test_best_constant_pattern_of_a_hand_made_set():
    problems = problems_of(((5, 2, 3), 13), ((4, 6, 1), 25), ((7, 7, 2), 51), ((1, 2, 3), 6))
    assert countdown.best_constant_pattern(problems) == ("c + (a * b)", 0.75) or (
        countdown.best_constant_pattern(problems) == ("(a * b) + c", 0.75)
    )


def test_best_constant_pattern_reads_targets_and_numbers_that_are_texts():
    problems = problems_of((("2", 3), "6"), ((4, "5"), 20))
    assert countdown.best_constant_pattern(problems) == ("a * b", 1.0)


def test_best_constant_pattern_is_chosen_per_count_of_numbers():
    problems = problems_of(((5, 2), 3), ((9, 2), 7), ((1, 1, 1), 3), ((1, 2, 3), 6), ((2, 2, 2), 6), ((3, 4, 5), 60))
    text, accuracy = countdown.best_constant_pattern(problems)
    assert text.split("; ")[0] == "a - b" and accuracy == 5 / 6


def brute_force(problems):
    """All permutations, operators and tree shapes, in exact arithmetic."""
    shapes = {3: ["(x{}x){}x", "x{}(x{}x)"],
              4: ["((x{}x){}x){}x", "(x{}(x{}x)){}x", "(x{}x){}(x{}x)", "x{}((x{}x){}x)", "x{}(x{}(x{}x))"]}
    count = len(problems[0].ground_truth["numbers"])
    best = 0
    all_operators = product("+-*/", repeat=count - 1)
    for shape, operators, order in product(shapes[count], all_operators, permutations(range(count))):
        solved = 0
        for problem in problems:
            text = shape.format(*operators)
            for position in order:
                text = text.replace("x", str(problem.ground_truth["numbers"][position]), 1)
            try:
                solved += value_of(text) == problem.ground_truth["target"]
            except ZeroDivisionError:
                continue
        best = max(best, solved)
    return best / len(problems)


def test_best_constant_pattern_finds_what_brute_force_finds():
    fractional = problems_of(((8, 3, 3, 8), 24), ((6, 2, 3, 4), 12), ((5, 3, 3, 5), 15))  # a / (c - a / b)-like answers
    assert countdown.best_constant_pattern(fractional)[1] == brute_force(fractional)
    _, rows = countdown.generate(make_args(max_numbers=3, test_problems=60, max_number=15, max_target=40))
    drawn = problems_of(*((row["nums"], row["target"]) for row in rows))
    assert countdown.best_constant_pattern(drawn)[1] == brute_force(drawn)


def test_pattern_share_is_kept_in_both_splits():
    flags = {"max_numbers": 3, "max_number": 25, "max_target": 60, "operators": "+-*", "train_problems": 400,
             "test_problems": 200}
    for rows, bound in zip(countdown.generate(make_args(**flags, max_pattern_share=0.1)), (0.1, 0.1), strict=True):
        assert countdown.best_constant_pattern(problems_of(*zip_rows(rows)))[1] <= bound
    free = countdown.generate(make_args(**flags))[1]
    assert countdown.best_constant_pattern(problems_of(*zip_rows(free)))[1] > 0.15


def zip_rows(rows):
    return [(row["nums"], row["target"]) for row in rows]


# ---- bad settings ----


@pytest.mark.parametrize(
    ("flag", "value"),
    [("min_numbers", 1), ("max_numbers", 2), ("max_numbers", 6), ("min_number", 0), ("max_number", 0),
     ("min_target", 0), ("max_target", 9), ("operators", ""), ("operators", "+^"), ("operators", "++"),
     ("train_problems", 0), ("test_problems", -1), ("max_pattern_share", 0.0), ("max_pattern_share", 1.5),
     ("max_pattern_share", float("nan"))],
)
def test_bad_value_is_named_with_its_flag(flag, value):
    with pytest.raises(BadInput, match=re.escape(f"flag --{flag} {value}: must")):
        countdown.generate(make_args(**{flag: value}))


def test_a_setting_with_too_few_puzzles_ends_in_an_error(monkeypatch):
    monkeypatch.setattr(countdown, "MAX_FRUITLESS_DRAWS", 20_000)
    with pytest.raises(BadInput, match=r"--train_problems 1000: only \d+ of 1000 puzzles of 3 .*--max_number 3\b"):
        countdown.generate(make_args(max_numbers=3, max_number=3, test_problems=1, train_problems=1000))
    with pytest.raises(BadInput, match="--test_problems 20: only 0 of 10 puzzles of 3 numbers"):
        countdown.generate(make_args(min_number=20, max_number=20, operators="-"))  # 20 - 20 is not positive


def test_a_pattern_share_that_cannot_be_kept_ends_in_an_error():
    with pytest.raises(BadInput, match="--test_problems 300: only .*--max_pattern_share 0.01"):
        countdown.generate(make_args(max_numbers=3, train_problems=300, test_problems=300, max_pattern_share=0.01))


def test_problems_too_large_for_patterns_count_as_unsolved():
    """A table at the end of a run on somebody's own data must not break it."""
    solved = SimpleNamespace(ground_truth={"numbers": [1, 2], "target": 3})
    large = SimpleNamespace(ground_truth={"numbers": [1, 2, 3, 4, 5, 6], "target": 21})
    single = SimpleNamespace(ground_truth={"numbers": [7], "target": 7})
    assert countdown.best_constant_pattern([solved, large, single, large]) == ("a + b", 0.25)
    assert countdown.best_constant_pattern([large]) == ("", 0.0)
