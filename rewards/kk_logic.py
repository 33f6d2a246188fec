r"""Knights and Knaves: say of every inhabitant, exactly once, whether they are a knight or a knave.

    answer    = opening? between (statement between)+
    statement = name "is" ("a" | "the")? ("knight" | "knave")
    between   = any number of spaces, newlines , ; . : & | $, bullets (- * + and two of Unicode's), numberings, LaTeX's
                line break, `and` and signs of a formula, the words "and", "therefore", "so", "thus", "hence"
    numbering = "(1)" | "[1]" | "1." | "1)" | "1:" | "(a)" | "[a]" | "a)" | "(ii)"     its value does not matter
    opening   = bullets and those words, then "the"? "final"? ("solution" | "answer") ("is" | ":")
                ("as follows" | "that")?

Case and spaces do not matter, nor does the order, nor LaTeX's \text{} and \boxed{} around anything. All else is
unparsable: negations ("is not a knight"), plurals, other verbs, questions, roles without a name, invisible characters.
A name that is missing, unknown or given twice is wrong. The authors search for "NAME is a ROLE" in any text with as
many roles as names: "It is false that Zoey is a knight" passes.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer

MAX_ANSWER_CHARS = 2_000
TOKEN = re.compile(
    r"""(?P<between> \((?:[0-9]{1,3}|[A-Za-z]|[ivx]{2,4})\) | \[(?:[0-9]{1,3}|[A-Za-z])\]
            | \b(?:[0-9]{1,3}[.):]|[A-Za-z]\))
            | [-,;.:&|$*+\u2022\u2013] | \\[\\()\[\]] | \\(?:land|wedge|quad)(?![A-Za-z]))
      | (?P<word> [^\W\d_](?:[\w'-]*\w)?)
      | (?P<other> [^ \t\r\n])""",
    re.VERBOSE,
)
WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")
LEAD_INS = frozenset(["therefore", "so", "thus", "hence"])
OPENING = re.compile(
    r"\A[-*\s]*(?:(?:and|therefore|so|thus|hence)[,:\s]+)*(?:the\s+)?(?:final\s+)?(?:solution|answer)\s*(?:\bis\b|:)"
    r"(?:\s+(?:as\s+follows|that)\b)?",
    re.IGNORECASE | re.ASCII,
)
ROLES = {"knight": True, "knave": False}


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of the last closed answer in `completion`; in time linear in its length, never raising on it.

    `ground_truth` is {"names": [str, ...], "solution": [is a knight, ...]} or, where one of these is missing,
    {"solution_text_format": an answer}. ValueError if it is not.
    """
    solution = parse_ground_truth(ground_truth)
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    if len(answer) > MAX_ANSWER_CHARS:
        return UNPARSABLE
    # First as it is: people may be called "So Yeon", or worse.
    readings = [roles for roles in (parse(answer), parse(OPENING.sub("", answer), LEAD_INS)) if roles]
    if not readings:
        return UNPARSABLE
    is_right = any(len(roles) == len(solution) and dict(roles) == solution for roles in readings)
    return CORRECT if is_right else WRONG_RESULT


def parse_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, bool]:
    """Who is a knight, by casefolded name. ValueError if a role is not true or false, or no answer could be right: a
    name is empty, not unique, or not a name in the grammar (`is`, `R2 & D2`)."""
    try:
        names, is_knight = ground_truth.get("names"), ground_truth.get("solution")
        if names is None or is_knight is None:
            roles = parse(ground_truth["solution_text_format"])
        else:
            if isinstance(names, str) or isinstance(is_knight, bytes):
                raise TypeError("one value, where there should be a list")
            roles = [(normal(name), [False, True].index(role)) for name, role in zip(names, is_knight, strict=True)]
        solution = {name: bool(role) for name, role in roles}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"kk_logic ground_truth {ground_truth!r}: needs names and solution (true or false for each), "
                         "or solution_text_format") from error
    if not solution or len(solution) != len(roles) or "" in solution:
        raise ValueError(f"kk_logic ground_truth {ground_truth!r}: one or more names, none empty and none twice")
    if parse("\n".join(f"{name} is a knave" for name in solution)) != [(name, False) for name in solution]:
        raise ValueError(f"kk_logic ground_truth {ground_truth!r}: a name that no answer can hold")
    return solution


def parse(text: str, lead_ins: Collection[str] = ()) -> list[tuple[str, bool]] | None:
    """(casefolded name, is a knight) of each statement, in order; None if the grammar, with these `lead_ins` and no
    opening, does not have `text`."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    for _ in range(2):  # \boxed{\text{..}}
        text = WRAPPER.sub(r" \1 ", text)
    roles: list[tuple[str, bool]] = []
    name: list[str] = []
    expected = "name"
    for token in TOKEN.finditer(text):
        word = token[0].casefold()
        if expected == "name" and token["word"] and word != "is":
            if name or (word != "and" and word not in lead_ins):
                name.append(word)
        elif expected == "name" and word == "is" and name:
            expected = "article or role"
        elif expected == "name" and token["between"] and not name:
            continue
        elif expected == "article or role" and word in ("a", "the"):
            expected = "role"
        elif expected != "name" and word in ROLES:
            roles.append((" ".join(name), ROLES[word]))
            name, expected = [], "name"
        else:
            return None
    return roles if roles and not name else None


def normal(name: str) -> str:
    return " ".join(name.casefold().split())
