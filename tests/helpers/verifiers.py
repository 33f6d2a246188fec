"""A verifier as a user would write one, as the text of its file."""

VERIFIER = """
from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT, last_answer


def verify(completion, ground_truth):
    answer = last_answer(completion)
    if answer is None:
        return NO_ANSWER
    return CORRECT if answer.strip() == ground_truth["target"] else WRONG_RESULT
"""
