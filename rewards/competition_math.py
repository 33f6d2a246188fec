r"""Mathematical answers (MATH, MATH500, Minerva, OlympiadBench), by the first rule that can tell:

1. strings: target and answer are the same LaTeX once spacing, delimiters, `\boxed{}`, units, degree, dollar and
   percent signs, an `x =` that only one has, and other ways to write a fraction, a root or a logarithm are taken away
   (degrees within sines become radians); other words than the target's (`no` for `on`) are wrong;
2. numbers: both are one number (`1,234`, `0.5`, `\frac{1}{2}`, `1\frac{1}{2}`, `0.\overline{3}`, `5e3`): exactly equal
   or not, so 0.333333 is not 1/3; a target in a base (`4130_5`): the digits and, where the answer names it, the base;
3. math-verify, in the processes of rewards/pool.py, which keep the time: equal expressions, sets, tuples, intervals,
   matrices, equations. Decimals of a target such as `4\sqrt{2}` are right to 6 places there.

For a target that is no equation all sides of a chain (`9 \cdot 2 = 18`) must equal it, but names of what was asked
(`x =`, `f(x) =`, `AB =`, `(x, y) =`, `m + n =`): `2x = 4`, `f(2) = 4` and `6 = 5` are not the answers 4 and 5.

Nothing here executes model text; worker.py says what it takes to keep math-verify from it. An answer that has words
left in it (`5 or maybe 6`), quotes, characters beyond ASCII, unbalanced braces, more than MAX_NESTING brackets within
each other (20 take its grammar 5 seconds), or more than MAX_ANSWER_CHARS never gets there.
"""

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer
from rewards.numeric import parse_number
from rewards.pool import Comparison
from rewards.units import LETTER_UNIT, PLAIN_UNIT, TEXT_UNIT, VALUE_WORDS, without_unit

MAX_ANSWER_CHARS = 1_000
MAX_NESTING = 8

WRAPPED = re.compile(r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
DEGREE = r"(?:(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\^?\s*\\degree)(?![A-Za-z])|\u00b0)"
DEGREES = re.compile(rf"(?<![0-9.])((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*{DEGREE}")
OF_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
UNICODE = {"\u03c0": "pi", "\u03b8": "theta", "\u221e": "infty", "\u00d7": "times", "\u00b7": "cdot", "\u2264": "le",
           "\u2265": "ge", "\u00b1": "pm", "\u2248": "approx", "\u2260": "ne"}
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right)(?![A-Za-z])\.?|(?<!\\)\\[!,]|\\displaystyle(?![A-Za-z])", ""),
        (DEGREE, ""),
        (r"(?:(?<!\\)\\[;: \n]|\\q?quad(?![A-Za-z])|\\?[$%]|[~\s])+", " "),  # no long gaps: below they cost their cube
        (r"\u2212", "-"),
        *((sign, rf"\\{command} ") for sign, command in UNICODE.items()),
        (r"\u221a\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))", r"\\sqrt{\1\2}"),
        (r"(?<=[0-9A-Za-z)}])\u00b2", "^2"),
        (r"(?<=[0-9A-Za-z)}])\u00b3", "^3"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"\\log\s*_\s*([0-9A-Za-z])", r"\\log_{\1}"),
        (r"(?<![A-Za-z])([AaPp])\.\s?([Mm])(?:\.|$)", r"\1\2"),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\\(?:mbox|textbf|textit|textrm|mathrm|mathbf|mathit|rm(?=\s*\{))(?![A-Za-z])", r"\\text"),
        (r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![\w\\])(?:and|or)(?!\w))\s*", ","),
    ]
]
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
VARIABLE = (r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau"
            r"|phi|chi|psi|omega|ell|var(?:epsilon|theta|rho|sigma|phi)|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega))"
            r"(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z]+\}))?")
NAME = re.compile(rf"{VARIABLE}(?:\({VARIABLE}\))?|{VARIABLE}(?:\+{VARIABLE})+|\({VARIABLE}(?:,{VARIABLE})+\)"
                  r"|[A-Z]{2,3}|\\angle[A-Z]{1,3}|\[[A-Z]{3,4}\]")
SEPARATORS = re.compile(r"[<>!:]=|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|(?P<cut>[,=])|[{}()\[\]]")
EQUALS = re.compile(r"=|\\equiv(?![A-Za-z])")
HALF_DAY = re.compile(r"(?<=[0-9]) [AaPp][Mm]$")
GAPS = re.compile(r"(?<![0-9]) +| +(?![0-9])")  # a space between digits stays: 1 1/2 is not 11/2
IN_BASE = re.compile(r"([0-9A-Z]+)(?:_(?:\{([0-9]+)\}|([0-9]+)))?")
LATEX = re.compile(r"[0-9A-Za-z +\-*/^_=<>!|.,:;()\[\]{}\\&]+")
AMBIGUOUS = re.compile(r"[0-9] +[0-9]|[0-9A-Z)}\]] *_")
NOT_NUMBERS = {"True", "False", "nan", "inf", "-inf"}  # though Python counts them as such
MATRICES = {"matrix", "pmatrix", "bmatrix", "vmatrix"}
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score | Comparison:
    """The Score of the last closed answer in `completion`, or what is to be compared for it; never raising on it.

    `ground_truth` is {"target": text or number}. ValueError if it is empty, or too long to be answered.
    """
    target = clean(parse_ground_truth(ground_truth))
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    if len(answer) > MAX_ANSWER_CHARS:
        return UNPARSABLE
    answer = clean(answer)
    if not answer:
        return UNPARSABLE
    target, answer = alike(target, answer)
    if answer is None:
        return WRONG_RESULT
    target_text, answer_text = squeeze(target), squeeze(answer)
    if target_text == answer_text:
        return CORRECT
    known = compare_numbers(target_text, answer_text)
    if known is not None:
        return known
    if not is_latex(target) or is_other_word(target_text, answer_text):
        return WRONG_RESULT
    return Comparison(target, answer) if is_latex(answer) else UNPARSABLE


def parse_ground_truth(ground_truth: Mapping[str, Any]) -> str:
    """The target as text. ValueError if it is empty, longer than an answer may be, or neither text nor number."""
    target = ground_truth.get("target")
    text = str(target)
    is_text_or_number = isinstance(target, str) or (isinstance(target, Real) and text not in NOT_NUMBERS)
    if not is_text_or_number or not 0 < len(text) <= MAX_ANSWER_CHARS or not clean(text):
        raise ValueError(f"math ground_truth {ground_truth!r}: target must be text or a number, not empty, "
                         f"of at most {MAX_ANSWER_CHARS} characters")
    return text


def clean(text: str) -> str:
    """LaTeX without what does not change the value; spaces stay where they may separate."""
    text = unbox(text.strip().removesuffix("."))
    if match := WRAPPED.fullmatch(text):
        text = unbox(next(inside for inside in match.groups() if inside is not None).strip())
    text = degrees_as_radians(text)
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = re.sub(" +", " ", TEXT.sub(r" \1 ", without_unit(text, TEXT_UNIT)))
    return re.sub(" +", " ", without_unit(text, PLAIN_UNIT)).strip().removesuffix(".").strip()


def degrees_as_radians(text: str) -> str:
    """`text` with radians where it has a sine or the like of degrees; elsewhere a degree is a unit."""
    return DEGREES.sub(r"(\\frac{\1 \\pi}{180})", text) if OF_ANGLE.search(text) else text


def alike(target: str, answer: str) -> tuple[str, str | None]:
    """Both without what only one of them has: names and the numbers of a chain before =, the half of a day, a unit
    whose letters could be names. No answer is left where numbers on the sides of its chain differ."""
    if not EQUALS.search(target):
        answer = without_names(EQUALS.sub("=", answer))
    elif not EQUALS.search(answer) and target.count("=") == 1 and NAME.fullmatch(squeeze(target.partition("=")[0])):
        target = target.partition("=")[2].strip()
    if answer is not None and HALF_DAY.search(target) and not HALF_DAY.search(answer):
        target = HALF_DAY.sub("", target)
    elif answer is not None and HALF_DAY.search(answer) and not HALF_DAY.search(target):
        answer = HALF_DAY.sub("", answer)
    if answer is not None and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", target)):
        answer = without_unit(answer, LETTER_UNIT)
    return target, answer


def without_names(text: str) -> str | None:
    """The values that equations give: `x = 5, x = 6` is `5,6`, and of equal numbers in a chain one is left. None where
    they differ. A side that is neither name nor number stays in its chain, for worker.py to judge."""
    if "=" not in text:
        return text
    parts = []
    for part in split(text, ","):
        sides = [side.strip() for side in split(part, "=")]
        sides = [side for side in sides[:-1] if side and not NAME.fullmatch(squeeze(side))] + sides[-1:]
        if len(sides) > 1 and NAME.fullmatch(squeeze(sides[-1])):  # `5 = x`
            del sides[-1]
        numbers = [side for side in sides if parse_number(squeeze(side)) is not None]
        if len({parse_number(squeeze(number)) for number in numbers}) > 1:
            return None
        parts.append("=".join([side for side in sides if side not in numbers] + numbers[-1:]))
    return ",".join(parts)


def split(text: str, separator: str) -> list[str]:
    """`text` cut at each `separator` that stands in no brackets, and is no part of `<=`, `!=`, `1,000` or the like."""
    parts, depth, start = [], 0, 0
    for match in SEPARATORS.finditer(text):
        if match[0] in "{([":
            depth += 1
        elif match[0] in "})]":
            depth -= 1
        elif match["cut"] == separator and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def is_other_word(target: str, answer: str) -> bool:
    """Whether both are letters alone, and more than one: to math-verify they are products, and `no` is `on`."""
    return (target + answer).isalpha() and max(len(target), len(answer)) > 1


def unbox(text: str) -> str:
    r"""What is in the one `\boxed{}` that all of `text` is; `text` where it is not one."""
    match = BOXED.match(text)
    if not match or not text.endswith("}") or not is_balanced(text[match.end() : -1]):
        return text
    return text[match.end() : -1].strip()


def is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def nesting(text: str) -> int:
    """How many brackets of any kind stand within each other at most."""
    depth = deepest = 0
    for bracket in re.findall(r"[{}()\[\]]", text):
        depth += 1 if bracket in "{([" else -1
        deepest = max(deepest, depth)
    return deepest


def squeeze(text: str) -> str:
    """`text` as it is compared to the letter: no spaces; one capital letter in parentheses is that letter, a choice."""
    text = GAPS.sub("", text)
    return text[1:-1] if re.fullmatch(r"\([A-Z]\)", text) else text


def compare_numbers(target: str, answer: str) -> Score | None:
    """The Score where both are one number, or the target is one in a base; None where they are not."""
    target_base, answer_base = IN_BASE.fullmatch(target), IN_BASE.fullmatch(answer)
    if target_base and "_" in target:
        if not answer_base:
            return WRONG_RESULT
        digits, *base = target_base.groups()
        answer_digits, *named = answer_base.groups()
        same_base = "_" not in answer or (base[0] or base[1]) == (named[0] or named[1])
        return CORRECT if digits == answer_digits and same_base else WRONG_RESULT
    number, answer_number = parse_number(target), parse_number(answer)
    if number is None or answer_number is None:
        return None
    return CORRECT if number == answer_number else WRONG_RESULT


def is_latex(text: str) -> bool:
    """Whether math-verify may have `text`: see the module. It would add up `5 6`, and overlook the 2 of `100_2`."""
    words = {word.lower() for word in WORD.findall(text)} - MATRICES
    return (LATEX.fullmatch(text) is not None and AMBIGUOUS.search(text) is None and is_balanced(text)
            and nesting(text) <= MAX_NESTING
            and not any(len(word) > 3 or word in VALUE_WORDS for word in words))
