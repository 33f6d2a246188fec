"""The exact-number verifier: hand-worked answers, attacks, and properties of random numbers."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, score
from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT
from rewards.numeric import MAX_ANSWER_CHARS, MAX_EXPONENT, parse, parse_number

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


def answered(answer: str, target: object = "18", data_source: str = "openai/gsm8k") -> Score:
    return score(data_source, f"9 * 2 = 18 </think>\n<answer> {answer} </answer>", {"target": target})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", Fraction(18)),
        ("-18", Fraction(-18)),
        ("\u221218", Fraction(-18)),  # the minus sign
        ("+18", Fraction(18)),
        ("018", Fraction(18)),  # AIME's 3 digits
        ("18.", Fraction(18)),
        ("18.00", Fraction(18)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("1,234", Fraction(1234)),
        ("1,234,567.5", Fraction(2469135, 2)),
        (r"1,\!234", Fraction(1234)),
        ("1{,}234", Fraction(1234)),
        (r"10\,000", Fraction(10000)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"1\frac{9}{10}", Fraction(19, 10)),
        ("5e3", Fraction(5000)),
        ("1.5E-2", Fraction(3, 200)),
        (r"5 \times 10^{3}", Fraction(5000)),
        ("5*10^3", Fraction(5000)),
        ("$18", Fraction(18)),
        (r"\$18", Fraction(18)),
        ("-$5", Fraction(-5)),
        ("$18$", Fraction(18)),
        ("\u20ac18", Fraction(18)),
        ("50%", Fraction(50)),  # a unit: not 1/2
        (r"50\%", Fraction(50)),
        (r"60^\circ", Fraction(60)),
        (r"60^{\circ}", Fraction(60)),
        (r"\boxed{18}", Fraction(18)),
        (r"$\boxed{\frac{3}{4}}$.", Fraction(3, 4)),
        (r"18\text{ dollars}", Fraction(18)),
        ("18 dollars", Fraction(18)),
        ("5km", Fraction(5)),
        ("5 km/h", Fraction(5)),
        ("5 m^2", Fraction(5)),
        ("5 square feet", Fraction(5)),
        ("**18**", Fraction(18)),
        ("x = 18", Fraction(18)),
        ("The answer is: 18.", Fraction(18)),
        ("m+n = 18", Fraction(18)),
        ("$m + n = 18$", Fraction(18)),
        (r"\boxed{p+q+r=18}", Fraction(18)),
        ("The sum is a + b = 18.", Fraction(18)),
        ("18 cm\u00b2", Fraction(18)),
        ("18 m\u00b3", Fraction(18)),
        (r"18 \text{ cm}^2", Fraction(18)),
        (r"18 \mathrm{cm}^{2}", Fraction(18)),
        (r"18 \text{ m}/\text{s}^2", Fraction(18)),
        (r"18 \mathrm{~km} / \mathrm{h}", Fraction(18)),
        (r"18 \text{ N} \cdot \text{m}", Fraction(18)),
        ("18 m s^{-1}", Fraction(18)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"-1.1\overline{6}", Fraction(-7, 6)),
        (r".\bar3", Fraction(1, 3)),
        (r"0.\dot{3} = 1/3", Fraction(1, 3)),
        (r"3.1\overline{42}", Fraction(3111, 990)),
        ("1/2 = 0.5", Fraction(1, 2)),
        ("18 or 18.0", Fraction(18)),
    ],
    ids=ascii,
)
def test_one_value_is_read(text, value):
    assert parse(text) == {value}
    assert answered(text, str(value)) == CORRECT
    assert answered(text, str(value + Fraction(1, 10**9))) == WRONG_RESULT  # no tolerance


@pytest.mark.parametrize("answer", ["18, 19", "18 or 19", "18 and 19", "18; 19", "1.234,5", "1,23"])
def test_several_numbers_are_wrong_unless_equal(answer):
    assert answered(answer) == WRONG_RESULT
    assert answered(answer, "19") == WRONG_RESULT


@pytest.mark.parametrize(
    "answer",
    [
        "", "eighteen", "x", "18 or nineteen", "not 18", "negative 18", "minus 18", "18 million", "18 thousand",
        "half of 18", "18 squared", "18!", "18^2", "2^{18}", r"\sqrt{18}", "18pi", "18x", "18i", "18 plus 18",
        "18 - 18", "18+18", "18*18", "18 18", "18(18)", "(18)(18)", r"18\cdot 18", "9 * 2 = 18", "18 x 18",
        "18 to 18", "1$8 8", "1$8", "18/0", r"\frac{18}{0}", "18/", "1 0 8", "10^18", "0x12", "18_9", "1_8", "<18>",
        "18 < 19", "-(18)", "--18", "\u0661\u0668", "\uff11\uff18", "1\u200b8", "\u200b18", "18\u00b2", "18\0",
        "18\ud800", "\u2460", "\u00bd", f"1e{MAX_EXPONENT + 1}", "1e99999999999", "5*10^{99999999}", "NaN", "inf",
        "__import__('os')", "exec 18; eval(18)#",
    ],
    ids=ascii,
)
def test_what_is_not_one_number_is_unparsable(answer):
    assert answered(answer) == UNPARSABLE


WORDS_OF_QUANTITY = ("million millions billions thousand thousands hundreds tens dozens pairs lakh lakhs crore crores "
                     "mln bn sixteenths tenths")


@pytest.mark.parametrize("word", WORDS_OF_QUANTITY.split())
def test_a_word_of_quantity_changes_the_number_in_singular_and_plural(word):
    for answer in (f"18 {word}", f"18 {word.title()} people", rf"18\text{{ {word}}}"):
        assert answered(answer) == UNPARSABLE


@pytest.mark.parametrize("answer", ["18K", r"18\text{K}", "18 K", "18k", "18M", "18B", "18a", "18 c", "18 d"])
def test_a_letter_that_may_be_a_thousand_or_a_variable_is_no_unit(answer):
    assert answered(answer) == UNPARSABLE


@pytest.mark.parametrize(
    "answer",
    [
        "x^2 = 18", "x\u00b2 = 18", "x^{-1} = 18", "x/y = 18", "xy = 18", "x y = 18", "2x = 18", "-x = 18", "|x| = 18",
        "2m+n = 18", "2 m+n = 18", "m+n+1 = 18", "m-n = 18", "18 + m+n = 18", "18 m+n = 18", "18 = m+n = 18",
        "f(2) = 18", "m+n+18", r"18 \cdot m", r"18 dol\cdotlars", "18^{-1}", r"\overline{3}",
        r"0.\overline{}", r"0.\overline{1}8",
    ],
)
def test_an_equation_in_anything_but_a_name_or_a_sum_of_names_is_not_its_right_side(answer):
    assert answered(answer) in (UNPARSABLE, WRONG_RESULT)


@pytest.mark.parametrize("target", [18, 18.0, np.int64(18), np.float64(18), " 18 ", "18 dollars", r"\boxed{18}"])
def test_the_target_may_be_text_or_a_number(target):
    assert answered("18", target) == CORRECT
    assert answered("18.5", target) == WRONG_RESULT


@pytest.mark.parametrize(
    "truth", [{}, *({"target": t} for t in [None, "", "x", "1 or 2", float("nan"), float("inf"), True, [18]])]
)
@pytest.mark.parametrize("completion", ["", "<answer> 18 </answer>"])
def test_a_malformed_ground_truth_is_an_error_whatever_the_completion(completion, truth):
    with pytest.raises(ValueError, match="numeric ground_truth"):
        score("aime", completion, truth)


def test_the_data_sources_share_the_rules_and_only_the_last_closed_block_counts():
    for data_source in ("openai/gsm8k", "aime", "amc"):
        assert answered("18", 18, data_source) == CORRECT
        assert score(data_source, "18", {"target": 18}) == NO_ANSWER
        assert score(data_source, "<answer> 18 </answer> <answer> 17 </answer>", {"target": 18}) == WRONG_RESULT


HUGE = ["9", "9/", "1e9", ",111", "-", " ", "1 ", r"\frac{", "a", "=18", "((", r"\boxed{", "10^", "9.9", "^\\circ"]
HUGE += ["a+", "a + ", ".\\bar9", "m^2", "m}^2", "/\\text{~"]


@pytest.mark.parametrize("part", HUGE)
def test_a_huge_answer_is_scored_in_time(part):
    start = time.perf_counter()
    assert parse(part * 1_000_000) is None
    parse((part * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS])
    parse(f"1{part * MAX_ANSWER_CHARS}"[:MAX_ANSWER_CHARS])
    assert time.perf_counter() - start < 2.0  # seconds: a bound on hanging, not on speed


def test_the_longest_answer_is_read_and_one_character_more_is_not():
    assert parse(f"{18:{MAX_ANSWER_CHARS}}") == {Fraction(18)}
    assert parse(f"{18:{MAX_ANSWER_CHARS + 1}}") is None
    assert parse(f"1e{MAX_EXPONENT}") == {Fraction(10**MAX_EXPONENT)}


@PROPERTY
@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "${}$", "{} km", r"\boxed{{{}}}", "n = {}"]))
def test_a_random_number_has_its_value_in_each_form(value, form):
    upper, lower = value.numerator, value.denominator
    texts = [f"{upper}/{lower}", rf"\frac{{{upper}}}{{{lower}}}", f"{upper:,}/{lower:,}"]
    texts += [str(upper), f"{upper:,}", f"{upper}.0"] if lower == 1 else []
    for text in texts:
        assert parse_number(text) == value
        assert answered(form.format(text), str(value)) == CORRECT
        assert answered(form.format(text), str(value + 1)) == WRONG_RESULT


PIECES = [*"0123456789+-*/.,=;:^(){}$% ", "18", "18", r"\frac", r"\boxed", "e3", " or ", " not ", "\u200b", "\ud800"]


@PROPERTY
@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_answer_text_is_scored_and_never_raises(text):
    assert answered(text, "123456789") in (UNPARSABLE, WRONG_RESULT)
