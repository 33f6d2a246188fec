"""Tree: name every state of a walk. Right only as a whole."""

from collections.abc import Mapping
from typing import Any

from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT, Score, last_answer


def verify(completion: str, ground_truth: Mapping[str, Any]) -> Score:
    """The Score of the last closed answer in `completion`: the path, whatever white space stands around or in it.

    `ground_truth` is {"path": str}. ValueError if it is not, or if the path is empty.
    """
    path = ground_truth.get("path")
    if not isinstance(path, str) or not path.split():
        raise ValueError(f"tree ground_truth {ground_truth!r}: path must be a text that is not empty")
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    return CORRECT if "".join(answer.split()) == "".join(path.split()) else WRONG_RESULT
