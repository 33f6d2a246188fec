r"""One number, compared exactly (GSM8K, AIME, AMC).

A number is `1,234`, `-0.5`, `3/4`, `\frac{3}{4}`, `1 1/2`, `0.1\overline{6}`, `5e3` or `5 \times 10^{3}`. Around it may
stand currency and percent signs, degrees, brackets, `$...$`, `\boxed{}`, `\text{}`, a name (`x =`, `m + n =`) and a
unit in words (`18 dollars`, `5 km/h`, `3 m^2`): none of them changes the value, so `50%` is 50 and not 1/2. Several
numbers must be equal, and be joined by `= , ; :`, `and`, `or` alone (`1/2 = 0.5`); `9 * 2 = 18`, `x^2 = 18` and `2 plus
2` are unparsable. So are words that change a number (`not 18`, `5 millions`, `negative 5`, `5 squared`, `log 5`) or
spell one, a letter that can only be a variable (`5x`) or is a thousand (`18K`), digits that are not ASCII, invisible
characters other than spaces, and all that is longer than MAX_ANSWER_CHARS.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer
from rewards.units import POWER, UNIT_LETTERS, VALUE_WORDS

MAX_ANSWER_CHARS = 300
MAX_EXPONENT = 400  # of ten: with the length it bounds every number to about 700 digits

DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:
        (?P<before>[0-9]*)\.(?P<once>[0-9]*)\\(?:overline|bar|dot)\s*(?:\{{\s*(?P<again>[0-9]+)\s*\}}|(?P<again_digit>[0-9]))
      | (?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac\s*
            (?:\{{\s*(?P<upper_sign>[-+]?)\s*(?P<upper>{DECIMAL})\s*\}}|(?P<upper_digit>[0-9]))\s*
            (?:\{{\s*(?P<lower>{DECIMAL})\s*\}}|(?P<lower_digit>[0-9]))
      | (?:(?P<plain_whole>[0-9]+)[ ]+)?(?P<plain_upper>{DECIMAL})\s*/\s*(?P<plain_lower>{DECIMAL})
      | (?P<decimal>{DECIMAL})(?:[eE](?P<e>[-+]?[0-9]+)
            |\s*(?:\\times|\\cdot|[*x])\s*10\s*\^\s*(?P<brace>\{{)?\s*(?P<power>[-+]?[0-9]+)(?(brace)\s*\}}))?
    )""",
    re.VERBOSE,
)
TEXT = "text|mbox|textbf|textrm|mathrm|mathbf"
BEFORE_UNIT = rf"\s*(?:\\(?:{TEXT})\s*\{{[\s~]*)?"
TOKEN = re.compile(
    rf"""(?P<number>{NUMBER.pattern})
    | (?<![A-Za-z0-9])(?P<sum>[A-Za-z](?:\s*\+\s*[A-Za-z](?![A-Za-z]))+)(?=\s*=)
    | (?<![A-Za-z])(?P<equation>[A-Za-z]\s*/\s*[A-Za-z]|[a-z]\s*[a-z]|[A-Za-z](?:{POWER}|[\u00b2\u00b3]))(?=\s*=)
    | (?P<word>[A-Za-z]+)(?:\s*\}}?\s*(?:{POWER})|[\u00b2\u00b3])?
    | (?P<joint>[=,;:])
    | [\s.?'"()\[\]{{}}*~] | \\(?:boxed|fbox|left|right|{TEXT})(?![A-Za-z])
    | (?:/|(?P<cdot>\\cdot(?![A-Za-z])))(?={BEFORE_UNIT}[A-Za-z])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
SPACING = re.compile(r"\\[!,]|\\displaystyle(?![A-Za-z])")  # what leaves no gap between digits
SIGNS = re.compile(r"\\?[$%]|[\u20ac\u00a3\u00a5\u00b0]|\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])|\\[ ;:]")
CHANGING_WORDS = VALUE_WORDS | {"log", "ln", "exp", "sin", "cos", "tan"}  # the functions stand in mathematics


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of the last closed answer in `completion`; exact, in time linear in its length, never raising on it.

    `ground_truth` is {"target": a number, or text that holds one}; ValueError if it is not.
    """
    target = parse_ground_truth(ground_truth)
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    values = parse(answer)
    if values is None:
        return UNPARSABLE
    return CORRECT if values == {target} else WRONG_RESULT


def parse_ground_truth(ground_truth: Mapping[str, Any]) -> Fraction:
    """The target. ValueError if it is neither a number nor a text of one."""
    target = ground_truth.get("target")
    values = parse(str(target)) if isinstance(target, (str, Real)) else None
    if values is None or len(values) != 1:
        raise ValueError(f"numeric ground_truth {ground_truth!r}: target must be one number")
    return next(iter(values))


def parse(text: str) -> set[Fraction] | None:
    """The different values in `text`, one or more; None if it is not of the form that the module allows."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = SIGNS.sub(" ", SPACING.sub("", text).replace("{,}", ",").replace("\u2212", "-"))
    values: set[Fraction] = set()
    since_number: list[str] | None = None  # the words and joints after the last number
    for token in TOKEN.finditer(text):
        if token["number"] is not None:
            value = match_value(token)
            if value is None or (since_number is not None and not joins(since_number)):
                return None
            values.add(value)
            since_number = []
        elif token["sum"] is not None:  # `m + n = 18`: names what AIME asks for
            if since_number is not None:
                since_number.append(token["sum"])
        elif token["word"] is not None:
            word = token["word"]
            if word.lower() in CHANGING_WORDS or (since_number == [] and len(word) == 1 and word not in UNIT_LETTERS):
                return None
            if since_number is not None:
                since_number.append(word.lower())
        elif token["joint"] is not None and since_number is not None:
            since_number.append(token["joint"])
        elif token["other"] or token["equation"] or (token["cdot"] and not since_number):
            return None
    return values or None


def joins(tokens: list[str]) -> bool:
    """Whether these words and joints between two numbers say that both are the answer."""
    return tokens != [] and set(tokens) <= {"=", ",", ";", ":", "and", "or"}


def parse_number(text: str) -> Fraction | None:
    """The value of `text`, which must be a number and nothing else; None if it is not."""
    match = NUMBER.fullmatch(text) if len(text) <= MAX_ANSWER_CHARS else None
    return match_value(match) if match else None


def match_value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of NUMBER; None for a denominator of 0, too large an exponent, or `1\\frac{-1}{2}`."""
    if match["once"] is not None:
        once, again = match["once"], match["again"] or match["again_digit"]
        value = Fraction(int(once + again) - int(once or 0), 10 ** len(once) * (10 ** len(again) - 1))
        lower, whole = Fraction(1), int(match["before"] or 0)
    elif match["decimal"] is not None:
        value, lower = decimal(match["decimal"]), Fraction(1)
        exponent = int(match["e"] or match["power"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** exponent
        whole = 0
    else:
        value = decimal(match["upper"] or match["upper_digit"] or match["plain_upper"])
        lower = decimal(match["lower"] or match["lower_digit"] or match["plain_lower"])
        whole = int(match["whole"] or match["plain_whole"] or 0)
    if lower == 0 or (match["whole"] and match["upper_sign"]):
        return None
    value = whole + value / lower * (-1 if match["upper_sign"] == "-" else 1)
    return -value if match["sign"] == "-" else value


def decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
