"""The schedules: how many slices of a solution UFT, stage and R3 show at a step (numbers of the paper's recipe)."""

import inspect
import math
from collections import Counter
from dataclasses import replace

import pytest

from tests.helpers.models import make_problem
from training import r3, stage, uft

ARGS = uft.Args(model="unused", data="unused", output_dir="unused")
STAGE = stage.Args(model="unused", data="unused", output_dir="unused")
R3 = r3.Args(model="unused", data="unused", output_dir="unused")
draw_hint = uft.draw_hint


def test_the_defaults_are_the_papers():
    assert (ARGS.total_steps, ARGS.hint_steps, ARGS.p_high, ARGS.p_low, ARGS.sft_coef) == (500, 300, 0.95, 0.05, 0.001)
    assert (STAGE.total_steps, STAGE.hint_steps, STAGE.sft_coef) == (500, 300, 0.001)
    assert {args.hint_slices_max for args in (ARGS, STAGE, R3)} == {5}


# ---- UFT ----


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


# ---- stage ----


def stage_lengths(num_chunks, args):
    """{step: slices shown} for steps 1 .. total_steps."""
    problem = make_problem(solution="abcdefgh"[:num_chunks])
    hints = {step: stage.stage_hint(problem, step, args) for step in range(1, args.total_steps + 1)}
    slices = stage.solution_slices(problem.solution, args.hint_slices_max)
    assert all(hint == slices[: len(hint)] for hint in hints.values())  # always the first slices
    return {step: len(hint) for step, hint in hints.items()}


@pytest.mark.parametrize(("num_chunks", "drops"), [
    (1, [150]),
    (2, [100, 200]),
    (3, [75, 150, 225]),
    (4, [60, 120, 180, 240]),
    (5, [50, 100, 150, 200, 250]),
    (8, [50, 100, 150, 200, 250]),  # five slices
])
def test_stage_shows_one_slice_fewer_from_these_steps_on(num_chunks, drops):
    lengths = stage_lengths(num_chunks, STAGE)
    assert lengths[1] == min(num_chunks, 5)
    assert [step for step in range(2, 501) if lengths[step] == lengths[step - 1] - 1] == drops
    assert all(lengths[step] <= lengths[step - 1] for step in range(2, 501))
    assert set(range(drops[-1], 501)) == {step for step, shown in lengths.items() if shown == 0}


def test_stages_follow_their_flags_and_rounding_leaves_none_over():
    """10 // 3 = 3 steps a stage: drops at 3 and 6, then nothing."""
    lengths = stage_lengths(8, replace(STAGE, total_steps=12, hint_steps=10, hint_slices_max=2))
    assert list(lengths.values()) == [2, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_stage_without_a_solution_shows_nothing():
    assert stage.stage_hint(make_problem(solution=""), 1, STAGE) == []


# ---- R3 ----


@pytest.mark.parametrize("num", [1, 3, 4, 5])
def test_r3_is_uniform_from_none_to_all_at_every_step(num):
    """Chi-square over the num + 1 outcomes below its 99.99 % quantile (1, 3, 4, 5 degrees of freedom), for early, late
    and past-hint_steps steps."""
    bound = {1: 15.1, 3: 21.1, 4: 23.5, 5: 25.7}[num]
    count, solution = 1500, "abcde"[:num]
    for step in (1, 150, 300, 301, 500):
        hints = [r3.draw_hint(make_problem(index, solution=solution), step, R3) for index in range(count)]
        assert all(hint == list(solution[: len(hint)]) for hint in hints)
        shown = Counter(map(len, hints))
        expected = count / (num + 1)
        assert sum((shown[k] - expected) ** 2 / expected for k in range(num + 1)) < bound
        assert set(shown) == set(range(num + 1))


def test_r3_draws_anew_for_every_seed_step_and_problem():
    def draws(indices, step=1, seed=0):
        return {index: len(r3.draw_hint(make_problem(index, solution="abcde"), step, replace(R3, seed=seed)))
                for index in indices}

    base = draws(range(60))
    assert draws(reversed(range(30, 60))) == {index: base[index] for index in range(30, 60)}
    assert draws(range(60), step=2) != base != draws(range(60), seed=1)


# ---- the group ----


@pytest.mark.parametrize("hint_of", [uft.draw_hint, stage.stage_hint, r3.draw_hint])
def test_a_hint_does_not_know_the_sample(hint_of):
    """So one draw serves the whole group, which the engine samples from one prompt."""
    assert list(inspect.signature(hint_of).parameters) == ["problem", "step", "args"]
