"""Groups that teach nothing are replaced, and long responses punished: by hand, and by the lines of the script."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.fake_engine import FakeEngine
from tests.helpers.models import byte_tokenizer, lines_of_script, make_problem
from training import dapo
from utils.data import problems_of_step
from utils.losses import clipped_surrogate, length_penalty
from utils.prompts import PromptBuilder
from utils.refill import Refill, further_problems
from utils.run import distributed
from utils.types import Sampling

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
ARGS = dapo.Args(model="", data="", output_dir="")
PROMPTS = PromptBuilder(byte_tokenizer(), 99, False)


def test_the_length_penalty_by_hand():
    lengths = torch.tensor([1, 768, 896, 1024])
    assert length_penalty(lengths, 1024, 0.25).tolist() == [0.0, 0.0, -0.5, -1.0]
    assert length_penalty(lengths, 1024, 0.0).tolist() == [0.0] * 4
    torch.testing.assert_close(length_penalty(torch.tensor([16384, 18432, 20480]), 20480, ARGS.overlong),
                               torch.tensor([0.0, -0.5, -1.0]))


def test_a_rare_token_may_become_frequent_further():
    assert ARGS.clip_eps == 0.2 and ARGS.kl_coef == 0
    surrogate = clipped_surrogate(torch.tensor([1.5, 0.7]).log(), torch.zeros(2), torch.tensor([0.75, -1.0]),
                                  ARGS.clip_eps, clip_eps_high=ARGS.clip_eps_high)
    torch.testing.assert_close(surrogate, torch.tensor([-0.96, 0.8]))


# ----- which problems come next -----


def indices(problems):
    return [problem.index for problem in problems]


def test_further_problems_are_all_others_and_then_those_of_the_step():
    problems = [make_problem(index) for index in range(20)]
    of_step = problems_of_step(problems, 3, 8, 1)
    order = indices(islice(further_problems(problems, 3, 8, 1), 32))
    assert sorted(order[:12]) == sorted(set(range(20)) - set(indices(of_step)))
    assert order[12:20] == indices(of_step) and order[20:] == order[:12]
    assert order == indices(islice(further_problems(problems, 3, 8, 1), 32))  # of (seed, step) alone
    others = [indices(islice(further_problems(problems, step, 8, seed), 12)) for step, seed in ((3, 2), (4, 1))]
    assert order[:12] not in others


def verdicts(*groups):
    return [[SimpleNamespace(reward=reward) for reward in group] for group in groups]


MIXED, FLAT = (1.0, 0.0), (0.1, 0.1)
OF_STEP = [MIXED, FLAT, FLAT, MIXED, FLAT, FLAT]  # of all ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_places_of_all_ranks_are_filled_in_the_order_of_the_steps_problems(monkeypatch, world_size):
    problems, filled = [make_problem(index) for index in range(20)], {}
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    monkeypatch.setattr(distributed, "gather", lambda _: [len(set(group)) == 1 for group in OF_STEP])
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        refill = Refill(problems, 3, 6, 1)
        places = refill.places(verdicts(*distributed.share(OF_STEP)))
        filled |= {place * world_size + rank: problem.index for place, problem in places.items()}
        assert refill.metrics() == {"flat_groups_at_first": 4 / 6, "refill_rounds": 1.0}
    drawn = indices(islice(further_problems(problems, 3, 6, 1), 4))
    assert filled == dict(zip((1, 2, 4, 5), drawn, strict=True))


# ----- the script -----


def refilled(right, anew, num_further, **flags):
    """What dapo.py makes of problems of which `right[place]` responses are right, where of a problem that is sampled in
    round r anew[r - 1] are; `num_further` others are there. Also the rows of the problems."""
    everything = [make_problem(index) for index in range(len(right) + num_further)]
    args = SimpleNamespace(**vars(ARGS) | {"prompts_per_step": len(right)} | flags)
    problems, begun = problems_of_step(everything, 5, len(right), args.seed), []
    engine = FakeEngine({problem.index: [0, *anew] for problem in everything} | {
        problem.index: [number, *anew] for problem, number in zip(problems, right, strict=True)})
    names = vars(dapo) | {
        "engine": engine, "prompts": [PROMPTS.build(problem) for problem in problems], "step": 5, "args": args,
        "plan": SimpleNamespace(prompts=PROMPTS, tokenizer=None, problems=everything),
        "watch": SimpleNamespace(begin=begun.append), "sampling": Sampling(4, 40, 1.0),
        "score_rollouts": engine.verdicts,
    }
    exec(lines_of_script(dapo, "groups = engine.generate", "# 4. batch"), names)  # noqa: S102
    return names, engine, begun, indices(problems)


def test_flat_groups_are_replaced_until_none_is_left():
    """Of those that come, all are right in the first round, and one of four responses in the second."""
    names, engine, begun, of_step = refilled([4, 2, 0], [4, 1, 1], num_further=6)
    asked = [[prompt.problem.index for prompt in prompts] for prompts, *_ in engine.asked[:-1]]
    assert asked[0] == of_step and [len(one) for one in asked] == [3, 2, 2, 0]  # every call, even for nothing
    assert len({*of_step, *asked[1], *asked[2]}) == 7
    assert engine.asked[-1] == "sleep" and begun == ["reward", *["rollout", "reward"] * 3]
    assert [sampling.first_sample for _, sampling, _ in engine.asked[:-1]] == [0, 4, 8, 12]  # no stream twice
    assert [group[0].prompt.problem.index for group in names["groups"]] == [asked[2][0], of_step[1], asked[2][1]]
    assert [sum(score.correct for score in group) for group in names["scores"]] == [1, 2, 1]
    assert names["advantages"].abs().min() > 0
    assert names["refill"].metrics() == {"flat_groups_at_first": 2 / 3, "refill_rounds": 2.0}


def test_what_is_flat_after_the_last_round_stays_and_teaches_nothing():
    """No other problems are there: those of the step are sampled again."""
    names, engine, _, of_step = refilled([4, 2, 0], [4, 0], num_further=0, max_refills=2)
    asked = [[prompt.problem.index for prompt in prompts] for prompts, *_ in engine.asked[:-1]]
    assert asked == [of_step, of_step[:2], [of_step[2], of_step[0]]]
    assert names["refill"].num_flat == [2, 2]
    assert [row == [0.0] * 4 for row in names["advantages"].tolist()] == [True, False, True]


def test_a_long_response_is_punished_within_its_group():
    """One token of one. A group that is flat without the penalty is so with it where all are as long."""
    names, *_ = refilled([2], [], num_further=0, max_response_length=1, overlong=1.0, advantage_std=False)
    torch.testing.assert_close(names["rewards"], torch.tensor([[0.0, 0.0, -0.9, -0.9]]))
    torch.testing.assert_close(names["advantages"], torch.tensor([[0.45, 0.45, -0.45, -0.45]]))
