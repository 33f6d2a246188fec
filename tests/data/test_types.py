"""The arithmetic of the values on their way, by hand."""

import pytest

from utils.types import LongestGroup


@pytest.mark.parametrize(("group", "tokens", "rows", "row_length"), [
    (LongestGroup(10, responses=4, response=5), 30, 1, 30),
    (LongestGroup(10, responses=4, response=5, share_prefix=False), 30, 4, 15),  # each response with its own prefix
    (LongestGroup(12), 12, 1, 12),  # a prompt and its demonstration
    (LongestGroup(12, share_prefix=False), 12, 1, 12),
    (LongestGroup(10, responses=4, response=5, solo=1), 25, 2, 25),  # three behind the prompt, one behind its own
    (LongestGroup(10, responses=4, response=5, share_prefix=False, solo=1), 25, 4, 15),
])
def test_longest_group_by_hand(group, tokens, rows, row_length):
    assert (group.tokens, group.rows, group.row_length) == (tokens, rows, row_length)


def test_members_of_the_longest_row():
    assert LongestGroup(10, 4, 5).members_of_row == 4 and LongestGroup(10, 4, 5, False).members_of_row == 1
    assert LongestGroup(10, 4, 5, solo=1).members_of_row == 3 and LongestGroup(10).members_of_row == 0
