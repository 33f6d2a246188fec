"""Countdown: reach the target with + - * / and parentheses, using each given number exactly once.

    sum     = product (("+" | "-") product)*
    product = atom (("*" | "/") atom)*
    atom    = number | "(" sum ")"

A number is `0` or ASCII digits without a leading zero; space, tab and newlines may stand between tokens. All else is
unparsable: signs (`-5 + 8` is `8 - 5`), `2(3)`, `**`, `//`, `1.5`, `x = 98`, `44 + 19 + 35 = 98`, an empty answer. The
authors `eval` the text instead: they accept signs, `**`, `//` and decimals, and a result within 1e-5 of the target.
"""

import operator
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_NUMBERS, WRONG_RESULT, Score, last_answer

# The one bound: as nothing recurses and no operator is worse than a product, it limits nesting, digits and time too.
MAX_ANSWER_CHARS = 300
WHOLE = re.compile(rf"-?[0-9]{{1,{MAX_ANSWER_CHARS}}}")
TOKEN = re.compile(r"[1-9][0-9]*|[^ \t\r\n]")  # every other character, 0 too, is a token for `parse` to take or refuse
PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of the last closed answer in `completion`; exact, in time linear in its length, never raising on it.

    `ground_truth` is {"target": int, "numbers": [int, ...]}; NumPy integers are, and texts of one. ValueError if it
    is not.
    """
    target, numbers = parse_ground_truth(ground_truth)
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    expression = parse(answer)
    if expression is None:
        return UNPARSABLE
    if sorted(token for token in expression if isinstance(token, int)) != numbers:
        return WRONG_NUMBERS
    return CORRECT if evaluate(expression) == target else WRONG_RESULT


def parse_ground_truth(ground_truth: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Target and sorted numbers. ValueError if they are not integers, or no answer could use them."""
    try:
        target, numbers = ground_truth["target"], ground_truth["numbers"]
        if isinstance(numbers, str | bytes | Mapping):
            raise TypeError("there are integers in it, but it is no list")
        target, numbers = whole(target), sorted(map(whole, numbers))
    except (KeyError, TypeError) as error:
        raise ValueError(f"countdown ground_truth {ground_truth!r}: target and numbers must be integers") from error
    if not numbers or numbers[0] < 0 or sum(len(str(number)) + 1 for number in numbers) - 1 > MAX_ANSWER_CHARS:
        raise ValueError(f"countdown ground_truth {ground_truth!r}: one or more numbers, none negative, that an answer "
                         f"of {MAX_ANSWER_CHARS} characters can hold")
    return target, numbers


def whole(value: Any) -> int:
    """`value` as int: an integer, or a text of one (the authors' evaluation file has "24"). TypeError if it is not."""
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, bool):
        raise TypeError("a truth value is an integer to Python alone")
    return operator.index(value)


def parse(text: str) -> list[int | str] | None:
    """`text` in reverse Polish order, numbers as int and operators as str; None if the grammar does not have it.

    Dijkstra's shunting-yard algorithm: it has no recursion for 10,000 parentheses to exhaust.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    output: list[int | str] = []
    waiting: list[str] = []  # operators and open parentheses whose right side is not complete
    operand_next = True
    for token in TOKEN.findall(text):
        if operand_next and token == "(":
            waiting.append(token)
        elif operand_next and "0" <= token[0] <= "9":
            output.append(int(token))
            operand_next = False
        elif not operand_next and token in APPLY:
            while waiting and PRECEDENCE[waiting[-1]] >= PRECEDENCE[token]:
                output.append(waiting.pop())
            waiting.append(token)
            operand_next = True
        elif not operand_next and token == ")" and "(" in waiting:
            while (top := waiting.pop()) != "(":
                output.append(top)
        else:
            return None
    if operand_next or "(" in waiting:
        return None
    return output + waiting[::-1]


def evaluate(expression: list[int | str]) -> Fraction | None:
    """The exact value of a `parse` result; None if it divides by zero."""
    stack: list[Fraction] = []
    for token in expression:
        if isinstance(token, int):
            stack.append(Fraction(token))
            continue
        right, left = stack.pop(), stack.pop()
        if token == "/" and right == 0:
            return None
        stack.append(APPLY[token](left, right))
    return stack.pop()
