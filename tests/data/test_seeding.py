"""Randomness is a function of (seed, step, problem, sample) and of what it is for."""

import numpy as np
import pytest

from inference.sampling import sampling_uniforms
from tests.helpers.models import make_prompt
from utils import seeding


def prompts_of(*indices):
    return [make_prompt([1, 2], index=index) for index in indices]


def test_a_generator_depends_on_its_purpose_and_on_every_part_of_its_key_alone():
    def draw(*key):
        return seeding.generator(*key).random(4).tolist()

    assert draw("hint", 3, 1, 4) == draw("hint", 3, 1, 4)
    np.random.seed(0)  # noqa: NPY002  the global generator has no part in it
    assert draw("hint", 3, 1, 4) == draw("hint", 3, 1, 4)
    keys = [("hint", 3, 1, 4), ("sample", 3, 1, 4), ("hint", 4, 1, 4), ("hint", 3, 2, 4), ("hint", 3, 1, 5),
            ("hint", 1, 3, 4)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_generators_stay_what_they_are():
    """A resumed run draws what the unbroken one would have drawn, with the next version of the code too."""
    drawn = seeding.generator("hint", 0, 1, 2).random(2)
    np.testing.assert_allclose(drawn, [0.2924264844933556, 0.5127429135467058], rtol=1e-12)


def test_uniforms_depend_on_problem_and_sample_not_on_the_batch():
    alone = sampling_uniforms(prompts_of(7), range(2), 5, seed=1, step=3)[0]
    together = sampling_uniforms(prompts_of(4, 9, 7), range(6), 5, seed=1, step=3)
    assert alone.shape == (2, 5) and together[2].shape == (6, 5)
    np.testing.assert_array_equal(together[2][:2], alone)
    np.testing.assert_array_equal(sampling_uniforms(prompts_of(9), range(3, 6), 5, seed=1, step=3)[0], together[1][3:])


def test_a_shorter_limit_draws_the_first_of_the_same_numbers():
    np.testing.assert_array_equal(sampling_uniforms(prompts_of(7), range(2), 50, 1, 3)[0][:, :9],
                                  sampling_uniforms(prompts_of(7), range(2), 9, 1, 3)[0])


@pytest.mark.parametrize(("index", "seed", "step"), [(8, 1, 3), (7, 2, 3), (7, 1, 4), (7, 2, 2), (7, 3, 1)])
def test_uniforms_differ_between_problems_seeds_and_steps(index, seed, step):
    base = sampling_uniforms(prompts_of(7), range(4), 5, seed=1, step=3)[0]
    other = sampling_uniforms(prompts_of(index), range(4), 5, seed=seed, step=step)[0]
    assert not np.isin(base, other).any()


def test_uniforms_differ_between_samples_and_tokens_and_lie_in_the_unit_interval():
    uniforms = np.stack(sampling_uniforms(prompts_of(*range(20)), range(8), 16, seed=0, step=1))
    assert len(np.unique(uniforms)) == uniforms.size
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 5 * (1 / 12 / uniforms.size) ** 0.5
