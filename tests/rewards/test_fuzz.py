"""Mutated completions through every verifier, broken files through the loader: a few hundred of each, always the same.

The long run is tests/chaos/fuzz_verifiers.py; the strings and the second opinion on them are the same ones.
"""

import ast
import gc
import io
import random
import re
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

import rewards
from rewards import VERIFIERS, Score, score, score_all, verify
from rewards.answer import CORRECT, UNPARSABLE, WRONG_RESULT, last_answer
from rewards.pool import Comparison
from tests.chaos import checkers, fuzz_verifiers
from tests.chaos.strings import LABELLED, MATH_SOURCES, golds, mutate, wrap
from tests.data.test_data import ROW
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.types import Problem

GOLDS = golds(40, seed=1)
PROPERTY = settings(max_examples=250, deadline=None, derandomize=True, database=None)

# ---- verifiers ----


@pytest.fixture(autouse=True, scope="module")
def collections_leave_what_was_there_alone():
    """One that walks through the libraries of all tests takes half a second, of the 100 ms that a verifier has."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("source", VERIFIERS)
@PROPERTY
@given(pick=st.randoms(use_true_random=False))
def test_a_mutated_completion_gets_a_reward_that_the_second_checker_allows_within_100_ms(source, pick):
    gold = pick.choice(GOLDS[source])
    completion = mutate(gold, pick)
    start = time.thread_time()
    verdict = verify(source, completion, gold.ground_truth)
    assert time.thread_time() - start < 0.1
    if isinstance(verdict, Score):
        assert verdict.reward in checkers.allowed(source, completion, gold.ground_truth)
        assert verdict.correct == (verdict.reward == 1.0)


@pytest.mark.parametrize("source", VERIFIERS)
def test_the_mutations_reach_all_three_rewards(source):
    rng = random.Random(0)
    found = Counter()
    for _ in range(1_000):
        gold = rng.choice(GOLDS[source])
        verdict = verify(source, mutate(gold, rng), gold.ground_truth)
        found[verdict.reward if isinstance(verdict, Score) else "compared"] += 1
    assert min(found[reward] for reward in (0.0, 0.1, 1.0)) >= 2
    assert (found["compared"] >= 20) == (source in MATH_SOURCES)


def test_every_gold_is_right_and_every_label_holds():
    items = [gold for of_source in GOLDS.values() for gold in of_source]
    assert {gold.data_source for gold in items} == set(VERIFIERS)
    labelled = [("math500", wrap(answer), {"target": target}) for answer, target, _ in LABELLED]
    scores = score_all([*items, *labelled])
    assert [gold for gold, one in zip(items, scores, strict=False) if one != CORRECT] == []
    assert [item for item, one in zip(LABELLED, scores[len(items) :], strict=True) if one.correct != item[2]] == []
    assert all(1.0 in checkers.allowed(*gold) for gold in items)


WITHOUT_CARE = {  # verifiers with a fault each
    "countdown": lambda answer, truth: checkers.exact_value(ast.parse(answer.strip(" ")).body[0].value, [])
    == truth["target"],
    "kk_logic": lambda answer, truth: truth["solution_text_format"].lower() in answer.lower(),
    "sudoku": lambda answer, truth: sum(map(int, re.findall("[0-9]", answer))) == sum(range(5)) * 4,
    "tree": lambda answer, truth: truth["path"] in answer,
    "aime": lambda answer, truth: str(int(truth["target"])) in answer,
}


@pytest.mark.filterwarnings("ignore:invalid escape sequence", "ignore::SyntaxWarning")  # of ast.parse
@pytest.mark.parametrize("source", WITHOUT_CARE)
def test_the_long_run_finds_a_careless_verifier(source, monkeypatch):
    def careless(completion, ground_truth):
        answer = last_answer(completion)
        if answer is None:
            return Score(0.0, False, "no answer")
        return CORRECT if WITHOUT_CARE[source](answer, ground_truth) else WRONG_RESULT

    originals = [gold for gold in GOLDS[source] if source != "aime" or gold.ground_truth["target"] == "073"]
    arguments = (originals, 1_000, random.Random(0), fuzz_verifiers.Args(), None, tqdm(disable=True))
    assert fuzz_verifiers.fuzz(*arguments).disagreements == 0
    monkeypatch.setitem(rewards.VERIFIERS, source, careless)
    tally = fuzz_verifiers.fuzz(*arguments)
    assert tally.disagreements > 0 and tally.num_strings == 1_000
    assert (tally.exceptions > 0) == (source == "countdown")  # the parser raises, the others do not


ANSWERS = [  # data source, ground truth, answer, is it right?
    ("countdown", {"target": 10, "numbers": [2, 8]}, "2 + 8", True),
    ("countdown", {"target": 10, "numbers": [2, 8]}, "8 + 2 + 0", False),
    ("countdown", {"target": 16, "numbers": [2, 8]}, "2 * (8)", True),
    ("countdown", {"target": 64, "numbers": [2, 8]}, "8 ** 2", False),
    ("countdown", {"target": 4, "numbers": [2, 8]}, "8 // 2", False),
    ("countdown", {"target": 6, "numbers": [2, 8]}, "-2 + 8", False),
    ("countdown", {"target": 28, "numbers": [2, 8]}, "28", False),
    ("countdown", {"target": 2, "numbers": [2, 8, 8]}, "2 / (8 - 8)", False),
    ("kk_logic", {"names": ["Zoey", "Al"], "solution": [True, False]}, "Al is a knave and (1) zoey is knight.", True),
    ("kk_logic", {"names": ["Zoey", "Al"], "solution": [True, False]}, "Zoey is a knight", False),
    ("kk_logic", {"names": ["Zoey", "Al"], "solution": [True, False]}, "Zoey is a knight, Al is not a knave", False),
    ("kk_logic", {"names": ["Zoey"], "solution": [True]}, "Zoey is a knight, Zoey is a knave", False),
    ("kk_logic", {"names": ["Zoey"], "solution": [True]}, "if Zoey is a knight", False),
    ("kk_logic", {"names": ["Zoey"], "solution": [True]}, "- So, the solution is: [1] \\text{Zoey is a knight}", True),
    ("kk_logic", {"names": ["Zoey"], "solution": [True]}, "The solution is not: Zoey is a knight", False),
    ("kk_logic", {"names": ["Zoey", "Al"], "solution": [True, False]}, "* Zoey is a knight & so Al is a knave", True),
    ("sudoku", {"grid": "1000 0000 2143 4321"}, "1432 3214 2143 4321", True),
    ("sudoku", {"grid": "1000 0000 2143 4321"}, "1432 3412 2143 4321", False),
    ("sudoku", {"grid": "1000 0000 2143 4321"}, "3412 1234 2143 4321", False),
    ("tree", {"path": "ABBA"}, "AB\u3000BA\n", True),
    ("tree", {"path": "ABBA"}, "ABB\u200bA", False),
    ("tree", {"path": "ABBA"}, "abba", False),
    ("aime", {"target": "18"}, r"\boxed{\frac{36}{2}} = 18.0", True),
    ("aime", {"target": "18"}, "18, 19", False),
    ("aime", {"target": "18"}, "not 18", False),
    ("aime", {"target": "18"}, "18.0000001", False),
    ("aime", {"target": "1500"}, "1,500", True),
    ("aime", {"target": "1500"}, r"1.5 \times 10^{3}", True),
    ("math500", {"target": r"\frac{1}{3}"}, r"\frac{2}{6}", True),
    ("math500", {"target": r"\frac{1}{3}"}, "0.333333", False),
    ("math500", {"target": r"\sqrt{2}"}, r"\frac{2}{\sqrt{2}}", True),
    ("math500", {"target": r"\sqrt{2}"}, r"-\sqrt{2}", False),
]


@pytest.mark.parametrize(("source", "truth", "answer", "is_right"), ANSWERS)
def test_the_second_checker_is_right_on_hand_worked_answers(source, truth, answer, is_right):
    assert (1.0 in checkers.allowed(source, wrap(answer), truth)) == is_right
    assert checkers.allowed(source, answer, truth) == checkers.allowed(source, "<answer>1", truth) == {0.0}
    assert 1.0 not in checkers.allowed(source, f"{wrap(answer)} no: <answer>7</answer>", truth)


# What the long run and the list of tricks found. Each test failed before its verifier was mended.


@pytest.mark.parametrize("answer", [r"5\text{" + "$" * 985, "$" * 500 + r"\text{" + "$" * 490])
def test_gaps_made_of_dollar_signs_do_not_cost_their_cube(answer):
    start = time.thread_time()
    assert verify("math500", wrap(answer), {"target": "5"}) == UNPARSABLE
    assert time.thread_time() - start < 0.1  # seconds; it was 0.4


@pytest.mark.parametrize(("opening", "closing"), ["{}", "()", "[]", (r"\{", r"\}"), (r"\sqrt{", "}")])
def test_brackets_within_each_other_do_not_reach_math_verify(opening, closing):
    def nested(depth: int):
        return verify("math500", wrap(f"{opening * depth}x+6{closing * depth}"), {"target": "x+5"})

    assert isinstance(nested(8), Comparison) and nested(9) == UNPARSABLE  # 20 braces take 5 seconds


@pytest.mark.parametrize("answer", ["5 _ 6", "100 _2", "(5)_6", "[5]_6", r"\sqrt{2}_3"])
def test_a_subscript_after_a_gap_or_bracket_is_not_overlooked(answer):
    target = answer.partition("_")[0].strip(" ()[]")
    assert verify("math500", wrap(answer), {"target": target}) == UNPARSABLE


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("6 = 5", "5", WRONG_RESULT),
        ("1 = 2 = 5", "5", WRONG_RESULT),
        ("x = 6 = 5", "5", WRONG_RESULT),
        (r"\frac{1}{2} = 0.5", "0.5", CORRECT),
        (r"9 \cdot 2 = 18", "18", CORRECT),
        ("x = 5, x = 6", "5,6", CORRECT),
        ("x = 5", "5 = x", CORRECT),
    ],
)
def test_the_numbers_of_a_chain_must_be_equal(answer, target, expected):
    assert score("math500", wrap(answer), {"target": target}) == expected


@pytest.mark.parametrize(
    "answer", [r"1\frac{-1}{2}", r"0\frac{+1}{2}", "root 0.5", "0.5 tenths", "log 0.5", "inverse 0.5"]
)
def test_forms_and_words_that_change_a_number_are_unparsable(answer):
    assert score("aime", wrap(answer), {"target": "0.5"}) == UNPARSABLE


NO_TRUTHS = [  # each was accepted: no answer could be right, or "nan" was
    ("countdown", {"target": 5, "numbers": b"\2\3"}),
    ("countdown", {"target": True, "numbers": [2, 3]}),
    ("countdown", {"target": 1, "numbers": [True, False]}),
    ("countdown", {"target": 5, "numbers": [1] * 151}),
    ("kk_logic", {"names": ["is"], "solution": [True]}),
    ("kk_logic", {"names": ["and"], "solution": [True]}),
    ("kk_logic", {"names": ["Zo\u200bey"], "solution": [True]}),
    ("kk_logic", {"names": ["Zoe\u0308"], "solution": [True]}),
    ("kk_logic", {"names": ["7"], "solution": [True]}),
    ("kk_logic", {"names": "ab", "solution": [True, False]}),
    ("kk_logic", {"names": ["A", "B"], "solution": b"\1\0"}),
    ("math500", {"target": float("nan")}),
    ("math500", {"target": float("-inf")}),
    ("math500", {"target": True}),
]


@pytest.mark.parametrize(("source", "truth"), NO_TRUTHS)
def test_a_ground_truth_that_no_answer_can_meet_is_an_error(source, truth):
    with pytest.raises(ValueError, match="ground_truth"):
        verify(source, "", truth)


def test_150_numbers_fit_into_an_answer():
    completion = f"<answer>{'+'.join('1' * 150)}</answer>"
    assert score("countdown", completion, {"target": 150, "numbers": [1] * 150}) == CORRECT


# ---- loader ----


def table(**columns: object) -> pa.Table:
    """ROW and a second row like it, with `columns` (value or array) instead."""
    found = {name: columns.get(name, value) for name, value in ROW.items()}
    return pa.table({name: value if isinstance(value, pa.Array) else pa.array([value, value])
                     for name, value in found.items()})


def truth(**fields: object) -> dict:
    return {"style": "rule", "ground_truth": {"target": 5, "numbers": [2, 3]} | fields}


def of_source(source: str, **ground_truth: object) -> pa.Table:
    return table(data_source=source, reward_model={"style": "rule", "ground_truth": ground_truth})


def not_utf8() -> pa.Array:
    return pa.StringArray.from_buffers(2, *pa.array([b"\xff\xfe", b"ab"]).buffers()[1:])


def twice_in_a_struct() -> pa.Array:
    messages = pa.StructArray.from_arrays([pa.array(["a", "b"])] * 2, names=["content", "content"])
    return pa.ListArray.from_arrays([0, 1, 2], messages)


def parquet(of: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(of, buffer)
    return buffer.getvalue()


FILE = parquet(table())
WITHOUT_PROMPT = table().drop_columns(["prompt"])
BAD_FILES = {  # name -> the file, and what the message names besides it
    "zero bytes": (b"", "cannot be read as parquet"),
    "magic alone": (b"PAR1", "cannot be read as parquet"),
    "magic twice": (b"PAR1\0\0\0\0PAR1", "cannot be read as parquet"),
    "noise": (bytes(range(256)) * 8, "cannot be read as parquet"),
    "csv": (b"data_source,prompt\ncountdown,a\n", "cannot be read as parquet"),
    "cut to a half": (FILE[: len(FILE) // 2], "cannot be read as parquet"),
    "cut by one byte": (FILE[:-1], "cannot be read as parquet"),
    "cut at the front": (FILE[100:], "cannot be read as parquet"),
    "footer length too large": (FILE[:-8] + b"\xff\xff\xff\x7fPAR1", "cannot be read as parquet"),
    "column name not UTF-8": (FILE.replace(b"extra_info", b"\xff\xfetra_info"), "cannot be read as parquet"),
    "no columns": (pa.table({}), "has no column data_source, prompt, reward_model"),
    "no rows": (table().slice(0, 0), "has no rows"),
    "column in capitals": (table().rename_columns([*map(str.upper, ROW)]), "has no column data_source"),
    "prompt twice": (WITHOUT_PROMPT.append_column("prompt", pa.array(["a"] * 2)).append_column(
        "prompt", pa.array(["b"] * 2)), "prompt"),
    "all null": (pa.Table.from_pylist([dict.fromkeys(ROW)] * 2), "row 0: data_source None"),
    "source null in row 1": (table(data_source=pa.array(["countdown", None])), "row 1: data_source None"),
    "source not UTF-8": (table(data_source=not_utf8()), "column data_source cannot be read"),
    "source a number": (table(data_source=7), "row 0: data_source 7"),
    "source bytes": (table(data_source=b"countdown"), "row 0: data_source b'countdown'"),
    "source a list": (table(data_source=["countdown"]), "row 0: data_source ['countdown']"),
    "source with a space": (table(data_source="countdown "), "row 0: data_source 'countdown '"),
    "source an impossible date": (table(data_source=pa.array([2**62] * 2, pa.timestamp("us"))), "data_source"),
    "prompt null": (table(prompt=pa.nulls(2)), "row 0: prompt must"),
    "prompt a text": (table(prompt="Make 5."), "row 0: prompt must"),
    "prompt a number": (table(prompt=5), "row 0: prompt must"),
    "prompt a list of lists": (table(prompt=[[{"role": "user", "content": "a"}]]), "row 0: prompt must"),
    "prompt a struct": (table(prompt={"role": "user", "content": "a"}), "row 0: prompt must"),
    "prompt null message": (table(prompt=pa.array([[None], [{"content": "a"}]])), "row 0: prompt must"),
    "prompt null content": (table(prompt=pa.array([[{"content": "a"}], [{"content": None}]])), "row 1: prompt must"),
    "prompt bytes": (table(prompt=[{"content": b"Make 5."}]), "row 0: prompt must"),
    "prompt a map": (table(prompt=pa.array([[[("content", "a")]]] * 2, pa.list_(pa.map_(pa.string(), pa.string())))),
                     "row 0: prompt must"),
    "prompt field twice": (table(prompt=twice_in_a_struct()), "column prompt cannot be read"),
    "hint a text": (table(hint="2 + 3"), "row 0: hint must"),
    "hint an empty text": (table(hint=""), "row 0: hint must"),
    "hint zero": (table(hint=0), "row 0: hint must"),
    "hint false": (table(hint=False), "row 0: hint must"),
    "hint a list of lists": (table(hint=[["2 + 3"]]), "row 0: hint must"),
    "hint a list of numbers": (table(hint=[2, 3]), "row 0: hint must"),
    "hint null chunk": (table(hint=pa.array([["a"], ["a", None]])), "row 1: hint must"),
    "hint with an answer": (table(hint=["<answer> 2 + 3 </answer>"]), "row 0: hint must not hold"),
    "answer zero": (table(answer=0), "row 0: answer must"),
    "answer false": (table(answer=False), "row 0: answer must"),
    "answer no bytes": (table(answer=b""), "row 0: answer must"),
    "answer an empty list": (table(answer=pa.array([[], []], pa.list_(pa.string()))), "row 0: answer must"),
    "answer not-a-number": (table(answer=float("nan")), "row 0: answer must"),
    "answer not UTF-8": (table(answer=not_utf8()), "column answer cannot be read"),
    "reward null": (table(reward_model=pa.nulls(2)), "row 0: reward_model must"),
    "reward a text": (table(reward_model="{}"), "row 0: reward_model must"),
    "reward a list": (table(reward_model=[truth()]), "row 0: reward_model must"),
    "reward a map": (table(reward_model=pa.array([[("ground_truth", "5")]] * 2, pa.map_(pa.string(), pa.string()))),
                     "row 0: reward_model must"),
    "reward without truth": (table(reward_model={"style": "rule"}), "row 0: reward_model must"),
    "truth null": (table(reward_model={"ground_truth": None}), "row 0: reward_model must"),
    "truth a list": (table(reward_model={"ground_truth": [5]}), "row 0: reward_model must"),
    "truth without target": (table(reward_model={"ground_truth": {"numbers": [2, 3]}}), "row 0: countdown ground"),
    "truth null in row 1": (table(reward_model=pa.array([truth(), truth(numbers=None)])), "row 1: countdown ground"),
    "numbers with NaN": (table(reward_model=truth(numbers=[2.0, float("nan")])), "row 0: countdown ground_truth"),
    "numbers with inf": (table(reward_model=truth(numbers=[2.0, float("inf")])), "row 0: countdown ground_truth"),
    "numbers as floats": (table(reward_model=truth(numbers=[2.0, 3.0])), "row 0: countdown ground_truth"),
    "numbers in words": (table(reward_model=truth(numbers=["two", "three"])), "row 0: countdown ground_truth"),
    "numbers as fields": (table(reward_model=truth(numbers={"2": 2, "3": 3})), "row 0: countdown ground_truth"),
    "numbers as one text": (table(reward_model=truth(numbers="23")), "row 0: countdown ground_truth"),
    "numbers as bytes": (table(reward_model=truth(numbers=b"\2\3")), "row 0: countdown ground_truth"),
    "numbers as truths": (table(reward_model=truth(numbers=[True, False])), "row 0: countdown ground_truth"),
    "numbers with null": (table(reward_model=truth(numbers=[2, None])), "row 0: countdown ground_truth"),
    "numbers of lists": (table(reward_model=truth(numbers=[[2], [3]])), "row 0: countdown ground_truth"),
    "numbers empty": (table(reward_model=truth(numbers=[])), "row 0: countdown ground_truth"),
    "numbers negative": (table(reward_model=truth(numbers=[2, -3])), "row 0: countdown ground_truth"),
    "numbers too many": (table(reward_model=truth(numbers=[1] * 10_000)), "row 0: countdown ground_truth"),
    "target a truth": (table(reward_model=truth(target=True)), "row 0: countdown ground_truth"),
    "target in words": (table(reward_model=truth(target="five")), "row 0: countdown ground_truth"),
    "target an empty text": (table(reward_model=truth(target="")), "row 0: countdown ground_truth"),
    "target a float": (table(reward_model=truth(target=5.0)), "row 0: countdown ground_truth"),
    "kk names a text": (of_source("kk_logic", names="ab", solution=[True, False]), "row 0: kk_logic ground_truth"),
    "kk too few roles": (of_source("kk_logic", names=["A", "B"], solution=[True]), "row 0: kk_logic ground_truth"),
    "kk roles in words": (of_source("kk_logic", names=["A"], solution=["knight"]), "row 0: kk_logic ground_truth"),
    "kk name of no letters": (of_source("kk_logic", names=["7"], solution=[True]), "row 0: kk_logic ground_truth"),
    "gsm8k two numbers": (of_source("openai/gsm8k", target="1 or 2"), "row 0: numeric ground_truth"),
    "gsm8k NaN": (of_source("openai/gsm8k", target=float("nan")), "row 0: numeric ground_truth"),
    "gsm8k bytes": (of_source("openai/gsm8k", target=b"18"), "row 0: numeric ground_truth"),
    "math NaN": (of_source("math500", target=float("nan")), "row 0: math ground_truth"),
    "math a truth": (of_source("math500", target=True), "row 0: math ground_truth"),
    "math empty": (of_source("math500", target=" $$ "), "row 0: math ground_truth"),
    "math too long": (of_source("math500", target="1" * 1_001), "row 0: math ground_truth"),
    "math a list": (of_source("math500", target=["5"]), "row 0: math ground_truth"),
    "sudoku grid of 5 digits": (of_source("sudoku", grid="12345"), "row 0: sudoku ground_truth"),
    "sudoku grid a number": (of_source("sudoku", grid=1000), "row 0: sudoku ground_truth"),
    "tree path a list": (of_source("tree", path=["A", "B"]), "row 0: tree ground_truth"),
    "tree path blank": (of_source("tree", path=" \n"), "row 0: tree ground_truth"),
}


def write(folder, of: pa.Table | bytes) -> str:
    (folder / "train.parquet").write_bytes(of if isinstance(of, bytes) else parquet(of))
    return str(folder)


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_words_that_name_it_and_what_is_wrong(tmp_path, name):
    of, what = BAD_FILES[name]
    with pytest.raises(BadInput) as error:
        load_problems(write(tmp_path, of), "train")
    assert str(error.value).startswith(f"flag --data {tmp_path}: train.parquet")
    assert what in str(error.value)


LONG = "Make 5. " * 1_250_000  # 10 MB
GOOD_FILES = {  # name -> the file, and a field that it must give
    "as released": (table(), "prompt", ROW["prompt"][0]["content"]),
    "a prompt of 10 MB": (table(prompt=[{"role": "user", "content": LONG}]), "prompt", LONG),
    "NUL and a byte order mark": (table(prompt=[{"content": "\ufeffa\0b\u202e"}]), "prompt", "\ufeffa\0b\u202e"),
    "no hint, no answer": (table().drop_columns(["hint", "answer"]), "solution", ()),
    "hints of type null": (table(hint=pa.nulls(2)), "solution", ()),
    "answers null": (table(answer=pa.nulls(2, pa.string())), "demonstration", ""),
    "source as a dictionary": (table(data_source=pa.array(["countdown"] * 2).dictionary_encode()), "index", 0),
    "large strings": (table(answer=pa.array(["a"] * 2, pa.large_string())), "demonstration", "a"),
    "numbers in 8 bits": (table(reward_model=pa.array([truth()] * 2, pa.struct({"ground_truth": pa.struct(
        {"target": pa.int8(), "numbers": pa.list_(pa.uint8())})}))), "ground_truth", {"target": 5, "numbers": [2, 3]}),
    "target as text": (table(reward_model=truth(target="5")), "ground_truth", {"target": "5", "numbers": [2, 3]}),
    "huge numbers": (table(reward_model=truth(target=2**62, numbers=[2**62, 0])), "ground_truth",
                     {"target": 2**62, "numbers": [2**62, 0]}),
    "another column not UTF-8": (table().append_column("other", not_utf8()), "index", 0),
    "another column twice nested": (table().append_column("other", pa.array([[[{"a": [1]}]]] * 2)), "index", 0),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_an_unusual_file_is_loaded_as_it_is(tmp_path, name):
    of, field, value = GOOD_FILES[name]
    problems = load_problems(write(tmp_path, of), "train")
    assert len(problems) == 2 and getattr(problems[0], field) == value


def test_a_folder_named_like_a_partition_adds_and_changes_nothing(tmp_path):
    folder = tmp_path / "prompt=other"
    folder.mkdir()
    assert load_problems(write(folder, table()), "train")[0].prompt == ROW["prompt"][0]["content"]


def loads_or_is_refused(folder: str) -> bool:
    """Whether the file is loaded; then what is loaded has the types that Problem promises."""
    try:
        problems = load_problems(folder, "train")
    except BadInput as error:
        assert str(error).startswith(f"flag --data {folder}: train.parquet")
        return False
    for problem in problems:
        assert isinstance(problem, Problem) and isinstance(problem.prompt, str) and problem.prompt
        assert isinstance(problem.solution, tuple) and all(isinstance(chunk, str) for chunk in problem.solution)
        assert isinstance(problem.demonstration, str)
        assert score(problem.data_source, "", problem.ground_truth).reward == 0.0
    return True


scalars = (st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=4)
           | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
           | st.sampled_from([*VERIFIERS, "<answer>", "5"]))
FIELDS = ["role", "content", "ground_truth", "target", "numbers", "names", "solution", "path"]
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3), max_leaves=8)


@settings(PROPERTY, max_examples=300)
@given(st.sampled_from([*ROW][:5]), values, values, st.sampled_from([*VERIFIERS]))
def test_any_values_in_a_column_are_loaded_or_refused(tmp_path_factory, column, first, second, source):
    row = ROW | {"data_source": source}
    try:
        file = parquet(pa.Table.from_pylist([row | {column: first}, row | {column: second}]))
    except (pa.ArrowException, OverflowError):
        assume(False)  # parquet has no such table
    loads_or_is_refused(write(tmp_path_factory.getbasetemp(), file))


@settings(PROPERTY, max_examples=300)
@given(st.sampled_from([*VERIFIERS]), st.dictionaries(st.sampled_from(FIELDS[3:]), values, min_size=1))
def test_any_ground_truth_is_loaded_or_refused(tmp_path_factory, source, ground_truth):
    try:
        file = parquet(of_source(source, **ground_truth))
    except (pa.ArrowException, OverflowError):
        assume(False)
    loads_or_is_refused(write(tmp_path_factory.getbasetemp(), file))


@settings(PROPERTY, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_flipped_bytes_is_loaded_or_refused(tmp_path_factory, flips):
    flipped = bytearray(FILE)
    for place, value in flips:
        flipped[place] = value
    loads_or_is_refused(write(tmp_path_factory.getbasetemp(), bytes(flipped)))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    for length in range(0, len(FILE), 41):
        assert not loads_or_is_refused(write(tmp_path, FILE[:length]))
    assert loads_or_is_refused(write(tmp_path, FILE))
