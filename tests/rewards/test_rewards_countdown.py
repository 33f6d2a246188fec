"""The Countdown verifier: hand-worked answers, attacks, and properties against a second, independent checker."""

import ast
import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import VERIFIERS, Score, score
from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_NUMBERS, WRONG_RESULT, last_answer
from rewards.countdown import MAX_ANSWER_CHARS, evaluate, parse

GOLD = Path(__file__).parents[3] / "shared/reference_data/countdown"
PUZZLE = {"target": 98, "numbers": [44, 19, 35]}
RIGHT = "44 + (19 + 35)"
# No deadline: the cores are shared. Derandomised: a test that fails, fails for everyone.
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)


def countdown(completion: str, target: int = 98, numbers: tuple[int, ...] = (44, 19, 35)) -> Score:
    return score("countdown", completion, {"target": target, "numbers": list(numbers)})


def answered(answer: str, target: int = 98, numbers: tuple[int, ...] = (44, 19, 35)) -> Score:
    return countdown(f"19 + 35 = 54 </think>\n<answer> {answer} </answer>", target, numbers)


def test_the_five_scores_are_the_documented_rewards_and_reasons():
    assert CORRECT == (1.0, True, "correct")
    assert WRONG_RESULT == (0.1, False, "wrong result")
    assert WRONG_NUMBERS == (0.1, False, "wrong numbers")
    assert UNPARSABLE == (0.1, False, "unparsable")
    assert NO_ANSWER == (0.0, False, "no answer")
    assert CORRECT._fields == ("reward", "correct", "reason")


def short_id(parameter: object) -> str:
    return parameter.reason if isinstance(parameter, Score) else ascii(parameter)[:40]


# ---- Golden cases, worked by hand


@pytest.mark.parametrize(
    ("answer", "target", "numbers", "expected"),
    [
        ("44 + (19 + 35)", 98, (44, 19, 35), CORRECT),
        ("35+19+44", 98, (44, 19, 35), CORRECT),
        ("((44)) + ((19 + (35)))", 98, (44, 19, 35), CORRECT),
        ("44 + 19 - 35", 98, (44, 19, 35), WRONG_RESULT),
        ("10 - 3 - 2", 5, (2, 3, 10), CORRECT),  # - is left-associative: not 10 - (3 - 2) = 9
        ("10 - 3 - 2", 9, (2, 3, 10), WRONG_RESULT),
        ("24 / 4 / 2", 3, (2, 4, 24), CORRECT),  # / is left-associative: not 24 / (4 / 2) = 12
        ("24 / 4 * 2", 12, (2, 4, 24), CORRECT),  # not 24 / (4 * 2) = 3
        ("10 - 3 + 2", 9, (2, 3, 10), CORRECT),  # not 10 - (3 + 2) = 5
        ("2 + 3 * 4", 14, (2, 3, 4), CORRECT),  # not (2 + 3) * 4 = 20
        ("(2 + 3) * 4", 20, (2, 3, 4), CORRECT),
        ("20 - 12 / 4", 17, (20, 12, 4), CORRECT),
        ("2 * 3 + 4 * 5", 26, (2, 3, 4, 5), CORRECT),
        ("3 - 8", -5, (3, 8), CORRECT),
        ("8 / (3 - 8 / 3)", 24, (3, 3, 8, 8), CORRECT),  # passes through 1/3: floats give 23.999999999999989
        ("10 / 4", 2, (10, 4), WRONG_RESULT),  # no integer division
        ("1 / 99 / 98 / 97 + 96", 96, (1, 99, 98, 97, 96), WRONG_RESULT),  # off by 1.06e-6: no tolerance
        ("98", 98, (98,), CORRECT),
        ("0 + 7", 7, (0, 7), CORRECT),
        ("5 * 5", 25, (5, 5), CORRECT),
        ("5", 5, (5, 5), WRONG_NUMBERS),  # a number given twice is used twice
        ("3 + \N{ARABIC-INDIC DIGIT FIVE}", 8, (3, 5), UNPARSABLE),  # though int() of that digit is 5
    ],
)
def test_golden_answers(answer, target, numbers, expected):
    assert answered(answer, target, numbers) == expected


# ---- Attacks: the answer's text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # the numbers
        ("98", WRONG_NUMBERS),
        ("98 + 44 - 44", WRONG_NUMBERS),
        ("44 + 44 + 19 - 9", WRONG_NUMBERS),
        ("44 + 19", WRONG_NUMBERS),
        ("44 + 19 + 35 + 44 - 44", WRONG_NUMBERS),
        ("44 + 19 + 35 + 0", WRONG_NUMBERS),
        ("44 + 19 + 35 * 1", WRONG_NUMBERS),
        ("4419 + 35", WRONG_NUMBERS),
        ("441935", WRONG_NUMBERS),
        ("4 + 4 + 19 + 35", WRONG_NUMBERS),
        ("1" * 290, WRONG_NUMBERS),
        ("9*" * 145 + "9", WRONG_NUMBERS),
        # division by zero is a wrong result, found only once the numbers are right
        ("1/0", WRONG_NUMBERS),
        ("44 / (19 - 19)", WRONG_NUMBERS),
        # operators Python has and the prompt does not allow
        ("44**19**35", UNPARSABLE),
        ("44 * * 19 + 35", UNPARSABLE),
        ("44//19+35", UNPARSABLE),
        ("44 + 19 + + 35", UNPARSABLE),
        ("44 % 19 + 35", UNPARSABLE),
        ("44 ^ 19 + 35", UNPARSABLE),
        ("44 + 19 | 35", UNPARSABLE),
        ("44 << 19 + 35", UNPARSABLE),
        ("+44 + 19 + 35", UNPARSABLE),
        ("-(0 - 44) + 19 + 35", UNPARSABLE),
        ("44 - -19 + 35", UNPARSABLE),
        ("44 + (+19 + 35)", UNPARSABLE),
        # incomplete, or not an expression
        ("", UNPARSABLE),
        ("44 + 19 + 35 +", UNPARSABLE),
        ("* 44 + 19 + 35", UNPARSABLE),
        ("44 + (19 + 35", UNPARSABLE),
        ("44 + 19 + 35)", UNPARSABLE),
        ("44 + 19) + (35", UNPARSABLE),
        (")44 + 19 + 35(", UNPARSABLE),
        ("44 + 19 + 35 + ()", UNPARSABLE),
        ("()", UNPARSABLE),
        ("() 44 + 19 + 35", UNPARSABLE),
        ("44 + 19 + 35 ()", UNPARSABLE),
        ("(44 +) 19 + 35", UNPARSABLE),
        ("44 (+ 19) + 35", UNPARSABLE),
        ("44 (19 + 35)", UNPARSABLE),
        ("(44 + 19)(35)", UNPARSABLE),
        ("(44 + 19) 35", UNPARSABLE),
        ("44 + 19 35", UNPARSABLE),
        ("4 4 + 19 + 35", UNPARSABLE),
        ("44, 19, 35", UNPARSABLE),
        ("[44 + 19 + 35]", UNPARSABLE),
        ("44 + 19 + 35 = 98", UNPARSABLE),
        ("x = 44 + 19 + 35", UNPARSABLE),
        ("98 = 44 + 19 + 35", UNPARSABLE),
        ("44 + 19 + 35 # done", UNPARSABLE),
        ("44 + 19 + 35; 98", UNPARSABLE),
        ("44 + 19 + 35.", UNPARSABLE),
        ("$44 + 19 + 35$", UNPARSABLE),
        ("The answer is 44 + 19 + 35", UNPARSABLE),
        ("I don't know", UNPARSABLE),
        # code
        ("__import__('os').system('true')", UNPARSABLE),
        ("exit()", UNPARSABLE),
        ("lambda: 98", UNPARSABLE),
        ("{44 + 19 + 35}", UNPARSABLE),
        ("44 + 19 + 35 if 1 else 0", UNPARSABLE),
        # other ways to write a number
        ("44.0 + 19 + 35", UNPARSABLE),
        ("44 + 19 + 3.5e1", UNPARSABLE),
        ("44e0 + 19 + 35", UNPARSABLE),
        ("4_4 + 19 + 35", UNPARSABLE),
        ("0x2c + 19 + 35", UNPARSABLE),
        ("44j + 19 + 35", UNPARSABLE),
        ("044 + 19 + 35", UNPARSABLE),
        ("44 + 19 + 35 + 00", UNPARSABLE),
        ("1,000 + 44", UNPARSABLE),
        ("\N{ARABIC-INDIC DIGIT FOUR}" * 2 + " + 19 + 35", UNPARSABLE),  # int() of it is 44
        ("4\N{ARABIC-INDIC DIGIT FOUR} + 19 + 35", UNPARSABLE),
        ("\N{FULLWIDTH DIGIT FOUR}" * 2 + " + 19 + 35", UNPARSABLE),
        ("44 + 19 + 3\N{MATHEMATICAL DOUBLE-STRUCK DIGIT FIVE}", UNPARSABLE),
        ("44\N{SUPERSCRIPT TWO} + 19 + 35", UNPARSABLE),  # isdigit(), but int() raises
        ("4\N{SUBSCRIPT FOUR} + 19 + 35", UNPARSABLE),
        ("\N{SUPERSCRIPT TWO} + 44 + 19 + 35", UNPARSABLE),
        ("\N{VULGAR FRACTION ONE HALF} + 44 + 19 + 35", UNPARSABLE),
        ("\N{ROMAN NUMERAL FOUR} + 44 + 19 + 35", UNPARSABLE),
        # look-alikes and invisible characters
        ("44 \N{MULTIPLICATION SIGN} 19 + 35", UNPARSABLE),
        ("44 \N{DIVISION SIGN} 19 + 35", UNPARSABLE),
        ("44 \N{MINUS SIGN} 19 + 35", UNPARSABLE),
        ("44 \N{EN DASH} 19 + 35", UNPARSABLE),
        ("44 \N{ASTERISK OPERATOR} 19 + 35", UNPARSABLE),
        ("44 \N{FULLWIDTH PLUS SIGN} 19 + 35", UNPARSABLE),
        ("44 \N{DIVISION SLASH} 19 + 35", UNPARSABLE),
        ("\N{FULLWIDTH LEFT PARENTHESIS}44 + 19\N{FULLWIDTH RIGHT PARENTHESIS} + 35", UNPARSABLE),
        ("44 +\N{ZERO WIDTH SPACE} 19 + 35", UNPARSABLE),
        ("4\N{ZERO WIDTH JOINER}4 + 19 + 35", UNPARSABLE),
        ("\N{ZERO WIDTH NO-BREAK SPACE}44 + 19 + 35", UNPARSABLE),
        ("\N{RIGHT-TO-LEFT OVERRIDE}44 + 19 + 35", UNPARSABLE),
        ("44 +\N{NO-BREAK SPACE}19 + 35", UNPARSABLE),
        ("44 + 19 + 35\N{LINE SEPARATOR}", UNPARSABLE),
        ("44 + 19 + 35\0", UNPARSABLE),
        ("44 + 19 + 35\ud800", UNPARSABLE),
        # whitespace is free between tokens
        ("\n44\n+\r\n(19\t+\n35)\n", CORRECT),
        ("44+(19+35)", CORRECT),
        # size
        ("(" * 10_000 + RIGHT + ")" * 10_000, UNPARSABLE),
        ("(" * 10_000, UNPARSABLE),
        (")" * 10_000, UNPARSABLE),
        ("9" * 10_000, UNPARSABLE),
        ("9*" * 10_000 + "9", UNPARSABLE),
        ("(" * 120 + RIGHT + ")" * 120, CORRECT),  # silly, but right
    ],
    ids=short_id,
)
def test_attacks_on_the_answer(answer, expected):
    assert answered(answer) == expected


@pytest.mark.parametrize("answer", ["3 / (5 - 5)", "3 / (5 * (5 - 5))", "(5 - 5) / (3 - 3)", "0 / 0", "3 / 0 * 0"])
def test_division_by_zero_is_a_wrong_result(answer):
    numbers = tuple(int(digits) for digits in re.findall("[0-9]+", answer))
    assert answered(answer, 0, numbers) == WRONG_RESULT


def test_the_longest_answer_is_read_and_one_character_more_is_not():
    assert countdown(f"<answer>{RIGHT:{MAX_ANSWER_CHARS}}</answer>") == CORRECT
    assert countdown(f"<answer>{RIGHT:{MAX_ANSWER_CHARS + 1}}</answer>") == UNPARSABLE


# ---- Attacks: where the answer stands


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", NO_ANSWER),
        ("Therefore, the final equation is 44 + (19 + 35)", NO_ANSWER),
        ("return the final answer in <answer> </answer> tags", UNPARSABLE),  # an echoed, empty block is a block
        ("for example <answer> (1 + 2) / 3 </answer>.", WRONG_NUMBERS),  # so is the prompt's example
        (f"<answer> {RIGHT}", NO_ANSWER),
        (f"<answer> {RIGHT} <answer>", NO_ANSWER),
        (f"{RIGHT} </answer>", NO_ANSWER),
        (f"</answer> {RIGHT} <answer>", NO_ANSWER),
        (f"<answer> {RIGHT} </answer", NO_ANSWER),
        (f"<ANSWER> {RIGHT} </ANSWER>", NO_ANSWER),
        (f"<answer> {RIGHT} </Answer>", NO_ANSWER),
        (f"< answer > {RIGHT} </ answer >", NO_ANSWER),
        (f"<answer id=1> {RIGHT} </answer>", NO_ANSWER),
        (f"<answer/> {RIGHT} </answer>", NO_ANSWER),
        (f"&lt;answer&gt; {RIGHT} &lt;/answer&gt;", NO_ANSWER),
        ("<answer></answer>", UNPARSABLE),
        ("<answer> \n </answer>", UNPARSABLE),
        (f"<answer>{RIGHT}</answer>", CORRECT),
        (f"<answer>\n{RIGHT}\n</answer>", CORRECT),
        (f"<answer> {RIGHT} </answer>\n", CORRECT),
        (f"<answer> {RIGHT} </answer>\n\nUser: thanks! 1 + 1", CORRECT),
        (f"<answer> {RIGHT} </answer><|endoftext|>", CORRECT),
        (f"<answer> 1 </answer> no: <answer> {RIGHT} </answer>", CORRECT),
        (f"<answer> {RIGHT} </answer> no: <answer> 44 </answer>", WRONG_NUMBERS),
        (f"<answer> {RIGHT} </answer> no: <answer></answer>", UNPARSABLE),
        (f"<answer> {RIGHT} </answer> no: <answer> 44", CORRECT),
        (f"<answer> <answer> {RIGHT} </answer>", CORRECT),
        (f"<answer> <answer> {RIGHT} </answer> </answer>", CORRECT),
        (f"<answer> {RIGHT} </answer> 1 </answer>", CORRECT),
        (f"<answer> 44 <answer> {RIGHT} </answer>", CORRECT),
        (f"<answer> {RIGHT} <answer> 44 </answer>", WRONG_NUMBERS),
        (f"<answer> <think> {RIGHT} </think> </answer>", UNPARSABLE),
    ],
)
def test_attacks_on_the_tags(completion, expected):
    assert countdown(completion) == expected


def test_the_text_of_a_block_is_returned_untouched():
    assert last_answer("<answer> 1 </answer> 2 </answer> <answer> 3") == " 1 "
    assert last_answer("<answer>\n\u00a0x </answer>") == "\n\u00a0x "
    assert last_answer("<answer></answer>") == ""
    assert last_answer("answer") is None


MEGABYTES_10 = 10_000_000
HUGE_COMPLETIONS = {
    "open tags": "<answer>" * (MEGABYTES_10 // 8),
    "close tags": "</answer>" * (MEGABYTES_10 // 9),
    "empty blocks": "<answer></answer>" * (MEGABYTES_10 // 17),
    "open tags, then close tags": "<answer>" * (MEGABYTES_10 // 16) + "</answer>" * (MEGABYTES_10 // 18),
    "almost tags": "<answer" * (MEGABYTES_10 // 7),
    "almost closed": "<answer>" + "</answer" * (MEGABYTES_10 // 8),
    "brackets": "<" * MEGABYTES_10,
    "parentheses": f"<answer>{'(' * MEGABYTES_10}</answer>",
    "digits": f"<answer>{'9' * MEGABYTES_10}</answer>",
    "products": f"<answer>{'9*' * (MEGABYTES_10 // 2)}9</answer>",
    "spaces": f"<answer>{' ' * MEGABYTES_10}</answer>",
    "wide characters": "\U0001f600<answer>" * (MEGABYTES_10 // 9),
}


@pytest.mark.parametrize("name", HUGE_COMPLETIONS)
def test_ten_megabytes_are_scored_in_time(name):
    start = time.perf_counter()
    assert countdown(HUGE_COMPLETIONS[name]) in (NO_ANSWER, UNPARSABLE)
    assert time.perf_counter() - start < 2.0  # seconds; it takes 0.004: a bound on hanging, not on speed


# ---- Our own data


def test_numpy_integers_and_arrays_are_integers():
    truth = {"target": np.int64(98), "numbers": np.array([44, 19, 35])}
    assert score("countdown", f"<answer> {RIGHT} </answer>", truth) == CORRECT


@pytest.mark.parametrize(
    "truth", [{"target": "98", "numbers": [44, 19, 35]}, {"target": 98, "numbers": ["44", 19, "35"]}]
)
def test_a_text_of_a_whole_number_is_that_number(truth):
    """The authors' evaluation file writes all its targets as texts."""
    assert score("countdown", f"<answer> {RIGHT} </answer>", truth) == CORRECT
    assert score("countdown", "<answer> 44 + 19 - 35 </answer>", truth) == WRONG_RESULT
    assert score("countdown", "<answer> 2 - 10 </answer>", {"target": "-8", "numbers": [2, 10]}) == CORRECT


def test_ground_truth_is_not_written_to():
    truth = {"target": 98, "numbers": [44, 19, 35]}
    score("countdown", f"<answer> {RIGHT} </answer>", truth)
    assert truth == PUZZLE


@pytest.mark.parametrize(
    "truth",
    [
        {},
        {"target": 98},
        {"numbers": [44, 19, 35]},
        {"target": None, "numbers": [44, 19, 35]},
        {"target": 98.0, "numbers": [44, 19, 35]},
        *({"target": text, "numbers": [44, 19, 35]} for text in ["", "98.0", "9 8", "+98", "\u0669\u0668", "9" * 301]),
        {"target": 98, "numbers": None},
        {"target": 98, "numbers": 44},
        {"target": 98, "numbers": "44"},
        {"target": 98, "numbers": {"44": 0, "19": 0, "35": 0}},
        {"target": 98, "numbers": [44, "19.0"]},
        {"target": 98, "numbers": [44, 19.5]},
        {"target": 98, "numbers": []},
        {"target": 98, "numbers": [44, -19]},
        {"target": 98, "numbers": [44, "-19"]},
    ],
)
@pytest.mark.parametrize("completion", ["no answer", f"<answer> {RIGHT} </answer>"])
def test_a_malformed_ground_truth_is_an_error_whatever_the_completion(completion, truth):
    with pytest.raises(ValueError, match=r"countdown ground_truth \{"):
        score("countdown", completion, truth)


@pytest.mark.parametrize("data_source", ["count_down", "Countdown", ""])
def test_an_unknown_data_source_is_an_error_that_names_the_known_ones(data_source):
    with pytest.raises(ValueError, match=f"'{data_source}' has no verifier; known: .*countdown") as error:
        score(data_source, "", PUZZLE)
    assert all(known in str(error.value) for known in VERIFIERS)


@pytest.mark.skipif(not GOLD.exists(), reason=f"{GOLD} is not here")
@pytest.mark.parametrize(("split", "rows"), [("train", 10_240), ("test", 1_024)])
def test_every_gold_answer_of_the_authors_data_is_correct(split, rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(GOLD / f"{split}.parquet", columns=["data_source", "answer", "reward_model"]).to_pylist()
    scores = [score(row["data_source"], row["answer"], row["reward_model"]["ground_truth"]) for row in table]
    assert scores == [CORRECT] * rows


# ---- Properties


SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def reference(text: str) -> tuple[Fraction | None, list[int]] | None:
    """(value or None if it divides by zero, sorted numbers) by Python's own parser; None if `text` is not allowed."""
    if not re.fullmatch(r"[0-9+\-*/() \t\r\n]*", text) or re.search(r"(?<![0-9])0[0-9]", text):
        return None
    try:
        tree = ast.parse(re.sub(r"\s", " ", text).strip(), mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), sorted(numbers)
    except (SyntaxError, LookupError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction | None:
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SYMBOLS:
            return apply(SYMBOLS[type(op)], _value(left, numbers), _value(right, numbers))
    raise LookupError(f"{type(node).__name__} is not in the grammar")


def apply(op: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None or (op == "/" and right == 0):
        return None
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[op]


def reference_score(text: str, target: int, numbers: list[int]) -> Score:
    """What an answer `text` must score, by `reference`."""
    found = reference(text)
    if found is None:
        return UNPARSABLE
    if found[1] != sorted(numbers):
        return WRONG_NUMBERS
    return CORRECT if found[0] == target else WRONG_RESULT


space = st.sampled_from(["", "", " ", "\n", "\t ", "\r\n"])


@st.composite
def expressions(draw: st.DrawFn, leaves: int = 6) -> tuple[str, str, Fraction | None, list[int]]:
    """(outermost operator or "", text, value, numbers) of a random tree, with few or needless parentheses."""
    if leaves == 1 or draw(st.integers(0, 3)) == 0:
        number = draw(st.integers(0, 99))
        op, text, value, numbers = "", str(number), Fraction(number), [number]
    else:
        share = draw(st.integers(1, leaves - 1))
        op = draw(st.sampled_from("+-*/"))
        left_op, left, left_value, left_numbers = draw(expressions(share))
        right_op, right, right_value, right_numbers = draw(expressions(leaves - share))
        if left_op and left_op in "+-" and op in "*/":
            left = f"({left})"
        if right_op and ((right_op in "+-" and op != "+") or op == "/"):
            right = f"({right})"
        text = left + draw(space) + op + draw(space) + right
        value, numbers = apply(op, left_value, right_value), left_numbers + right_numbers
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        op, text = "", f"({draw(space)}{text}{draw(space)})"
    return op, draw(space) + text + draw(space), value, numbers


@PROPERTY
@given(expressions())
def test_a_random_expression_has_its_exact_value(expression):
    _, text, value, numbers = expression
    assert evaluate(parse(text)) == value
    target = 0 if value is None else value.numerator // value.denominator
    hit = value is not None and value.denominator == 1
    assert answered(text, target, tuple(numbers)) == (CORRECT if hit else WRONG_RESULT)
    assert answered(text, target + 1, tuple(numbers)) == WRONG_RESULT
    assert answered(text, target, (*numbers, 7)) == WRONG_NUMBERS


PIECES = [*"+-*/()+-*/()", *"0123456789", " ", "\n", "12", "35", "**", "//", "00", ".", "=", "\0", "\u0663", "\u2212"]


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A text of `texts` with one to three pieces put in, left out or exchanged."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 3))):
        at, cut = draw(st.integers(0, len(text))), draw(st.integers(0, 2))
        text = text[:at] + draw(st.sampled_from(["", *PIECES])) + text[at + cut :]
    return text


@PROPERTY
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | mutated(expressions(4).map(lambda drawn: drawn[1])))
def test_what_parses_is_exactly_what_pythons_parser_and_the_grammar_allow(text):
    found = reference(text)
    if found is None:
        assert answered(text) == UNPARSABLE
    else:
        value, numbers = found
        hit = value is not None and value.denominator == 1
        target = int(value) if hit else 0
        assert answered(text, target, tuple(numbers)) == (CORRECT if hit else WRONG_RESULT)


@PROPERTY
@given(mutated(st.just(RIGHT)))
def test_a_mutated_right_answer_scores_what_the_reference_says(text):
    assert answered(text) == reference_score(text, **PUZZLE)


any_text = st.text(st.characters(), max_size=60)  # all of Unicode, lone surrogates and NUL too
tagged_text = st.lists(st.sampled_from(["<answer>", "</answer>", "<answer", RIGHT, "44", "\n"])).map("".join)


@PROPERTY
@given(any_text)
def test_any_answer_text_is_scored_and_never_raises(text):
    assert answered(text) == reference_score(f" {text} ", **PUZZLE)


@PROPERTY
@given(tagged_text)
def test_the_last_closed_block_is_the_one_a_backtracking_regex_finds(completion):
    blocks = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", completion, re.DOTALL)
    assert countdown(completion) == (reference_score(blocks[-1], **PUZZLE) if blocks else NO_ANSWER)
