"""Text on a terminal: colours where they are wanted, and nothing that the terminal would obey."""

import os
import sys
import unicodedata

DIM, YELLOW, GREEN, RESET = "\033[2m", "\033[33m", "\033[32m", "\033[0m"


def has_colours() -> bool:
    """Whether stdout is a terminal, and NO_COLOR (no-color.org) is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def escaped(text: str) -> str:
    """Control characters but newline and tab as escapes: model text may hold what a terminal would obey."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) != "Cc" else char.encode("unicode_escape").decode()
        for char in text
    )


def paint(text: str, colour: str) -> str:
    """`text`, escaped, in `colour` where there are colours."""
    return f"{colour}{escaped(text)}{RESET}" if has_colours() else escaped(text)
