"""The verifier of mathematical answers: strings and numbers in process, the rest by math-verify in worker processes."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, math, pool, score, score_all
from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT
from rewards.math import MAX_ANSWER_CHARS, clean, verify
from rewards.pool import Comparison

GOLD = Path(__file__).parents[2] / "shared/reference_data/math"
PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


def item(answer: str, target: object) -> tuple[str, str, dict]:
    return "math500", f"so it is $1$. </think>\n<answer> {answer} </answer>", {"target": target}


def in_process(answer: str, target: object) -> Score | Comparison:
    _, completion, truth = item(answer, target)
    return verify(completion, truth)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("$26\\pi$", r"26 \pi"),
        (r"\[ 26\pi \]", r"26\pi"),
        (r"\(26\pi\).", r"26\pi"),
        (r"$$\boxed{26\pi}$$", r"26\pi"),
        (r"\boxed{$26\pi$}", r"26\pi"),
        (r"\dfrac{\pi}{2}", r"\frac{\pi}{2}"),
        (r"\tfrac{\pi}2", r"\frac{\pi}{2}"),
        (r"\frac32", r"\frac{3}{2}"),
        (r"\frac 59", r"\frac{5}{9}"),
        ("3/2", r"\frac32"),
        ("1.5", r"\frac{3}{2}"),
        ("1 1/2", r"\frac{3}{2}"),
        (r"1\frac{1}{2}", "1.5"),
        (r"11\sqrt2", r"11\sqrt{2}"),
        (r"\left( 3, 4 \right)", "(3,4)"),
        (r"1,\!000", "1000"),
        ("14{,}916", "14916"),
        (r"60^\circ", "60"),
        (r"60^{\circ}", r"60^\circ"),
        ("28", r"28\%"),
        ("36", r"\$36"),
        ("5 cm", r"5\text{ digits}"),  # the unit is not judged
        ("135 square feet", r"135\text{ square feet}"),
        ("90", "90\\text{ square\nunits}"),
        (r"99\pi", r"99\pi \text{ square inches}"),
        ("Dana", r"\text{Dana}"),
        (r"\textbf{(C)}", r"\text{(C)}"),
        ("C", r"\text{(C)}"),
        ("1:03 PM", r"\text{1:03 PM}"),
        ("12 and 13", r"12\text{ and }13"),
        ("x = -1", "-1"),
        ("-1", "x = -1"),
        ("y = 2x + 3", "y=2x+3"),
        ("2x+3", "y = 2x + 3"),
        ("4130_5", "4130_{5}"),
        ("4130", "4130_5"),
        (r"152A_{11}", r"152A_{11}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
    ids=ascii,
)
def test_the_same_text_or_number_is_right_without_a_worker(answer, target):
    assert in_process(answer, target) == CORRECT


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("0.333333", r"\frac{1}{3}", WRONG_RESULT),  # no tolerance
        ("0.0", r"\frac{1}{10000000}", WRONG_RESULT),
        ("11/2", "1 1/2", WRONG_RESULT),
        ("1 1/2", "11/2", WRONG_RESULT),
        ("56", "5 6", WRONG_RESULT),
        ("5$6", "56", UNPARSABLE),
        ("5 6", "11", UNPARSABLE),  # math-verify would add them up
        ("0.28", r"28\%", WRONG_RESULT),
        ("4130_7", "4130_5", WRONG_RESULT),
        ("4131", "4130_5", WRONG_RESULT),
        ("100_2", "100", UNPARSABLE),  # math-verify would overlook the base
        ("1:03 AM", r"\text{1:03 PM}", Comparison("1:03 PM", "1:03 AM")),
        (r"4:30\text{ am}", r"4:30\text{ pm}", Comparison("4:30 pm", "4:30 am")),  # no unit
        ("Navin", r"\text{Dana}", WRONG_RESULT),
        ("A", r"\text{B}", Comparison("B", "A")),
        ("A, B, C, D", r"\text{B}", Comparison("B", "A, B, C, D")),
        (r"5\text{ maybe }6\text{ cm}", "5", UNPARSABLE),
        ("5 not 6", "5", UNPARSABLE),
        ("5 million", "5", UNPARSABLE),
        ("five", "5", UNPARSABLE),
        ("What is 2 + 3?", "5", UNPARSABLE),
        ("5\u200b", "5", UNPARSABLE),
        ("\uff15", "5", UNPARSABLE),
        ("5'", "5", UNPARSABLE),
        ('"5"', "5", UNPARSABLE),
        ("5}", "5", UNPARSABLE),
        ("{5", "5", UNPARSABLE),
        ("", "5", UNPARSABLE),
        ("$$", "5", UNPARSABLE),
        (r"\boxed{}", "5", UNPARSABLE),
        ("5\ud800", "5", UNPARSABLE),
        ("5" * (MAX_ANSWER_CHARS + 1), "5", UNPARSABLE),
        (" " * MAX_ANSWER_CHARS + "5", "5", UNPARSABLE),
        ("y = 5", "x = 5", Comparison("x = 5", "y = 5")),
        (r"\boxed{5} + \boxed{1}", "5", Comparison("5", r"\boxed{5} + \boxed{1}")),
    ],
    ids=lambda parameter: ascii(parameter)[:40],
)
def test_what_the_first_rules_refuse_or_leave_to_a_worker(answer, target, expected):
    assert in_process(answer, target) == expected


COMPARED = [  # answer, target, verdict
    (r"\frac{2}{\sqrt{2}} + 0", r"\sqrt{2}", CORRECT),
    (r"2 \cdot 13 \pi", r"26\pi", CORRECT),
    ("-3 + 5x", "5x - 3", CORRECT),
    ("2x + 3 = y", "y = 2x + 3", CORRECT),
    ("6, 5", "5,6", CORRECT),
    (r"\{5, 6\}", "5,6", CORRECT),
    (r"3 + 2\sqrt2, 3 - 2\sqrt2", r"3 \pm 2 \sqrt{2}", CORRECT),
    ("i - 1", "-1 + i", CORRECT),
    ("5.656854", r"4\sqrt{2}", CORRECT),
    ("5.65", r"4\sqrt{2}", WRONG_RESULT),
    ("(2,1)", "(1,2)", WRONG_RESULT),
    ("[1,2)", "(1,2]", WRONG_RESULT),
    ("5 or 6", "5", WRONG_RESULT),
    (r"\pm 5", "5", WRONG_RESULT),
    ("y = 5", "x = 5", WRONG_RESULT),
    ("5x", "5", WRONG_RESULT),
    ("1:03 AM", r"\text{1:03 PM}", WRONG_RESULT),
    ("A, B, C, D", r"\text{B}", WRONG_RESULT),
    (r"\boxed{5} + \boxed{1}", "5", WRONG_RESULT),
    ("2 + ", "2", UNPARSABLE),
    (r"\frac{1}{0}", "5", WRONG_RESULT),
]


def test_math_verify_judges_what_the_first_rules_leave():
    scores = score_all([item(answer, target) for answer, target, _ in COMPARED])
    judged = list(zip(COMPARED, scores, strict=True))
    assert [row for row, one in judged if one != row[2]] == []
    assert all(isinstance(in_process(answer, target), Comparison) for answer, target, _ in COMPARED[:8])


def test_a_batch_is_scored_in_order_across_data_sources():
    countdown = ("countdown", "<answer> 1 + 2 </answer>", {"target": 3, "numbers": [1, 2]})
    batch = [item("x+1", "1+x"), countdown, item("5", "5"), item("x+2", "1+x"), ("aime", "", {"target": 5})]
    assert score_all(batch) == [CORRECT, CORRECT, CORRECT, WRONG_RESULT, NO_ANSWER]
    assert score_all([]) == []
    assert score(*batch[0]) == CORRECT


def test_checking_a_row_of_data_starts_no_worker(monkeypatch):
    monkeypatch.setattr(pool, "shared", None)
    monkeypatch.setattr(pool, "Pool", None)
    for data_source in ("DigitalLearningGmbH/MATH-lighteval", "math500", "minerva", "olympiad_bench"):
        assert score(data_source, "", {"target": r"\sqrt{2}"}) == NO_ANSWER
        assert score(data_source, r"<answer> \sqrt2 </answer>", {"target": r"\sqrt{2}"}) == CORRECT


@pytest.mark.parametrize(
    "truth", [{}, *({"target": target} for target in [None, "", " ", "$$", ["5"], "5" * (MAX_ANSWER_CHARS + 1)])]
)
@pytest.mark.parametrize("completion", ["", "<answer> 5 </answer>"])
def test_a_malformed_ground_truth_is_an_error_whatever_the_completion(completion, truth):
    with pytest.raises(ValueError, match="math ground_truth"):
        score("minerva", completion, truth)


def test_an_error_comes_before_any_comparison(monkeypatch):
    monkeypatch.setattr(pool, "judge_all", None)
    with pytest.raises(ValueError, match="math ground_truth"):
        score_all([item("x+1", "1+x"), item("1", "")])


HUGE = [r"\frac{", r"\boxed{", r"\text{a}", "{", "$", "1 ", " ", r"\frac1", r"\left(", "a b ", "9,", r"\text{", "x="]


@pytest.mark.parametrize("part", HUGE)
def test_a_huge_answer_is_scored_in_time(part):
    start = time.perf_counter()
    in_process(part * 500_000, "5")
    in_process((part * MAX_ANSWER_CHARS)[: MAX_ANSWER_CHARS - 2], "5")
    assert time.perf_counter() - start < 2.0  # seconds: a bound on hanging, not on speed


@PROPERTY
@given(st.text(max_size=40), st.sampled_from(["5", r"\sqrt{2}", r"\text{Dana}", "(1,2)"]))
def test_any_answer_text_is_judged_or_handed_on_and_never_raises(text, target):
    verdict = in_process(text, target)
    if isinstance(verdict, Comparison):
        assert verdict.answer.isascii() and not set("\"'@#`$%") & set(verdict.answer)


PIECES = [*"0123456789xyAB+-*/=.,()[]{}$%_^ ", r"\frac", r"\sqrt", r"\boxed", r"\text", r"\left(", " and ", "cm"]


@PROPERTY
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_cleaning_twice_changes_nothing_that_is_compared(text):
    once = clean(text)
    assert in_process(once, once) == CORRECT if once else in_process(once, "5") == UNPARSABLE


@pytest.mark.skipif(not GOLD.exists(), reason=f"{GOLD} is not here")
def test_every_gold_answer_of_the_authors_data_is_correct_without_a_worker():
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(GOLD / "test.parquet", columns=["answer", "reward_model"]).to_pylist()
    assert [math.verify(row["answer"], row["reward_model"]["ground_truth"]) for row in rows] == [CORRECT] * 1024
