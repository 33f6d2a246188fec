"""The hint-truncated prompt: slices, prompts, lengths, demonstrations, the beginning-of-sequence token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models import byte_tokenizer, make_problem
from utils.prompts import PromptBuilder, encode, solution_slices
from utils.run.errors import BadInput
from utils.setup.inputs import check_demonstration_lengths, check_prompt_lengths

TOKENIZER = byte_tokenizer("<think> we")  # the phrase is one token, everything else a token a byte


# ---- slices ----


@pytest.mark.parametrize(
    ("num_chunks", "slices"),
    [
        (0, []),
        (1, ["a"]),
        (2, ["a", "b"]),
        (3, ["a", "b", "c"]),  # Countdown has 3 or 4
        (4, ["a", "b", "c", "d"]),
        (5, ["a", "b", "c", "d", "e"]),
        (6, ["a", "b", "cd", "e", "f"]),  # ends at 1.2, 2.4, 3.6, 4.8, 6
        (7, ["a", "bc", "d", "ef", "g"]),  # 1.4, 2.8, 4.2, 5.6, 7
        (8, ["ab", "c", "de", "f", "gh"]),  # 1.6, 3.2, 4.8, 6.4, 8
        (9, ["ab", "cd", "e", "fg", "hi"]),  # 1.8, 3.6, 5.4, 7.2, 9
        (10, ["ab", "cd", "ef", "gh", "ij"]),
        (11, ["ab", "cd", "efg", "hi", "jk"]),  # 2.2, 4.4, 6.6, 8.8, 11
        (12, ["ab", "cde", "fg", "hij", "kl"]),  # 2.4, 4.8, 7.2, 9.6, 12
    ],
)
def test_five_slices_by_hand(num_chunks, slices):
    assert solution_slices("abcdefghijkl"[:num_chunks], 5) == slices


def test_halves_round_to_even():
    assert solution_slices("abcdef", 4) == ["ab", "c", "d", "ef"]  # ends at 1.5, 3, 4.5, 6
    assert solution_slices("abcde", 2) == ["ab", "cde"]  # 2.5, 5


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text("xyz\n ", min_size=1, max_size=3), max_size=110), st.integers(1, 9))
def test_slices_join_to_the_solution_and_none_is_empty(solution, slices_max):
    slices = solution_slices(solution, slices_max)
    assert "".join(slices) == "".join(solution)
    assert len(slices) == min(slices_max, len(solution))
    assert all(slices)


# ---- prompts ----


@pytest.mark.parametrize(("max_length", "shown", "share"), [(20, 2, 0.75), (9, 1, 0.25), (8, 0, 0.0)])
def test_the_share_of_a_hint_is_that_of_the_solutions_characters(max_length, shown, share):
    problem = make_problem(prompt="question", solution=["a", "bb", "c"])
    prompt = PromptBuilder(TOKENIZER, max_length, False).build(problem, ["a", "bb"])
    assert (prompt.hint_slices, prompt.hint_share) == (shown, share)
    assert PromptBuilder(TOKENIZER, 20, False).demonstration(problem).hint_share == 1


def test_prompt_and_hint_are_tokenised_separately():
    problem = make_problem(prompt="add 1 <think> ", solution=["we add", " 2"])
    assert len(encode("add 1 <think> we add", TOKENIZER)) < len("add 1 <think> we add")  # "<think> we" would be one
    prompt = PromptBuilder(TOKENIZER, 100, False).build(problem, problem.solution)
    assert prompt.prompt_ids == [TOKENIZER.convert_tokens_to_ids(c) for c in "addĠ1Ġ<think>Ġ"]
    assert prompt.hint_ids == [TOKENIZER.convert_tokens_to_ids(c) for c in "weĠaddĠ2"]
    assert (prompt.problem, prompt.hint_slices) == (problem, 2)


def test_tokens_may_span_slices_of_the_hint():
    """The hint is one text: it is cut at slices, but not tokenised slice by slice."""
    prompt = PromptBuilder(TOKENIZER, 100, False).build(make_problem(), ["so <think", "> we"])
    assert prompt.hint_ids == encode("so <think> we", TOKENIZER) and len(prompt.hint_ids) == 4


def test_without_a_hint_the_prompt_stands_alone():
    prompt = PromptBuilder(TOKENIZER, 3, False).build(make_problem(prompt="abc"))
    assert (len(prompt.prompt_ids), prompt.hint_ids, prompt.hint_slices) == (3, [], 0)


@pytest.mark.parametrize(
    ("max_prompt_length", "hint", "slices"),
    [(13, "aabbbcccc", 3), (12, "aabbb", 2), (9, "aabbb", 2), (8, "aa", 1), (6, "aa", 1), (5, "", 0), (4, "", 0)],
)
def test_whole_slices_are_dropped_from_the_end_and_the_prompt_is_kept(max_prompt_length, hint, slices):
    prompts = PromptBuilder(TOKENIZER, max_prompt_length, False)
    prompt = prompts.build(make_problem(prompt="1234"), ["aa", "bbb", "cccc"])
    assert TOKENIZER.decode(prompt.prompt_ids) == "1234"
    assert (TOKENIZER.decode(prompt.hint_ids), prompt.hint_slices) == (hint, slices)


def test_the_share_of_a_hint_is_one_where_it_shows_all_of_the_solution():
    prompts, problem = PromptBuilder(TOKENIZER, 9, False), make_problem(prompt="1234", solution=["aa", "bbb"])
    assert [prompts.build(problem, hint).hint_share for hint in ([], ["aa"], ["aa", "bbb"])] == [0, 0.4, 1]
    assert PromptBuilder(TOKENIZER, 8, False).build(problem, problem.solution).hint_share == 0.4  # it does not fit


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text("ab <think> we", min_size=1, max_size=8), st.lists(st.text("we <think> 1", max_size=8), max_size=5),
       st.integers(0, 30))
def test_as_many_slices_are_shown_as_fit(text, hint, room):
    prompt_ids = encode(text, TOKENIZER)
    prompt = PromptBuilder(TOKENIZER, len(prompt_ids) + room, False).build(make_problem(prompt=text), hint)
    shown = max(k for k in range(len(hint) + 1) if len(encode("".join(hint[:k]), TOKENIZER)) <= room)
    assert prompt.prompt_ids == prompt_ids
    assert prompt.hint_slices == shown
    assert prompt.hint_ids == encode("".join(hint[:shown]), TOKENIZER)


# ---- lengths ----


def test_a_prompt_that_is_too_long_is_an_error_that_names_the_flags():
    problems = [make_problem(0, "12345"), make_problem(1, "1234567"), make_problem(2, "123")]
    assert check_prompt_lengths(problems, PromptBuilder(TOKENIZER, 7, False), "test", skip=False) == (problems, 0)
    with pytest.raises(BadInput) as error:
        check_prompt_lengths(problems, PromptBuilder(TOKENIZER, 4, False), "test", skip=False)
    for part in ("--max_prompt_length 4", "2 of 3 test prompts", "7 tokens", "--skip_long_prompts"):
        assert part in str(error.value)


def test_skipping_keeps_the_others_in_their_order():
    problems = [make_problem(0, "12345"), make_problem(1, "1234567"), make_problem(2, "123")]
    prompts = PromptBuilder(TOKENIZER, 5, False)
    assert check_prompt_lengths(problems, prompts, "train", skip=True) == ([problems[0], problems[2]], 1)


def test_skipping_all_is_an_error():
    with pytest.raises(BadInput, match="--max_prompt_length 2: no train prompt is as short as that"):
        check_prompt_lengths([make_problem(prompt="123")], PromptBuilder(TOKENIZER, 2, False), "train", skip=True)


# ---- demonstrations ----


def test_a_demonstration_is_prompt_and_whole_answer_and_the_end():
    problem = make_problem(prompt="add 1 <think> ", solution=["we", " add"],
                           demonstration="we add </think> <answer> 1 </answer>")
    prompt = PromptBuilder(TOKENIZER, 0, False).demonstration(problem)
    assert prompt.prompt_ids == encode("add 1 <think> ", TOKENIZER)
    assert prompt.hint_ids[:-1] == encode(problem.demonstration, TOKENIZER)  # tokenised apart from the prompt
    assert prompt.hint_ids[-1] == TOKENIZER.eos_token_id
    assert prompt.hint_slices == 2


def test_a_demonstration_is_left_out_rather_than_cut():
    problems = [make_problem(index, "123", demonstration="x" * length) for index, length in enumerate((5, 9, 6))]
    built = [PromptBuilder(TOKENIZER, 0, False).demonstration(problem) for problem in problems]
    lengths = [len(p.prompt_ids) + len(p.hint_ids) for p in built]
    assert lengths == [9, 13, 10]  # the end-of-sequence token is counted
    assert check_demonstration_lengths(problems, PromptBuilder(TOKENIZER, 0, False), 13) == (problems, 0)
    prompts = PromptBuilder(TOKENIZER, 0, False)
    assert check_demonstration_lengths(problems, prompts, 10) == ([problems[0], problems[2]], 1)
    assert check_demonstration_lengths(problems, PromptBuilder(TOKENIZER, 0, False), 9) == ([problems[0]], 2)
    with pytest.raises(BadInput, match="--max_length 8: no demonstration is as short, the shortest has 9"):
        check_demonstration_lengths(problems, PromptBuilder(TOKENIZER, 0, False), 8)


# ---- the beginning-of-sequence token ----


def test_prompts_begin_with_the_tokenizers_bos_where_it_is_asked_for_and_exists():
    with_bos = byte_tokenizer("<think> we")
    with_bos.add_special_tokens({"bos_token": "<|begin|>"})
    problem = make_problem(prompt="abc", solution=["x", "y"], demonstration="x y")
    bos = [with_bos.bos_token_id]
    for tokenizer, asked, start in ((with_bos, True, bos), (with_bos, False, []), (TOKENIZER, True, [])):
        assert PromptBuilder(tokenizer, 100, asked).build(problem).prompt_ids == start + encode("abc", tokenizer)
        assert PromptBuilder(tokenizer, 100, asked).build(problem, ["x"]).hint_ids == encode("x", tokenizer)
        demonstration = PromptBuilder(tokenizer, 0, asked).demonstration(problem)
        assert demonstration.prompt_ids == start + encode("abc", tokenizer)
        assert demonstration.hint_ids == [*encode("x y", tokenizer), tokenizer.eos_token_id]


def test_a_prompt_is_shown_with_the_bos_that_the_model_gets():
    with_bos = byte_tokenizer("<think> we")
    with_bos.add_special_tokens({"bos_token": "<|begin|>"})
    problem = make_problem(prompt="a 'b'\n")
    assert PromptBuilder(with_bos, 0, True).printable(problem) == ("\"<|begin|>a 'b'\\n\"", 7)
    assert PromptBuilder(with_bos, 0, False).printable(problem) == PromptBuilder(TOKENIZER, 0, True).printable(problem)
    assert PromptBuilder(TOKENIZER, 0, True).printable(problem) == ("\"a 'b'\\n\"", 6)


def test_the_bos_counts_as_a_token_of_the_prompt():
    tokenizer = byte_tokenizer("<think> we")
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    problems = [make_problem(prompt="abc", demonstration="xyz")]
    assert check_prompt_lengths(problems, PromptBuilder(tokenizer, 4, True), "train", skip=False) == (problems, 0)
    assert check_demonstration_lengths(problems, PromptBuilder(tokenizer, 0, True), 8) == (problems, 0)
    assert check_prompt_lengths(problems, PromptBuilder(tokenizer, 3, False), "train", skip=False) == (problems, 0)
    with pytest.raises(BadInput):
        check_prompt_lengths(problems, PromptBuilder(tokenizer, 3, True), "train", skip=False)
    assert check_demonstration_lengths(problems, PromptBuilder(tokenizer, 0, False), 7) == (problems, 0)
    with pytest.raises(BadInput):
        check_demonstration_lengths(problems, PromptBuilder(tokenizer, 0, True), 7)
    prompt = PromptBuilder(tokenizer, 5, True).build(problems[0], ["x", "yy"])
    assert prompt.hint_slices == 1  # the second would be the 7th token
