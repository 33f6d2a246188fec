"""Knights and Knaves: say of every inhabitant, exactly once, whether they are a knight or a knave.

    answer    = between (statement between)+
    statement = name "is" ("a" | "the")? ("knight" | "knave")
    between   = any number of spaces, newlines , ; . the word "and", and numberings
    numbering = "(1)" | "1." | "1)" | "1:"          its value does not matter

Case and spaces do not matter, nor does the order. All else is unparsable: negations ("is not a knight"), plurals, other
verbs, questions, roles without a name, invisible characters. A name that is missing, unknown or given twice is wrong.
"""

import re
from collections.abc import Mapping
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT, Score, last_answer

MAX_ANSWER_CHARS = 2_000
TOKEN = re.compile(r"\([0-9]{1,3}\)|\b[0-9]{1,3}[.):]|[^\W\d_](?:[\w'-]*\w)?|[,;.]|[^ \t\r\n]")
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
    roles = parse(answer)
    if roles is None:
        return UNPARSABLE
    return CORRECT if len(roles) == len(solution) and dict(roles) == solution else WRONG_RESULT


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


def parse(text: str) -> list[tuple[str, bool]] | None:
    """(casefolded name, is a knight) of each statement, in order; None if the grammar does not have `text`."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    roles: list[tuple[str, bool]] = []
    name: list[str] = []
    expected = "name"
    for token in TOKEN.findall(text):
        word = token.casefold()
        is_letters = word[0].isalpha()
        if expected == "name" and is_letters and word != "is":
            if name or word != "and":
                name.append(word)
        elif expected == "name" and word == "is" and name:
            expected = "article or role"
        elif expected == "name" and not is_letters and not name and is_between(word):
            continue
        elif expected == "article or role" and word in ("a", "the"):
            expected = "role"
        elif expected != "name" and word in ROLES:
            roles.append((" ".join(name), ROLES[word]))
            name, expected = [], "name"
        else:
            return None
    return roles if roles and not name else None


def is_between(word: str) -> bool:
    """Whether a token without letters is a separator or a numbering (the only one of more than one character)."""
    return word in (",", ";", ".") or len(word) > 1


def normal(name: str) -> str:
    return " ".join(name.casefold().split())
