r"""One number, compared exactly (GSM8K, AIME, AMC).

A number is `1,234`, `-0.5`, `3/4`, `\frac{3}{4}`, `1 1/2`, `5e3` or `5 \times 10^{3}`. Around it may stand currency
and percent signs, degrees, brackets, `$...$`, `\boxed{}`, `\text{}`, a name (`x =`) and a unit in words (`18
dollars`, `5 km/h`, `3 m^2`): none of them changes the value, so `50%` is 50 and not 1/2. Several numbers must be
equal, and be joined by `= , ; :`, `and`, `or` alone (`1/2 = 0.5`); `9 * 2 = 18` and `2 plus 2` are unparsable. So are
words that change a number (`not 18`, `5 million`, `negative 5`, `5 squared`, `log 5`) or spell one, a letter that can
only be a variable (`5x`), digits that are not ASCII, invisible characters other than spaces, and all that is longer
than MAX_ANSWER_CHARS.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer

MAX_ANSWER_CHARS = 300
MAX_EXPONENT = 400  # of ten: with the length it bounds every number to about 700 digits

DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:
        (?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac\s*
            (?:\{{\s*(?P<upper_sign>[-+]?)\s*(?P<upper>{DECIMAL})\s*\}}|(?P<upper_digit>[0-9]))\s*
            (?:\{{\s*(?P<lower>{DECIMAL})\s*\}}|(?P<lower_digit>[0-9]))
      | (?:(?P<plain_whole>[0-9]+)[ ]+)?(?P<plain_upper>{DECIMAL})\s*/\s*(?P<plain_lower>{DECIMAL})
      | (?P<decimal>{DECIMAL})(?:[eE](?P<e>[-+]?[0-9]+)
            |\s*(?:\\times|\\cdot|[*x])\s*10\s*\^\s*(?P<brace>\{{)?\s*(?P<power>[-+]?[0-9]+)(?(brace)\s*\}}))?
    )""",
    re.VERBOSE,
)
TOKEN = re.compile(
    rf"""(?P<number>{NUMBER.pattern})
    | (?P<word>[A-Za-z]+)(?:\^(?:[23]|\{{[23]\}})(?![0-9]))?
    | (?P<joint>[=,;:])
    | [\s.?'"()\[\]{{}}*~] | /(?=\s*[A-Za-z]) | \\(?:boxed|fbox|text|mbox|textbf|mathrm|mathbf|left|right)(?![A-Za-z])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
SPACING = re.compile(r"\\[!,]|\\displaystyle(?![A-Za-z])")  # what leaves no gap between digits
SIGNS = re.compile(r"\\?[$%]|[\u20ac\u00a3\u00a5\u00b0]|\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])|\\[ ;:]")
UNIT_LETTERS = frozenset("aAcCdFgGhJKlLmNsVW")  # the only single letters that may follow a number
VALUE_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "not no never nor neither none except without minus plus times negative over divided by point squared cubed "
        "factorial pi sqrt root inverse reciprocal infinity half halves third thirds quarter quarters fourth fourths "
        "fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths "
        "thousandth thousandths millionth millionths hundred thousand million billion trillion dozen pair double twice "
        "triple zero one two three four five six seven eight nine ten eleven twelve "
        "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
        "ninety",
    )
)
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
        elif token["word"] is not None:
            word = token["word"]
            if word.lower() in CHANGING_WORDS or (since_number == [] and len(word) == 1 and word not in UNIT_LETTERS):
                return None
            if since_number is not None:
                since_number.append(word.lower())
        elif token["joint"] is not None and since_number is not None:
            since_number.append(token["joint"])
        elif token["other"] is not None:
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
    if match["decimal"] is not None:
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
