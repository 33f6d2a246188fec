"""--dump_batch reads a batch back from its tensors: every token stands under what it is. And texts on a terminal: no
half characters, no control."""

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inference.generate import pieces
from tests.helpers.models import CPU, byte_tokenizer, make_problem
from utils.inspection import describe_group
from utils.packing import Segment, _tensors, pack
from utils.prompts import PromptBuilder, decode, encode
from utils.run.terminal import GREEN, RESET, paint
from utils.types import Prompt, Rollout

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token


def make_group(prompt: str, hint: str, *responses: str) -> list[Rollout]:
    given = Prompt(make_problem(), encode(prompt, TOKENIZER), encode(hint, TOKENIZER), 1)
    group = []
    for response in responses:
        ids = TOKENIZER(response, add_special_tokens=False)["input_ids"]
        group.append(Rollout(given, ids, [0.0] * len(ids), "stop" if response.endswith(END) else "length"))
    return group


def lines_of(micro_batch) -> list[str]:
    return re.sub(r"\033\[\d+m", "", describe_group([micro_batch], TOKENIZER)).split("\n")


def response(text: str, num_tokens: int, advantage: str) -> str:
    return f"response ({num_tokens} tokens, pg_loss with advantage {advantage}, kl_loss, entropy): {text}"


def test_prompt_hint_and_responses_are_told_apart():
    [micro_batch] = pack([make_group("ask ", "hi", "ok" + END, "no", "q", END)], [[1.0, -0.5, 0.0, 2.0]], 100, CPU)
    assert lines_of(micro_batch) == [
        "prompt (4 tokens, no loss): ask ",
        "hint (2 tokens, sft_loss, advantage +2.500): h|i",
        response(f"o|k|{END}", 3, "+1.000"),
        response("n|o", 2, "-0.500"),
        response("q", 1, "+0.000"),
        response(END, 1, "+2.000"),
    ]


def test_a_group_without_a_hint():
    [micro_batch] = pack([make_group("ask ", "", "x", "yz")], [[1.0, 2.0]], 100, CPU)
    assert lines_of(micro_batch) == [
        "prompt (4 tokens, no loss): ask ",
        "hint (0 tokens, sft_loss): ",
        response("x", 1, "+1.000"),
        response("y|z", 2, "+2.000"),
    ]


def test_of_several_groups_in_a_row_the_first_with_a_hint_is_shown_or_else_the_first():
    for first_hint in ("", "hi"):
        for second_hint in ("", "ho"):
            groups = [make_group("ask ", first_hint, "ab", "c"), make_group("p", second_hint, "de", "f")]
            advantages = [[1.0, 2.0], [-0.0004, 0.0]]
            row = [Segment(group, own, own) for group, own in zip(groups, advantages, strict=True)]
            micro_batch = _tensors([row], CPU)
            assert micro_batch.input_ids.shape[0] == 1
            first = ["prompt (4 tokens, no loss): ask ", "hint (2 tokens, sft_loss, advantage +3.000): h|i",
                     response("a|b", 2, "+1.000"), response("c", 1, "+2.000")]
            if not first_hint:
                first[1] = "hint (0 tokens, sft_loss): "
            second = ["prompt (1 tokens, no loss): p", "hint (2 tokens, sft_loss, advantage +0.000): h|o",
                      response("d|e", 2, "-0.000"), response("f", 1, "+0.000")]
            assert lines_of(micro_batch) == (second if second_hint and not first_hint else first)


def test_of_several_micro_batches_the_first_with_a_hint_is_shown_or_else_the_first():
    for hint, shown in (("", "prompt (4 tokens, no loss): ask "), ("ho", "prompt (1 tokens, no loss): p")):
        groups = [make_group("ask ", "", "abcd", "c"), make_group("p", hint, "de", "f")]
        micro_batches = pack(groups, [[1.0, 2.0]] * 2, 9, CPU)
        assert len(micro_batches) == 2
        assert re.sub(r"\033\[\d+m", "", describe_group(micro_batches, TOKENIZER)).startswith(shown)


def test_of_several_rows_only_the_first_group_is_shown():
    groups = [make_group("ask ", "hi", "ab", "c"), make_group("other", "", "de", "fg"), make_group("r", "", "s", "t")]
    [micro_batch] = pack(groups, [[1.0, 2.0]] * 3, 100, CPU)
    assert micro_batch.input_ids.shape[0] > 1
    shown = lines_of(micro_batch)
    assert len(shown) == 4 and shown[0] == "prompt (4 tokens, no loss): ask "


def test_of_several_demonstrations_only_the_first_is_shown():
    """SFT: empty responses, so that all scored tokens of the micro-batch are hint tokens."""
    problems = [make_problem(0, "ask ", demonstration="yes, well"), make_problem(1, "p", demonstration="no")]
    prompts = PromptBuilder(TOKENIZER, 0, False)
    groups = [[Rollout(prompts.demonstration(problem), [], [], "stop")] for problem in problems]
    in_a_row = _tensors([[Segment(group, [0.0], [0.0]) for group in groups]], CPU)
    for micro_batch in (pack(groups, [[0.0]] * 2, 100, CPU)[0], in_a_row):
        assert lines_of(micro_batch) == [
            "prompt (4 tokens, no loss): ask ",
            f"hint (10 tokens, sft_loss, advantage +0.000): {'|'.join('yes, well')}|{END}",
        ]


def test_a_hint_is_shown_as_one_where_prefixes_are_not_shared():
    """The longest row comes first: it may be a copy of the prefix whose hint is scored elsewhere."""
    [micro_batch] = pack([make_group("ask ", "hi", "a", "bcd")], [[1.0, 2.0]], 100, CPU, share_prefix=False)
    shown = lines_of(micro_batch)
    assert shown[0] == "prompt (4 tokens, no loss): ask "
    assert shown[1].startswith("hint (2 tokens") and shown[1].endswith(": h|i")


# ----- pieces -----


texts = st.text(st.sampled_from("ab \n\u00e9\u20ac\U0001f600\ufffd") | st.characters(codec="utf-8"), max_size=12)


@given(st.lists(texts.map(lambda text: encode(text, TOKENIZER)) | st.lists(st.integers(0, len(TOKENIZER) - 1))),
       st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_pieces_are_the_text_and_those_of_a_part_are_the_first_of_them(parts, cut):
    """Whole texts and random ids, which are no UTF-8, in a row."""
    ids = [token for part in parts for token in part]
    found = pieces(ids, True, TOKENIZER)
    assert "".join(piece.text for piece in found) == decode(ids, TOKENIZER)
    assert [piece.start for piece in found] + [len(ids)] == [0] + [piece.end for piece in found]
    part = pieces(ids[:cut], False, TOKENIZER)
    assert part == found[: len(part)]
    assert not any(piece.text.endswith("\ufffd") for piece in part)


def test_a_character_is_a_piece_when_its_last_byte_is_there():
    ids = encode("a\u20acb", TOKENIZER)
    assert len(ids) == 5
    shown = [[tuple(piece) for piece in pieces(ids[:count], False, TOKENIZER)] for count in range(6)]
    assert shown[1] == shown[2] == shown[3] == [("a", 0, 1)]
    assert shown[4:] == [[("a", 0, 1), ("\u20ac", 1, 4)], [("a", 0, 1), ("\u20ac", 1, 4), ("b", 4, 5)]]
    assert pieces(ids[:3], True, TOKENIZER)[1:] == [("\ufffd", 1, 3)]  # nothing will complete it


def test_pieces_keep_the_spaces_that_a_tokenizer_drops_at_the_start_of_a_text():
    words = Tokenizer(models.WordLevel({"\u2581one": 0, "\u2581two": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert decode([1], tokenizer) == "two"
    assert [piece.text for piece in pieces([0, 1, 1, 0], True, tokenizer)] == ["one", " two", " two", " one"]


# ----- paint -----


@pytest.mark.parametrize("colour", ["", GREEN])
def test_control_characters_are_shown_and_not_sent(colour):
    control = [chr(code) for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"]
    assert len(control) == 63
    for char in control:
        assert paint(f"a{char}b", colour) == "a" + repr(char)[1:-1] + "b"
    assert paint("\x1b[2J \r \x9b", colour) == r"\x1b[2J \r \x9b"
    assert paint("\ta\n\u00e9\u20ac", colour) == "\ta\n\u00e9\u20ac"


def test_colours_are_for_terminals_without_NO_COLOR(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("a", GREEN) == "a"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert paint("a\x1b", GREEN) == f"{GREEN}a\\x1b{RESET}"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("a", GREEN) == "a"
    monkeypatch.setenv("NO_COLOR", "")  # as good as not set, by no-color.org
    assert paint("a", GREEN) == f"{GREEN}a{RESET}"
