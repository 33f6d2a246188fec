"""Gold completions of every data source, and what a careless or a cunning model would make of them.

All randomness comes from the `random.Random` that is handed in: a seed for the long run, hypothesis's own in the tests.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from rewards.answer import CLOSE, OPEN
from utils.tasks import countdown, kk_logic, sudoku, tree


class Gold(NamedTuple):
    """A completion that scores 1.0."""

    data_source: str
    completion: str
    ground_truth: dict[str, Any]


NUMBERS = [  # a target and right answers
    ("18", ["18", "$18", "18 dollars", r"\boxed{18}", "18.0", "36/2", r"\frac{36}{2}", "1.8e1", "x = 18", "18 = 18.0",
            "m + n = 18", "18 cm\u00b2", r"18 \text{ cm}^2", r"18 \mathrm{~km} / \mathrm{h}",
            r"18 \text{ N} \cdot \text{m}"]),
    ("1234", ["1,234", r"1,\!234", "1{,}234", "1234.00", "1.234e3", r"1.234 \times 10^{3}"]),
    ("-3/4", ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "-0.75", "\u22120.75", "-.75"]),
    ("1.5", ["1 1/2", r"1\frac{1}{2}", "3/2", r"\frac32", "1.50", "1.5 cm", "1.5 m^2"]),
    ("073", ["73", "073", "73 degrees", r"73^\circ", "**73**"]),
]
FORMULAS = [  # a target and right answers, by the first rules of rewards/competition_math.py or by math-verify
    ("5", ["5", "$5$", "5.0", r"\boxed{5}", "10/2", r"\sqrt{25}", "2+3", "x = 5", r"5\text{ cm}", "5 km/h",
           "2+3 = 5", "m+n=5"]),
    (r"\frac{1}{3}", [r"\frac{1}{3}", r"\dfrac13", "1/3", r"\frac{2}{6}", r"\frac{1}{4} + \frac{1}{12}",
                      r"0.\overline{3}"]),
    (r"\frac{1}{2}", [r"\frac12", r"\sin 30^\circ", r"x = \cos 60^{\circ}"]),
    (r"\log_{2} 3", [r"\log_{2} 3", r"\log_2 3", r"\log_2{3}"]),
    (r"4\sqrt{2}", [r"4\sqrt{2}", r"4 \sqrt2", r"\sqrt{32}", r"2^{2} \cdot \sqrt{2}", "5.656854"]),
    (r"\frac{\pi}{2}", [r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", r"\pi/2", r"\frac12 \pi"]),
    ("12", ["12", "3 \\cdot 4", "12.", r"12^\circ", r"\$12", r"12\%"]),
    ("(1,2]", ["(1,2]", r"\left(1, 2\right]"]),
    ("5,6", ["5,6", "6, 5", "5 and 6"]),
    ("2x+3", ["2x+3", "3 + 2x", "y = 2x+3"]),
    (r"\text{Dana}", [r"\text{Dana}", "Dana"]),
    ("4130_5", ["4130_5", "4130_{5}", "4130"]),
]
NUMERIC_SOURCES = ("openai/gsm8k", "aime", "amc")
MATH_SOURCES = ("DigitalLearningGmbH/MATH-lighteval", "math500", "minerva", "olympiad_bench")
LABELLED = [  # answer, target, right? math-verify is asked about most of them
    (r"\frac{4}{12}", r"\frac{1}{3}", True),
    (r"\frac{4}{13}", r"\frac{1}{3}", False),
    ("0.3333333", r"\frac{1}{3}", False),
    (r"\sqrt{32}", r"4\sqrt{2}", True),
    (r"\sqrt{33}", r"4\sqrt{2}", False),
    (r"-\sqrt{32}", r"4\sqrt{2}", False),
    (r"\frac{3\pi}{6}", r"\frac{\pi}{2}", True),
    (r"\frac{3\pi}{5}", r"\frac{\pi}{2}", False),
    (r"90", r"\frac{\pi}{2}", False),
    ("3+2x", "2x+3", True),
    ("2x-3", "2x+3", False),
    ("2x+3y", "2x+3", False),
    ("2x+3+0", "2x+3", True),
    ("6,5", "5,6", True),
    ("5,6,7", "5,6", False),
    ("5", "5,6", False),
    ("[1,2]", "(1,2]", False),
    ("(2,1]", "(1,2]", False),
    (r"2^{2}+1", "5", True),
    ("2x = 5", "5", False),
    ("x+1 = 5", "5", False),
    ("1+1 = 5", "5", False),
    ("f(2) = 5", "5", False),
    ("2+3 = 5", "5", True),
    ("x = 2+3 = 5", "5", True),
    ("x = 5, x = 6", "5,6", True),
    ("2x = 5, x = 6", "5,6", False),
    (r"\sin 30^\circ", r"\frac{1}{2}", True),
    (r"\sin 30", r"\frac{1}{2}", False),
    ("no", r"\text{on}", False),
    ("5 dozens", "5", False),
    ("5 m/s^2", "5", True),
    ("5 xy", "5", False),
    ("2^{2}", "5", False),
    ("5 or 6", "5", False),
    (r"\pm 5", "5", False),
    ("5x", "5", False),
    ("3", "5", False),
    ("-5", "5", False),
    ("5!", "5", False),
    ("4130_7", "4130_5", False),
    ("4131_5", "4130_5", False),
    ("555", "4130_5", False),
    ("6 = 5", "5", False),
    ("5 _ 6", "5", False),
    ("(5)_6", "5", False),
    ("Navin", r"\text{Dana}", False),
    ("Dan", r"\text{Dana}", False),
]
REASONING = "Let us see: 44 + 19 is (1) 63, Zoey is a knight, \\boxed{7}. </think>\n"


def wrap(answer: str, reasoning: str = REASONING) -> str:
    return f"{reasoning}{OPEN} {answer} {CLOSE}"


def golds(per_task: int, seed: int) -> dict[str, list[Gold]]:
    """The gold completions of every data source: of the generators `per_task` each, of the others all above."""
    size = {"output_dir": "", "train_problems": per_task, "test_problems": 1, "seed": seed}
    puzzles, _ = countdown.make_puzzles(countdown.Args(**size))
    knights, _ = kk_logic.make_puzzles(kk_logic.Args(**size))
    found = {
        "countdown": [Gold("countdown", countdown.demonstration(one), one.ground_truth) for one in puzzles],
        "kk_logic": [Gold("kk_logic", kk_logic.demonstration(one), one.ground_truth) for one in knights],
        "sudoku": [],
        "tree": [],
    }
    for size, blanks in ((4, 8), (6, 12), (9, 30)):
        args = sudoku.Args(output_dir="", size=size, min_blanks=1, max_blanks=blanks, seed=seed)
        found["sudoku"] += [
            Gold("sudoku", sudoku.demonstration(one.steps, one.solved, size), {"grid": sudoku.in_rows(one.given, size)})
            for one in sudoku.make_puzzles(args, "train", -(-per_task // 3))
        ]
    setting = tree.Setting(depth=6, branching=4)
    rule, rng = tree.hidden_rule(setting), random.Random(f"tree golds {seed}")
    for _ in range(per_task):
        turns = "".join(rng.choices(tree.TURNS[: setting.branching], k=setting.depth))
        path = tree.walk(turns, rule)
        found["tree"].append(Gold("tree", tree.demonstration(turns, path), {"path": path}))
    for sources, right in ((NUMERIC_SOURCES, NUMBERS), (MATH_SOURCES, FORMULAS)):
        for source in sources:
            found[source] = [Gold(source, wrap(answer), {"target": target})
                             for target, answers in right for answer in answers]
    return found


# ---- Mutations -----------------------------------------------------------------------------------------------------

LOOK_ALIKES = {
    "0": "\u0660\uff10\u041eO\U0001d7d8", "1": "\u0661\uff11lI\u2460", "2": "\u0662\uff12\u00b2",
    "3": "\u0663\uff13\u0417", "4": "\u0664\uff14\u2084", "5": "\u0665\uff15", "a": "\u0430\uff41",
    "e": "\u0435\u212f", "i": "\u0456\u0131", "k": "\u212a\u043a", "s": "\u017f\u0455", "o": "\u043e\u03bf",
    "A": "\u0410\uff21", "B": "\u0412\u0392", "-": "\u2212\u2013\u2010\uff0d", "+": "\uff0b\u2795",
    "*": "\u00d7\u2217\uff0a", "/": "\u00f7\u2215\u2044\uff0f", "(": "\uff08\u2768", ")": "\uff09\u2769",
    " ": "\u00a0\u2003\u3000\u2028\x1f", "<": "\uff1c\u2039", ">": "\uff1e\u203a", "=": "\uff1d\u2261",
    ".": "\uff0e\u3002", ",": "\uff0c\u066b", "n": "\u207f\u0578",
}
PIECES = [
    *"0123456789+-*/()=.,;:^_{}[]$%<>!?'\"\\#&|~ \n\tabxkK", "**", "//", "<<", "44**19**35", " = 24", "24", "= 98",
    "# no", "\u200b", "\u200d", "\u200e", "\u200f", "\u202e", "\u2066", "\ufeff", "\u00ad", "\u0301", "\0",
    "\ud800", "\udfff", "\x1b", "\U0001f600", "\x85", r"\frac{1}{2}", r"\frac", r"\sqrt{2}", r"\sqrt", r"\text{",
    r"\text{ and }", r"\boxed{", r"\left(", r"\pi", r"\infty", r"\pm", r"\cdot", r"\times 10^{3}",
    r"\sum_{n=1}^{3}", r"\begin{pmatrix}", r"\\", r"^\circ", r"\%", r"\$", r"\def\x{\x\x}\x",
    r"\input{/etc/passwd}", "__import__('os')", "1e9", "e400", "0x", "lambda: 0", " not ", " is ", " is a ",
    "Therefore, ", "So ", "the solution is: ", "- ", "(a) ", " & ",
    "knight", "knave", " and ", " or ", " if ", " is not a ", "(1)", "2. ", "Zoey", " cm", " million", "five",
    "True", "NaN", OPEN, CLOSE, "<answer", "</answer", "<think>", "</think>", "<|endoftext|>", f"{OPEN}1{CLOSE}",
]
PAIRS = [("(", ")"), ("-(", ")"), ("((", "))"), ("[", "]"), ("{", "}"), ("$", "$"), ("\\boxed{", "}"), ("\\text{", "}"),
         ("**", "**"), ("`", "`"), ('"', '"'), ("\\(", "\\)"), ("  \n", "\n")]
LINKS = ["**9", "*9", "/7", "^9", "+1", "-1", "/1", "*1", "+0", "e9", "!", "^{9", ",111", "=5", " and 5", "'"]
HUGE = 100_000


def insert(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(PIECES) + text[at:]


def delete(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + text[at + rng.choice([1, 1, 1, 2, 5, 20]) :]


def duplicate(text: str, rng: random.Random) -> str:
    at, length = rng.randint(0, len(text)), rng.choice([1, 1, 2, 5, 20])
    return text[: at + length] + text[at : at + length] * rng.choice([1, 1, 1, 2, 40]) + text[at + length :]


def swap(text: str, rng: random.Random) -> str:
    if len(text) < 2:
        return text
    first, second = sorted(rng.sample(range(len(text)), 2))
    end = second + rng.choice([1, 1, 3, 10])
    return text[:first] + text[second:end] + text[first:second] + text[end:]


def look_alike(text: str, rng: random.Random) -> str:
    places = [i for i, character in enumerate(text[:2_000]) if character in LOOK_ALIKES]
    if not places:
        return text
    at = rng.choice(places)
    return text[:at] + rng.choice(LOOK_ALIKES[text[at]]) + text[at + 1 :]


def other_case(text: str, rng: random.Random) -> str:
    return rng.choice([str.upper, str.lower, str.title, str.swapcase])(text)


def other_digit(text: str, rng: random.Random) -> str:
    places = [i for i, character in enumerate(text[:2_000]) if character.isdigit()]
    if not places:
        return text
    at = rng.choice(places)
    return text[:at] + rng.choice("0123456789") + text[at + 1 :]


def surround(text: str, rng: random.Random) -> str:
    before, after = rng.choice(PAIRS)
    return before + text + after


def repeat(text: str, rng: random.Random) -> str:
    return text + rng.choice([" = ", ", ", " or ", " and ", "\n", " ", "", "; "]) + text


def deep(text: str, rng: random.Random) -> str:
    depth = rng.choice([3, 30, 130, 1_000])
    opening, closing = rng.choice(["()", "{}", "[]", (r"\frac{", "}{1}"), (r"\sqrt{", "}"), (OPEN, CLOSE)])
    return opening * depth + text + closing * rng.choice([depth, depth, depth - 1])


def chain(text: str, rng: random.Random) -> str:
    link = rng.choice(LINKS)
    return text + link * rng.choice([1, 3, 40, 140])


def digits(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice("0139") * rng.choice([4, 30, 290, 5_000]) + text[at:]


def huge(text: str, rng: random.Random) -> str:
    part = rng.choice(PIECES)
    at = rng.choice([0, rng.randint(0, len(text)), len(text)])
    return text[:at] + (part * (HUGE // len(part))) + text[at:]


def long_answer(text: str, rng: random.Random) -> str:
    """As long as the verifiers still read: the worst for a rule whose time grows faster than the text."""
    parts = rng.choices(PIECES, k=rng.choice([1, 1, 2, 3]))
    length = rng.choice([280, 950, 1_900]) - len(text)
    filling = "".join(part * (max(0, length) // len(parts) // len(part)) for part in parts)
    at = rng.choice([0, rng.randint(0, len(text)), len(text)])
    return text[:at] + filling + text[at:]


MUTATIONS: list[tuple[Callable[[str, random.Random], str], int]] = [  # and how often, of WEIGHT
    (insert, 300), (delete, 140), (duplicate, 100), (swap, 100), (look_alike, 80), (other_case, 20), (other_digit, 60),
    (surround, 60), (repeat, 30), (deep, 20), (chain, 40), (digits, 20), (long_answer, 25), (huge, 5),
]
FUNCTIONS, WEIGHTS = zip(*MUTATIONS, strict=True)


def mutate(gold: Gold, rng: random.Random) -> str:
    """A completion with one to four mutations, most of them of the answer alone."""
    before, _, rest = gold.completion.rpartition(OPEN)
    answer, _, after = rest.partition(CLOSE)
    inside = rng.random() < 0.85
    text = answer if inside else gold.completion
    for mutation in rng.choices(FUNCTIONS, WEIGHTS, k=rng.choice([1, 1, 1, 2, 2, 3, 4])):
        text = mutation(text, rng)
    return f"{before}{OPEN}{text}{CLOSE}{after}" if inside else text
