"""What a completion may score, decided a second time and in other ways than by rewards/: no verifier is called here.

`allowed` gives the rewards that a completion may get. For Countdown, Knights and Knaves, sudoku and the tree it is one.
For numbers and mathematics it is 0.0 without an answer, never 1.0 where the answer has another value, and 0.1 or 1.0
where nothing here can tell: a checker that knew every right answer would be another verifier.
"""

import ast
import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from math import pi
from typing import Any

from rewards.countdown import MAX_ANSWER_CHARS as MAX_COUNTDOWN_CHARS
from rewards.kk_logic import MAX_ANSWER_CHARS as MAX_KK_LOGIC_CHARS
from rewards.numeric import MAX_ANSWER_CHARS as MAX_NUMERIC_CHARS
from tests.chaos.strings import NUMERIC_SOURCES

NO_ANSWER, WRONG, RIGHT = 0.0, 0.1, 1.0


def allowed(data_source: str, completion: str, ground_truth: Mapping[str, Any]) -> set[float]:
    """The rewards that `completion` may get."""
    answer = answer_of(completion)
    if answer is None:
        return {NO_ANSWER}
    if data_source == "countdown":
        return {RIGHT if countdown(answer, ground_truth["target"], ground_truth["numbers"]) else WRONG}
    if data_source == "kk_logic":
        return {RIGHT if kk_logic(answer, ground_truth["names"], ground_truth["solution"]) else WRONG}
    if data_source == "sudoku":
        return {RIGHT if sudoku(visible(answer), visible(ground_truth["grid"])) else WRONG}
    if data_source == "tree":
        return {RIGHT if visible(answer) == visible(ground_truth["path"]) else WRONG}
    target = str(ground_truth["target"])
    if data_source in NUMERIC_SOURCES:
        return {WRONG, RIGHT} if numbers(answer) == numbers(target) else {WRONG}
    return {WRONG} if mathematics(answer, target) is False else {WRONG, RIGHT}


def answer_of(completion: str) -> str | None:
    """A walk over the tags: an opening tag forgets the one before it, a closing tag ends the block that is open."""
    answer, start = None, None
    for tag in re.finditer("<(/?)answer>", completion):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            answer, start = completion[start : tag.start()], None
    return answer


# ---- Countdown: Python's own parser, and a walk over its tree ------------------------------------------------------


def countdown(answer: str, target: int, given: list[int]) -> bool:
    if len(answer) > MAX_COUNTDOWN_CHARS or set(answer) - set("0123456789+-*/() \t\r\n"):
        return False
    if re.search(r"(?<![0-9])0[0-9]", answer):  # Python allows 00
        return False
    try:
        tree = ast.parse(re.sub("[\t\r\n]", " ", answer).strip(" "), mode="eval")
        used: list[int] = []
        value = exact_value(tree.body, used)
    except (SyntaxError, LookupError, ZeroDivisionError):
        return False
    return value == target and sorted(used) == sorted(given)


def exact_value(node: ast.AST, used: list[int]) -> Fraction:
    """The value of + - * / of whole numbers, which are added to `used`. LookupError: another kind of node."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise LookupError(type(node).__name__)
    left, right = exact_value(node.left, used), exact_value(node.right, used)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    raise LookupError(type(node.op).__name__)


# ---- Knights and Knaves: statements are cut out, and what is left over must mean nothing -----------------------------

GAP = "[ \t\r\n]"
WORD = r"[^\W\d_](?:[\w'\-]*\w)?"
STATEMENT = re.compile(rf"({WORD}(?:{GAP}+{WORD})*?){GAP}+is(?:{GAP}+(?:a|the))?{GAP}+"
                       r"(knight|knave)(?!['\-]*\w)")
LEFT_OVER = re.compile(rf"(?:{GAP}|[,;.:&|$*+\u2022\u2013-]|\b(?:and|so|thus|hence|therefore)\b|\\[\\()\[\]]"
                       r"|\((?:[0-9]{1,3}|[a-z]|[ivx]{2,4})\)|\[(?:[0-9]{1,3}|[a-z])\]"
                       r"|(?<!\w)(?:[0-9]{1,3}[.):]|[a-z]\)))*")
WRAPPED = re.compile(r"\\(?:boxed|mbox|mathrm|mathbf|textit|textbf|text)\s*\{([^{}]*)\}")
NO_NAMES = ("and", "so", "thus", "hence", "therefore")
ANNOUNCED = re.compile(r"(the\s+)?(final\s+)?(solution|answer)(\s*:|\s*\bis\b)(\s+as\s+follows\b|\s+that\b)?",
                       re.ASCII | re.IGNORECASE)


def kk_logic(answer: str, names: list[str], is_knight: list[bool]) -> bool:
    if len(answer) > MAX_KK_LOGIC_CHARS:
        return False
    answer = WRAPPED.sub(r" \1 ", WRAPPED.sub(r" \1 ", answer_without_announcement(answer)))
    answer = re.sub(r"\\(?:land|wedge|quad)(?![A-Za-z])", " , ", answer).casefold()
    roles: dict[str, bool] = {}
    position = 0
    for statement in STATEMENT.finditer(answer):
        words = statement[1].split()
        while words[0] in NO_NAMES and len(words) > 1:
            del words[0]
        name = " ".join(words)
        if name in roles or not LEFT_OVER.fullmatch(answer, position, statement.start()):
            return False
        roles[name] = statement[2] == "knight"
        position = statement.end()
    truth = {" ".join(name.casefold().split()): bool(role) for name, role in zip(names, is_knight, strict=True)}
    return roles == truth and LEFT_OVER.fullmatch(answer, position) is not None


def answer_without_announcement(answer: str) -> str:
    """What follows `So, the solution is` at the very beginning."""
    rest = answer.lstrip("-* \t\r\n\f\v")
    while (match := re.match(r"(?:and|so|thus|hence|therefore)[,:\s]+", rest, re.ASCII | re.IGNORECASE)) is not None:
        rest = rest[match.end() :]
    announced = ANNOUNCED.match(rest)
    return rest[announced.end() :] if announced else answer


# ---- Sudoku: no cell has the digit of one that it must differ from --------------------------------------------------


def sudoku(filled: str, given: str) -> bool:
    if len(filled) != len(given) or any(g not in ("0", f) for g, f in zip(given, filled, strict=True)):
        return False
    size = round(len(given) ** 0.5)
    high, wide = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    if any(not "1" <= digit <= str(size) for digit in filled):
        return False
    places = [(divmod(i, size), digit) for i, digit in enumerate(filled)]
    return not any(
        digit == other_digit and (row == other_row or column == other_column
                                  or (row // high, column // wide) == (other_row // high, other_column // wide))
        for i, ((row, column), digit) in enumerate(places) for (other_row, other_column), other_digit in places[:i])


# ---- The tree ------------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` without what Unicode calls space: space separators, and the bidirectional classes WS, B and S."""
    return "".join(character for character in text if unicodedata.category(character) != "Zs"
                   and unicodedata.bidirectional(character) not in ("WS", "B", "S"))


# ---- Numbers: the text is cut at what joins equal numbers, and each part must be one number -------------------------

UNSIGNED = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
THOUSANDS = re.compile(r"(?<![0-9.])(?<![0-9],)[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
FRACTION = re.compile(r"\\[dtc]?frac\s*(\{[^{}]*\}|[0-9])\s*(\{[^{}]*\}|[0-9])")
POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|[*x])\s*10\s*\^\s*(?:\{\s*([-+]?[0-9]+)\s*\}|([-+]?[0-9]+))")
DECORATION = re.compile(r"\\?[$%]|[\u20ac\u00a3\u00a5\u00b0]|\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\[ ;:]"
                        r"|\\(?:boxed|fbox|text|mbox|textbf|textrm|mathrm|mathbf|left|right)(?![A-Za-z])")
ONE_NUMBER = re.compile(rf"([-+]?)\s*(?:([0-9]+)\s+)?([-+]?{UNSIGNED})(?:\s*/\s*({UNSIGNED})|@([-+]?[0-9]+))?")
REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot) *(\{ *[0-9]+ *\}|[0-9])")
CHANGES = {  # words after which a number is not what it says
    "not", "no", "never", "minus", "plus", "times", "negative", "over", "squared", "cubed", "million", "billion",
    "thousand", "hundred", "half", "dozen", "pi", "sqrt", "root", "log", "point", "five", "eighteen", "twice",
}


def numbers(text: str) -> set[Fraction] | None:
    """The values that `text` says; None where it is not made of numbers that are all the answer."""
    if len(text) > MAX_NUMERIC_CHARS:
        return None
    text = text.replace(r"\!", "").replace(r"\,", "").replace(r"\displaystyle", "").replace("{,}", ",")
    text = DECORATION.sub(" ", re.sub(r"\s", " ", text.replace("\u2212", "-")))
    text = re.sub(r"([A-Za-z][^0-9A-Za-z=,;:+/^-]*)\\cdot(?=[ ~{]*[A-Za-z])|(?<=[A-Za-z])[\u00b2\u00b3]", r"\1 ", text)
    text = re.sub(r"([A-Za-z] *\}?) *\^ ?(?:-?[1-4](?![0-9])|\{ *-?[1-4] *\})", r"\1 ", text)  # of units
    text = re.sub(r"/(?=[ {~]*[A-Za-z])", " ", text)
    text = re.sub(r"(?<![A-Za-z0-9])[A-Za-z](?: *\+ *[A-Za-z](?![A-Za-z]))+ *(?==)", " sum ", text)
    text = REPEATING.sub(repeating, text)
    text = FRACTION.sub(lambda match: f" {match[1].strip('{}').strip()}/{match[2].strip('{}').strip()} ", text)
    text = POWER_OF_TEN.sub(lambda match: f"@{match[1] or match[2]}", text)
    text = re.sub(r"(?<=[0-9])[eE](?=[-+]?[0-9])", "@", text)
    text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if not text.isascii():
        return None
    values = set()
    for part in re.split(r"[=,;:]|(?<![a-z])(?:and|or)(?![a-z])", text, flags=re.IGNORECASE):
        if {word.lower() for word in re.findall("[A-Za-z]+", part)} & CHANGES:
            return None
        part = re.sub("[A-Za-z]+", " ", part)
        part = re.sub(r"""[?'"()\[\]{}*~]|\.(?![0-9])""", " ", part).strip()
        if part:
            value = one_number(part)
            if value is None:
                return None
            values.add(value)
    return values or None


def repeating(match: re.Match[str]) -> str:
    """The decimal as a quotient, in the way of school: ten times, a hundred times it, less itself."""
    whole, once, again = match[1] or "0", match[2], match[3].strip("{} ")
    shift, period = 10 ** len(once), 10 ** len(once + again)
    return f"{int(whole + once + again) - int(whole + once)}/{period - shift}"


def one_number(text: str) -> Fraction | None:
    match = ONE_NUMBER.fullmatch(text)
    if match is None or (match[3][0] in "+-" and (match[1] or match[2])) or (match[2] and not match[4]):
        return None
    if match[4] is not None and Fraction(match[4]) == 0 or abs(int(match[5] or 0)) > 1_000:
        return None
    value = Fraction(match[3]) / Fraction(match[4] or 1) * Fraction(10) ** int(match[5] or 0) + int(match[2] or 0)
    return -value if match[1] == "-" else value


# ---- Mathematics: where both sides are numbers or plain arithmetic, they are worked out ------------------------------

ARITHMETIC = [
    (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|[$~]", " "),
    (r"\\[dtc]?frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
    (r"\\pi(?![A-Za-z])", "(PI)"),
]


def mathematics(answer: str, target: str) -> bool | None:
    """Whether both have the same value; None where that is not known here."""
    target_numbers, answer_numbers = numbers(target), numbers(answer)
    letters = re.search("[A-Za-z_]", re.sub(r"\\[dtc]?frac|\\boxed", "", answer + target))
    if target_numbers is not None and answer_numbers is not None and not letters:
        return target_numbers == answer_numbers
    values = [arithmetic(answer), arithmetic(target)]
    if None in values:
        return None
    return abs(values[0] - values[1]) <= 2e-6 * max(1.0, abs(values[1]))


def arithmetic(latex: str) -> float | None:
    """The value of a formula of numbers, + - * / ^, fractions, roots and pi; None for any other."""
    text = latex.strip().removesuffix(".")
    if len(text) > 200 or re.search(r"[0-9]\s+[0-9]|[,%\u00b0]", text):
        return None
    for pattern, replacement in ARITHMETIC:
        text = re.sub(pattern, replacement, text)
    before = None
    while text != before:  # from the inside
        before = text
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"((\1)**0.5)", text)
        text = re.sub(r"\\sqrt\s*([0-9])", r"((\1)**0.5)", text)
        text = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", text)
    text = re.sub(r"\^\s*([0-9])", r"**\1 ", text).replace(" ", "")
    text = re.sub(r"(?<=[0-9)])(?=\()|(?<=\))(?=[0-9])", "*", text)
    if re.search(r"[^0-9+\-*/().PI]|(?<![0-9])0[0-9]|//", text):
        return None
    try:
        return float_value(ast.parse(text, mode="eval").body)
    except (SyntaxError, LookupError, ArithmeticError):
        return None


def float_value(node: ast.AST) -> float:
    """LookupError: not arithmetic, or a value of no use."""
    if isinstance(node, ast.Name) and node.id == "PI":
        return pi
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) < 1e12:
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = float_value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise LookupError(type(node).__name__)
    left, right = float_value(node.left), float_value(node.right)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow() if left >= 0 and abs(right) <= 20:
            return left**right
    raise LookupError(type(node.op).__name__)
