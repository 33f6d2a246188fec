r"""Mathematical answers (MATH, MATH500, Minerva, OlympiadBench), by the first rule that can tell:

1. strings: target and answer are the same LaTeX once spacing, delimiters, `\boxed{}`, units, degree, dollar and
   percent signs, an `x =` that only one has, and other ways to write a fraction or a root are taken away;
2. numbers: both are one number (`1,234`, `0.5`, `\frac{1}{2}`, `1\frac{1}{2}`, `5e3`): exactly equal or not, so
   0.333333 is not 1/3; the target is in a base (`4130_5`): the digits and, where the answer names it, the base;
3. math-verify, in the processes of rewards/pool.py, which keep the time: equal expressions, sets, tuples, intervals,
   matrices, equations; of a chain `9 \cdot 2 = 18` the last side, but plain numbers in it (`6 = 5`) must be equal.
   Decimals of a target such as `4\sqrt{2}` are right to 6 places there.

Nothing here executes model text; worker.py says what it takes to keep math-verify from it. An answer that has words
left in it (`5 or maybe 6`), quotes, characters beyond ASCII, unbalanced braces, more than MAX_NESTING brackets within
each other (20 take its grammar 5 seconds), or more than MAX_ANSWER_CHARS never gets there.
"""

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer
from rewards.numeric import VALUE_WORDS, parse_number
from rewards.pool import Comparison

MAX_ANSWER_CHARS = 1_000
MAX_NESTING = 8

WRAPPED = re.compile(r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right)(?![A-Za-z])\.?|(?<!\\)\\[!,]|\\displaystyle(?![A-Za-z])", ""),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|\\degree)(?![A-Za-z])|\u00b0", ""),
        (r"(?:(?<!\\)\\[;: \n]|\\q?quad(?![A-Za-z])|\\?[$%]|[~\s])+", " "),  # no long gaps: below they cost their cube
        (r"\u2212", "-"),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\\(?:mbox|textbf|textit|textrm|mathrm|mathbf|mathit)(?![A-Za-z])", r"\\text"),
        (r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![\w\\])(?:and|or)(?!\w))\s*", ","),
    ]
]
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
UNIT = re.compile(r"(?<=[0-9A-Za-z})\]])\s*\\text\s*\{\s*([A-Za-z .]+?)\s*\}(?:\^\{?[23]\}?)?\s*$")
PLAIN_UNIT = re.compile(
    r"(?<=[0-9})\]]) +((?:[A-Za-z]{3,}|[cdkm]m|[km]g|ml|ft|hr|lb|oz)(?: [A-Za-z]{2,})*)(?:\^\{?[23]\}?)? *$"
)
NAME = re.compile(r"^\s*(?:[A-Za-z]|\\[a-z]+)(?:_[0-9A-Za-z]|\([A-Za-z]\))?\s*=(?=[^=]*$)")
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
    texts = [target, answer]
    if not all(NAME.match(text) for text in texts):
        texts = [NAME.sub("", text) for text in texts]
    target_text, answer_text = map(squeeze, texts)
    if target_text == answer_text:
        return CORRECT
    if "=" not in target_text and len({parse_number(side) for side in answer_text.split("=")} - {None}) > 1:
        return WRONG_RESULT  # math-verify would take the last of `6 = 5`
    known = compare_numbers(target_text, answer_text)
    if known is not None:
        return known
    if not is_latex(target):
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
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = without_unit(TEXT.sub(r" \1 ", without_unit(text, UNIT)), PLAIN_UNIT)
    return re.sub(" +", " ", text).strip().removesuffix(".").strip()


def without_unit(text: str, unit: re.Pattern[str]) -> str:
    """`text` without the words at its end, unless they change the value or belong to a time of day."""
    match = unit.search(text)
    if not match or ":" in text or VALUE_WORDS & set(match[1].lower().split()):
        return text
    return text[: match.start()]


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
            and not any(len(word) > 3 or word in VALUE_WORDS for word in words))  # fmt: skip
