"""The verifier of mathematical answers: strings and numbers in process, the rest by math-verify in worker processes."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, competition_math, pool, score, score_all
from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT
from rewards.competition_math import MAX_ANSWER_CHARS, clean, verify
from rewards.pool import Comparison

GOLD = Path(__file__).parents[3] / "shared/reference_data/math"
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


def rewarded(target: str, answers: list[str]) -> list[str]:
    """Those that score 1.0."""
    scores = score_all([item(answer, target) for answer in answers])
    return [answer for answer, one in zip(answers, scores, strict=True) if one.reward == 1.0]


# ---- equations ----


def test_an_equation_in_something_else_is_not_its_right_side():
    for target, answers in [
        ("4", ["2x=4", "x^2=4", "x+1=4", "x-y=4", "5-3=4", "f(2)=4", "-x=4", "|x|=4", "xy=4", "2xy=4", "x/y=4", "4 =",
               "m+2n=4", "m+n+1=4", "n(n+1)=4", r"\frac{x}{2}=4", r"\sqrt{x}=4", r"\sin x=4", "2^{x}=4", r"\pi=4",
               "AB+1=4", "4=2x", "x^2==4", r"x^2 = 4 \cdot 1", "2x = 2+2 = 4", r"2x \equiv 4", r"5 \equiv 4", "x=5=4",
               "x = 4 = 5"]),
        ("3", ["1+1=3", "1+2=4", "1+2=3=4"]),
        ("5,6", ["2x=5,6", "x^2=5, x=6", "3=5, 6"]),
        ("(5,6)", ["(2,3)=(5,6)", "2x=(5,6)", "(x,2)=(5,6)"]),
        ("x=5", ["2x=5", "y=5", "1+1=5", "f(2)=5"]),
    ]:
        assert rewarded(target, answers) == []


def test_names_of_what_was_asked_and_true_chains_are_left_out():
    for target, answers in [
        ("4", ["x=4", "x==4", "= 4", "4 = x", "x = y = 4", "f(x)=4", "P(A) = 4", r"\alpha=4", "x_1=4", "x_{12} = 4",
               "AB=4", r"\angle ABC = 4^\circ", "[ABC] = 4", "m+n=4", "a + b + c = 4", r"x \equiv 4", "2+2=4",
               "x=2+2=4", "x = 2+2", "8/2 = 4", r"\sum_{n=1}^{2} 2 = 4", r"x = 4\text{ cm}"]),
        ("5,6", ["x=5, x=6", r"x=5\text{ or }x=6", "x=5,6", "x_1=5, x_2=6", "x=4+1=5, x=6", "5=x, 6=x"]),
        ("(5,6)", ["(x,y)=(5,6)", "x=(5,6)", "(x, y) = (4+1, 6)", "P=(x,y)=(5,6)"]),
        ("1234", ["1,234 = 1234", "x = 1,234"]),
        ("y=2x+3", ["2x+3", "3+2x", "y-3=2x", "2y=4x+6"]),
    ]:
        assert rewarded(target, answers) == answers


# ---- units, degrees, logarithms, repeating decimals, signs of Unicode ----

UNITS = ["km/h", "m", "s", "J", "m/s", "m/s^2", "m^2", "cm^{2}", "cm\u00b2", "kg m^2/s^2", r"N \cdot m", "sq ft", "in",
         "sq. ft.", "mi", "kW", "Hz", "miles/hour", "dollars/day", "square units", r"\mathrm{~km} / \mathrm{h}",
         r"\text{ km/h}", r"\text{ m/s}^2", r"\text{ m}/\text{s}", r"\mathrm{m\,s^{-1}}", r"\text{ cm}^2",
         r"\mathrm{cm}^{3}", r"\rm{cm}", r"\mathrm{~K}",
         r"\text{ kcal m}^{-2} \text{yr}^{-1}", r"^\circ C", r"^\circ\text{C}", "\u00b0C"]


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_a_unit_changes_nothing(unit):
    assert in_process(f"25 {unit}", "25") == in_process(f"$x = 25 {unit}$.", "25") == CORRECT
    assert in_process(rf"\frac12 {unit}", r"\frac{1}{2}") == CORRECT
    assert in_process(f"24 {unit}", "25") == WRONG_RESULT


def test_what_may_be_a_variable_a_thousand_or_another_number_is_no_unit():
    answers = ["5 x", "5x", "5m", "5 n", "5 ab", "5 xy", "5 xyz", "5/m", "5 cm/2", "5 + 1 cm", "5\u00b2", "5K", "5k",
               "5 M", r"5\text{K}", r"5\text{k}", r"5\text{ M}", r"5\text{B}", "25, 26 m", "5 cm or 6 cm"]
    assert rewarded("5", answers) == []
    for target in ("2n", "2 m", "2 m/s", "2 n", "2 J"):
        assert rewarded(target, ["2"]) == []


@pytest.mark.parametrize("word", ["million", "millions", "thousands", "dozens", "hundreds", "pairs", "lakh", "crores",
                                  "tens", "bn", "mln", "sixteenths"])
def test_a_word_of_quantity_changes_the_number_in_singular_and_plural(word):
    answers = [f"5 {word}", rf"5\text{{ {word}}}", f"5 {word} dollars", rf"5 \mathrm{{~{word.title()}}}"]
    assert rewarded("5", answers) == []


def test_two_texts_of_letters_are_equal_or_not_and_no_products():
    for target, answer in [("on", "no"), ("ABC", "CBA"), ("AB", r"\text{BA}"), ("cat", "act"), ("no", "on")]:
        assert in_process(answer, target) == in_process(answer, rf"\text{{{target}}}") == WRONG_RESULT
        assert in_process(target, target) == in_process(rf"\text{{{target}}}", target) == CORRECT


def test_the_halves_of_a_day_are_told_apart_where_both_are_named():
    right = ["10 pm", "10 p.m.", r"10\text{ pm}", "10"]
    assert rewarded(r"10\text{ p.m.}", right) == right
    assert rewarded(r"10\text{ p.m.}", ["10 am", "10 a.m.", r"10\text{ a.m.}", "11 pm"]) == []


def test_degrees_of_a_sine_are_no_radians():
    half = [r"\sin 30^\circ", r"\sin{30^{\circ}}", r"\sin(30^\circ)", "\\cos 60\u00b0", r"2\sin 15^\circ\cos 15^\circ",
            r"\sin^2 45^\circ", r"\sin 30\degree"]
    assert rewarded(r"\frac12", [*half, r"\sin 30"]) == half
    assert rewarded(r"\sin 20^\circ", [r"\sin 20^{\circ}", r"\cos 70^\circ", r"\sin 20"]) == [
        r"\sin 20^{\circ}", r"\cos 70^\circ"]


def test_a_base_of_a_logarithm_may_have_braces():
    right = [r"\log_2 3", r"\log_{2} 3", r"\log_{2}{3}", r"\log_2(3)", r"\frac{\ln 3}{\ln 2}"]
    for target in right[:2]:
        assert rewarded(target, [*right, r"\log_3 2", r"\log_{23}", r"\log 3"]) == right


def test_repeating_decimals_are_exact():
    right = [r"0.\overline{3}", r"0.\overline3", r".\bar{3}", r"0.\dot{3}", r"0.3\overline{3}"]
    assert rewarded(r"\frac13", [*right, "0.3", r"0.\overline{33}4", r"\overline{3}", r"0.0\overline{3}"]) == right
    assert rewarded(r"0.1\overline{6}", ["1/6", r"\frac{1}{6}", "0.16", "0.166667"]) == ["1/6", r"\frac{1}{6}"]


def test_signs_of_unicode_are_latex():
    assert rewarded(r"2\pi", ["2\u03c0", "2 \u03c0 cm", "2pi", "2*pi"]) == ["2\u03c0", "2 \u03c0 cm", "2pi", "2*pi"]
    assert rewarded(r"3\sqrt{2}", ["3\u221a2", "3\u00b7\u221a(2)", "3\u00d7\u221a2", "\u221a3"]) == [
        "3\u221a2", "3\u00b7\u221a(2)", "3\u00d7\u221a2"]
    assert rewarded(r"x \le 5", ["x \u2264 5", "x \u2265 5"]) == ["x \u2264 5"]
    assert rewarded("25", ["5\u00b2", "x\u00b2 = 25"]) == ["5\u00b2"]


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
    monkeypatch.setattr(pool, "compare_all", None)
    with pytest.raises(ValueError, match="math ground_truth"):
        score_all([item("x+1", "1+x"), item("1", "")])


HUGE = [r"\frac{", r"\boxed{", r"\text{a}", "{", "$", "1 ", " ", r"\frac1", r"\left(", "a b ", "9,", r"\text{", "x=",
        "a+", "=5", ",a=", "5 cm ", "cm/", r"5 \text{m}", r"\text{m}/", "m^2", "{m/s^", r"5 m\cdot ", "\u221a(",
        r"\sin 3^\circ", r"9.\bar9", "(a,", "a.m.", "\u03c0", r"\text {a^-1 "]


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
    verify = competition_math.verify
    assert [verify(row["answer"], row["reward_model"]["ground_truth"]) for row in rows] == [CORRECT] * 1024
