"""Tokens for people: --dump_batch shows one group as it is trained on, with the loss that each token gets; and texts of
a model on a terminal, safe and in whole characters."""

import os
import sys
import unicodedata
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from utils.prompts import decode
from utils.types import MicroBatch

DIM, YELLOW, GREEN, RESET = "\033[2m", "\033[33m", "\033[32m", "\033[0m"
INCOMPLETE = "\ufffd"  # what the bytes of a character that is not complete decode to


def describe_group(micro_batch: MicroBatch, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first group of a micro-batch, read back from its tensors: prompt, hint and every response with their tokens,
    coloured, with the losses they enter."""
    predictors, targets = micro_batch.predictors.tolist(), micro_batch.targets.tolist()
    hint_mask, advantages = micro_batch.hint_mask.tolist(), micro_batch.advantages.tolist()
    num_hint = 0
    while num_hint < len(targets) and hint_mask[num_hint] and predictors[num_hint] == predictors[0] + num_hint:
        num_hint += 1
    prompt_end = predictors[0] + 1  # the state before the first scored token is the prompt's last
    last_of_prefix = predictors[0] + num_hint
    prompt = decode(micro_batch.input_ids[0, :prompt_end].tolist(), tokenizer)
    lines = [
        f"{DIM}prompt ({prompt_end} tokens, no loss): {prompt}{RESET}",
        f"{YELLOW}hint ({num_hint} tokens, sft_loss): {_tokens(targets[:num_hint], tokenizer)}{RESET}",
    ]
    first, column = num_hint, last_of_prefix + 1  # of the response: its first scored token, its first column
    while first < len(targets) and predictors[first] == last_of_prefix:
        length = 1
        while first + length < len(targets) and predictors[first + length] == column + length - 1:
            length += 1
        text = _tokens(targets[first : first + length], tokenizer)
        lines.append(f"{GREEN}response ({length} tokens, pg_loss with advantage {advantages[first]:+.3f}, kl_loss, "
                     f"entropy): {text}{RESET}")
        first, column = first + length, column + length
    return "\n".join(lines)


def _tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return "|".join(decode([token], tokenizer) for token in ids)


def paint(text: str, colour: str) -> str:
    """`text` in `colour`, if this is a terminal; control characters but newline and tab as escapes."""
    shown = "".join(
        char if char in "\n\t" or unicodedata.category(char) != "Cc" else char.encode("unicode_escape").decode()
        for char in text
    )
    return f"{colour}{shown}{RESET}" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else shown


class Piece(NamedTuple):
    """The text of the tokens from number `start` up to, but without, `end`: one or more whole characters."""

    text: str
    start: int
    end: int


def pieces(ids: list[int], whole: bool, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """`ids` cut after every token that completes a character; together they are the text of `ids`.

    Tokens at the end whose character is not complete are left out, unless nothing comes after them (`whole`). The
    pieces of more ids therefore begin with these. Each is decoded after the one before it, since some tokenizers drop
    the space that a text begins with.
    """
    found, before, start = [], 0, 0
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end], tokenizer)[len(decode(ids[before:start], tokenizer)):]
        if not text.endswith(INCOMPLETE) or (whole and end == len(ids)):
            found.append(Piece(text, start, end))
            before, start = start, end
    return found
