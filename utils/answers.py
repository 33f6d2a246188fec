"""What responses have in common that no verifier looks at: the same answer under every problem, and repetition."""

import re
from collections.abc import Sequence

from rewards.answer import last_answer

NUMBER = re.compile(r"[0-9]+")
LONGEST = 200  # characters of a pattern
WORD = 4  # tokens


def answer_pattern(completion: str, prompt: str) -> str:
    """The final answer without blanks, where a number of the prompt is named by its place there: "(7 + 24) + 21" under
    "Numbers: 7, 24, 21" is "(#0+#1)+#2", and so is the same expression under any other numbers. Empty without one.

    The answer is in the last `<answer>` block, else in the last `\\boxed{`.
    """
    answer = last_answer(completion)
    if answer is None:
        _, boxed, rest = completion.rpartition(r"\boxed{")
        answer = rest.partition("}")[0] if boxed else ""
    places: dict[str, int] = {}
    for number in NUMBER.findall(prompt):
        places.setdefault(number, len(places))
    plain = "".join(answer[: 2 * LONGEST].split())
    return NUMBER.sub(lambda found: f"#{places[found[0]]}" if found[0] in places else found[0], plain)[:LONGEST]


def repeats_itself(ids: Sequence[int]) -> bool:
    """Whether less than half of the runs of 4 tokens are distinct."""
    runs = list(zip(*(ids[start:] for start in range(WORD)), strict=False))
    return 2 * len(set(runs)) < len(runs)
