"""The arithmetic of the values on their way, by hand."""

import pytest

from utils.types import LongestGroup


@pytest.mark.parametrize(("group", "tokens", "rows", "row_length"), [
    (LongestGroup(10, responses=4, response=5), 30, 1, 30),
    (LongestGroup(10, responses=4, response=5, share_prefix=False), 30, 4, 15),  # each response with its own prefix
    (LongestGroup(12), 12, 1, 12),  # a prompt and its demonstration
    (LongestGroup(12, share_prefix=False), 12, 1, 12),
])
def test_longest_group_by_hand(group, tokens, rows, row_length):
    assert (group.tokens, group.rows, group.row_length) == (tokens, rows, row_length)
