"""The hint-truncated prompt: slices, the schedule's draw, lengths, demonstrations."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import byte_tokenizer, make_problem
from training import uft
from training.uft import Args, draw_hint
from utils.checks import BadInput
from utils.hints import (
    build_demonstration,
    build_prompt,
    check_demonstration_lengths,
    check_prompt_lengths,
    encode,
    solution_slices,
)

TOKENIZER = byte_tokenizer("<think> we")  # the phrase is one token, everything else a token a byte
ARGS = Args(model="unused", data="unused", output_dir="unused")


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


# ---- UFT's draw ----


class Recorder:
    """In the place of a random generator: keeps what a binomial draw was asked for."""

    def __init__(self):
        self.asked = []

    def binomial(self, n, p):
        self.asked.append((n, p))
        return n


@pytest.mark.parametrize(
    ("step", "p"),
    [(1, 0.95), (75, 0.8182), (100, 0.725), (150, 0.5), (200, 0.275), (225, 0.1818), (300, 0.05)],
)
def test_probability_of_a_slice_follows_the_cosine(monkeypatch, step, p):
    """At 100 and 200 of 300 the cosine is 1/2 and -1/2; at 75 and 225 it is +- 0.70711."""
    recorder = Recorder()
    monkeypatch.setattr(uft.seeding, "generator", lambda *key: recorder)
    assert draw_hint(make_problem(solution="abc"), step, ARGS) == ["a", "b", "c"]
    [(n, asked)] = recorder.asked
    assert n == 3 and math.isclose(asked, p, abs_tol=4e-5)


def test_schedule_follows_its_flags(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(uft.seeding, "generator", lambda *key: recorder)
    args = replace(ARGS, p_high=0.8, p_low=0.2, hint_steps=10, hint_slices_max=2)
    assert draw_hint(make_problem(solution="abcd"), 5, args) == ["ab", "cd"]
    draw_hint(make_problem(solution="abcd"), 10, args)
    assert recorder.asked == [(2, pytest.approx(0.5)), (2, pytest.approx(0.2))]
    assert draw_hint(make_problem(solution="abcd"), 11, args) == []


@pytest.mark.parametrize(("step", "p"), [(1, 0.95), (75, 0.8182), (150, 0.5), (225, 0.1818), (300, 0.05)])
def test_number_of_slices_is_binomial(step, p):
    count, num = 3000, 4
    drawn = [draw_hint(make_problem(index, solution="abcd"), step, ARGS) for index in range(count)]
    assert all(hint == list("abcd"[: len(hint)]) for hint in drawn)  # always the first slices
    lengths = [len(hint) for hint in drawn]
    assert abs(sum(lengths) / (count * num) - p) < 5 * (p * (1 - p) / (count * num)) ** 0.5
    for shown in range(num + 1):
        share = math.comb(num, shown) * p**shown * (1 - p) ** (num - shown)
        assert abs(lengths.count(shown) - count * share) < 5 * (count * share * (1 - share)) ** 0.5 + 1


def test_no_hint_after_hint_steps_and_none_without_a_solution():
    problems = [make_problem(index, solution="abcd") for index in range(200)]
    assert any(draw_hint(problem, 300, ARGS) for problem in problems)
    assert not any(draw_hint(problem, step, ARGS) for problem in problems for step in (301, 302, 500))
    assert draw_hint(make_problem(solution=""), 1, ARGS) == []


def test_draw_is_a_function_of_seed_step_and_problem():
    def draws(indices, step=150, seed=0):
        args = replace(ARGS, seed=seed, p_high=0.5, p_low=0.5)  # one distribution for all steps
        return {index: len(draw_hint(make_problem(index, solution="abcde"), step, args)) for index in indices}

    base = draws(range(60))
    assert draws(range(60)) == base  # the same again
    assert draws(reversed(range(30, 60))) == {index: base[index] for index in range(30, 60)}  # whatever came before
    assert len(set(base.values())) > 3
    assert draws(range(60), step=151) != base
    assert draws(range(60), seed=1) != base
    assert draws(range(60), seed=1, step=149) != base
    assert list(base.values()) != list(draws(range(60, 120)).values())


# ---- prompts ----


def test_prompt_and_hint_are_tokenised_separately():
    problem = make_problem(prompt="add 1 <think> ", solution=["we add", " 2"])
    assert len(encode("add 1 <think> we add", TOKENIZER)) < len("add 1 <think> we add")  # "<think> we" would be one
    prompt = build_prompt(problem, TOKENIZER, 100, problem.solution)
    assert prompt.prompt_ids == [TOKENIZER.convert_tokens_to_ids(c) for c in "addĠ1Ġ<think>Ġ"]
    assert prompt.hint_ids == [TOKENIZER.convert_tokens_to_ids(c) for c in "weĠaddĠ2"]
    assert (prompt.problem, prompt.hint_slices) == (problem, 2)


def test_tokens_may_span_slices_of_the_hint():
    """The hint is one text: it is cut at slices, but not tokenised slice by slice."""
    prompt = build_prompt(make_problem(), TOKENIZER, 100, ["so <think", "> we"])
    assert prompt.hint_ids == encode("so <think> we", TOKENIZER) and len(prompt.hint_ids) == 4


def test_without_a_hint_the_prompt_stands_alone():
    prompt = build_prompt(make_problem(prompt="abc"), TOKENIZER, 3)
    assert (len(prompt.prompt_ids), prompt.hint_ids, prompt.hint_slices) == (3, [], 0)


@pytest.mark.parametrize(
    ("max_prompt_length", "hint", "slices"),
    [(13, "aabbbcccc", 3), (12, "aabbb", 2), (9, "aabbb", 2), (8, "aa", 1), (6, "aa", 1), (5, "", 0), (4, "", 0)],
)
def test_whole_slices_are_dropped_from_the_end_and_the_prompt_is_kept(max_prompt_length, hint, slices):
    prompt = build_prompt(make_problem(prompt="1234"), TOKENIZER, max_prompt_length, ["aa", "bbb", "cccc"])
    assert TOKENIZER.decode(prompt.prompt_ids) == "1234"
    assert (TOKENIZER.decode(prompt.hint_ids), prompt.hint_slices) == (hint, slices)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text("ab <think> we", min_size=1, max_size=8), st.lists(st.text("we <think> 1", max_size=8), max_size=5),
       st.integers(0, 30))
def test_as_many_slices_are_shown_as_fit(text, hint, room):
    prompt_ids = encode(text, TOKENIZER)
    prompt = build_prompt(make_problem(prompt=text), TOKENIZER, len(prompt_ids) + room, hint)
    shown = max(k for k in range(len(hint) + 1) if len(encode("".join(hint[:k]), TOKENIZER)) <= room)
    assert prompt.prompt_ids == prompt_ids
    assert prompt.hint_slices == shown
    assert prompt.hint_ids == encode("".join(hint[:shown]), TOKENIZER)


# ---- lengths ----


def test_a_prompt_that_is_too_long_is_an_error_that_names_the_flags():
    problems = [make_problem(0, "12345"), make_problem(1, "1234567"), make_problem(2, "123")]
    assert check_prompt_lengths(problems, TOKENIZER, 7, "test", skip=False) == problems
    with pytest.raises(BadInput) as error:
        check_prompt_lengths(problems, TOKENIZER, 4, "test", skip=False)
    for part in ("--max_prompt_length 4", "2 of 3 test prompts", "7 tokens", "--skip_long_prompts"):
        assert part in str(error.value)


def test_skipping_keeps_the_others_in_their_order():
    problems = [make_problem(0, "12345"), make_problem(1, "1234567"), make_problem(2, "123")]
    assert check_prompt_lengths(problems, TOKENIZER, 5, "train", skip=True) == [problems[0], problems[2]]


def test_skipping_all_is_an_error():
    with pytest.raises(BadInput, match="--max_prompt_length 2: no train prompt is as short as that"):
        check_prompt_lengths([make_problem(prompt="123")], TOKENIZER, 2, "train", skip=True)


# ---- demonstrations ----


def test_a_demonstration_is_prompt_and_whole_answer_and_the_end():
    problem = make_problem(prompt="add 1 <think> ", solution=["we", " add"],
                           demonstration="we add </think> <answer> 1 </answer>")
    prompt = build_demonstration(problem, TOKENIZER)
    assert prompt.prompt_ids == encode("add 1 <think> ", TOKENIZER)
    assert prompt.hint_ids[:-1] == encode(problem.demonstration, TOKENIZER)  # tokenised apart from the prompt
    assert prompt.hint_ids[-1] == TOKENIZER.eos_token_id
    assert prompt.hint_slices == 2


def test_a_demonstration_is_left_out_rather_than_cut():
    problems = [make_problem(index, "123", demonstration="x" * length) for index, length in enumerate((5, 9, 6))]
    lengths = [len(p.prompt_ids) + len(p.hint_ids) for p in (build_demonstration(p, TOKENIZER) for p in problems)]
    assert lengths == [9, 13, 10]  # the end-of-sequence token is counted
    assert check_demonstration_lengths(problems, TOKENIZER, 13) == (problems, 0)
    assert check_demonstration_lengths(problems, TOKENIZER, 10) == ([problems[0], problems[2]], 1)
    assert check_demonstration_lengths(problems, TOKENIZER, 9) == ([problems[0]], 2)
    with pytest.raises(BadInput, match="--max_length 8: no demonstration is as short, the shortest has 9"):
        check_demonstration_lengths(problems, TOKENIZER, 8)
