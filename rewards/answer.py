"""What all verifiers share: the Score, its possible values, and where in a completion the answer stands."""

from typing import NamedTuple

OPEN, CLOSE = "<answer>", "</answer>"


class Score(NamedTuple):
    """`reward` is 1.0 (correct), 0.1 (an answer is there but wrong) or 0.0 (no answer); `reason` is one of a few."""

    reward: float
    correct: bool
    reason: str


CORRECT = Score(1.0, True, "correct")
WRONG_RESULT = Score(0.1, False, "wrong result")
WRONG_NUMBERS = Score(0.1, False, "wrong numbers")
UNPARSABLE = Score(0.1, False, "unparsable")
NO_ANSWER = Score(0.0, False, "no answer")


def last_answer(completion: str) -> str | None:
    """The text inside the last closed `<answer>...</answer>`, untouched (maybe empty); None if no block is closed.

    Of nested or repeated tags the innermost pair counts, so the text never holds a tag: `<answer> <answer> 1 </answer>`
    and `<answer> 1 </answer> 2 </answer>` both give " 1 ". An unclosed block after a closed one is ignored, and so is
    whatever follows the block (the authors want it on the last line: a newline after it costs their model the reward).
    """
    before, _, _ = completion.rpartition(CLOSE)
    _, opened, text = before.rpartition(OPEN)
    return text.partition(CLOSE)[0] if opened else None
