r"""What stands after a number: units, which do not change it, and words that do. For numeric.py and
competition_math.py.

A unit is not judged: `5 cm` is 5, whatever the target is measured in.
"""

import re

VALUE_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "not no never nor neither none except without minus plus times negative over divided by point squared cubed "
        "factorial pi sqrt root inverse reciprocal infinity half halves third thirds quarter quarters fourth fourths "
        "fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths eleventh elevenths "
        "twelfth twelfths sixteenth sixteenths twentieth twentieths hundredth hundredths thousandth thousandths "
        "millionth millionths billionth billionths tens hundred hundreds thousand thousands million millions billion "
        "billions trillion trillions quadrillion quadrillions mil mln mio bn tn lakh lakhs lac lacs crore crores dozen "
        "dozens doz pair pairs double twice triple zero one two three four five six seven eight nine ten eleven twelve "
        "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
        "ninety",
    )
)
HALF_DAYS = frozenset(["am", "pm"])
UNIT_LETTERS = "CFghJlLmNsVW"  # the only single letters that may follow a number; 18K and 18M are more than 18
POWER = r"\^(?:-?[1-4](?![0-9])|\{ *-?[1-4] *\})"

SHORT = r"(?:[cdkmn]m|[kmn]g|[cdm][lL]|ft|in|yd|mi|hr|lb|oz|sq\.?|[kM]?Hz|[kM]?Pa|[kMG]?eV|[kM][JNW]|[km][AV]|[mn]s)"
PLAIN = rf"(?!(?:abc|pqr|xyz)(?![A-Za-z]))(?:[A-Za-z]{{3,}}|{SHORT}(?![A-Za-z]))(?:{POWER})?"  # not algebra's products
LETTER = rf"[{UNIT_LETTERS}](?![A-Za-z])(?:{POWER})?"
FACTOR = rf"(?:[A-Za-z]{{2,}}(?:{POWER})?|{LETTER})"
TEXT = rf"\\text *\{{ *[A-Za-z](?:[A-Za-z ./-]|{POWER})*\}}(?:{POWER})?"
OVER = r" ?(?:/|\\cdot(?![A-Za-z])) ?"
# Where a unit may begin, and its words (`unit`), to the end of the text. No two spaces may stand side by side.
TEXT_UNIT = re.compile(rf"(?<=[0-9A-Za-z}})\]])(?P<unit> ?{TEXT}(?:(?:{OVER}| ?){TEXT})*) *$")
PLAIN_UNIT = re.compile(
    rf"(?:(?<=[0-9}})\]])|(?<=\\pi)) (?P<unit>{PLAIN}(?: [A-Za-z]{{2,}}(?:{POWER})?|{OVER}{FACTOR})*)\.? *$"
)
# Letters too that may be names in an expression: for answers to a target that has none.
LETTER_UNIT = re.compile(rf"(?<=[0-9}})\]]) (?P<unit>(?:{PLAIN}|{LETTER})(?: {FACTOR}|{OVER}{FACTOR})*)\.? *$")


def without_unit(text: str, unit: re.Pattern[str]) -> str:
    """`text` without the unit at its end, unless it changes the value or belongs to a time of day."""
    match = unit.search(text)
    return text if not match or ":" in text or changes_value(match["unit"]) else text[: match.start()]


def changes_value(unit: str) -> bool:
    r"""Whether it holds a word of quantity, or is a letter that stands for one: k, M, B, and K and T (18K) where no gap
    (`300 \text{ K}`) says that they are units."""
    words = re.findall("[A-Za-z]+", unit.replace(r"\text", "").replace(r"\cdot", ""))
    if (VALUE_WORDS | HALF_DAYS) & {word.lower() for word in words}:
        return True
    has_gap = unit.startswith(" ") or "{ " in unit
    return len(words) == 1 and (words[0] in ("k", "M", "B") or (words[0] in ("K", "T") and not has_gap))
