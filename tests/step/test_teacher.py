"""A teacher who has been shown the solution: prompts, log-probabilities of responses behind them, and advantages."""

import re
from dataclasses import replace

import pytest
import torch

from tests.helpers.float64 import CLOSE
from tests.helpers.models import (
    CPU,
    byte_tokenizer,
    losses_of_script,
    make_problem,
    make_prompt,
    random_groups,
    scorer,
    tiny_model,
    with_noise,
)
from training import self_distillation
from utils.inspection import describe_group
from utils.losses import teacher_advantages
from utils.packing import against_teacher, pack, response_logprobs, with_logprobs
from utils.prompts import PromptBuilder, decode
from utils.rollouts import behind_solutions, share_shown
from utils.types import Rollout

pytestmark = [pytest.mark.float64, pytest.mark.numerics]


def test_advantages_by_hand():
    advantages = teacher_advantages(torch.tensor([0.6, 0.1]).log(), torch.tensor([0.3, 0.2]).log().requires_grad_())
    torch.testing.assert_close(advantages, torch.tensor([0.69315, -0.69315]), atol=1e-5, rtol=0)
    assert not advantages.requires_grad


def test_what_is_learned_is_the_gradient_of_the_divergence_from_the_teacher():
    """Over all words, each as often as the policy samples it."""
    scores, teacher = torch.randn(2, 9, dtype=torch.double, generator=torch.Generator().manual_seed(0)).unbind()
    scores.requires_grad_()
    log_p, log_teacher = scores.log_softmax(0), teacher.log_softmax(0)
    [expected] = torch.autograd.grad((log_p.exp() * (log_p - log_teacher)).sum(), scores, retain_graph=True)
    loss = -(log_p.detach().exp() * teacher_advantages(log_teacher, log_p) * log_p).sum()
    [found] = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(found, expected)


# ----- prompts -----


SOLUTION = ("2 + 3 = 5\n", "5 is asked\n", "done\n")


def builder(max_length, chat=None):
    return PromptBuilder(byte_tokenizer(), max_length, bos=False, chat=chat)


def test_the_solution_stands_before_the_problem_as_far_as_it_fits():
    problem = make_problem(prompt="2 and 3: make 5", solution=SOLUTION)
    whole = builder(1000).for_teacher(problem)
    text = decode(whole.prompt_ids, builder(1000).tokenizer)
    assert text == f"A reference solution to the problem that follows:\n{''.join(SOLUTION)}\n\n2 and 3: make 5"
    assert whole.hint_ids == [] and (whole.hint_slices, whole.hint_share) == (3, 1.0)
    assert builder(len(whole.prompt_ids)).for_teacher(problem) == whole
    tight = builder(len(whole.prompt_ids) - 1).for_teacher(problem)
    assert tight.hint_slices == 2 and tight.hint_share == 21 / 26
    assert decode(tight.prompt_ids, builder(1000).tokenizer) == text.replace("done\n", "")
    small = builder(20)
    assert small.for_teacher(problem) == small.build(problem) and small.build(problem).hint_share == 0


def test_in_a_chat_it_is_in_the_users_turn():
    class Turns:
        def prompt(self, text):
            return f"<user>{text}<assistant>"

    prompt = builder(1000, Turns()).for_teacher(make_problem(prompt="2 and 3", solution=SOLUTION[:1]))
    text = decode(prompt.prompt_ids, builder(1000).tokenizer)
    assert text == "<user>A reference solution to the problem that follows:\n2 + 3 = 5\n\n\n2 and 3<assistant>"


def test_the_responses_stay_what_they_are_and_the_share_is_told():
    problems = make_problem(0, "a", SOLUTION), make_problem(1, "b")  # one has nothing to show
    groups = [[Rollout(replace(make_prompt([3]), problem=problem), [5, 6], [0.0, 0.0], "stop")] * 2
              for problem in problems]
    taught = behind_solutions(groups, builder(1000))
    assert share_shown(taught) == {"teacher_share": 0.5}
    assert [[one.response_ids for one in group] for group in taught] == [[[5, 6]] * 2] * 2
    assert all(one.prompt == builder(1000).for_teacher(problem)
               for group, problem in zip(taught, problems, strict=True) for one in group)


# ----- log-probabilities and advantages -----


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("max_tokens", [16, 40, 200])
def test_log_probabilities_of_responses_are_the_models_own(share_prefix, max_tokens):
    groups = random_groups([(4, 0, [3, 1, 5]), (2, 0, [0, 6]), (6, 0, [2]), (3, 0, [4, 4])])
    model = tiny_model()
    found = response_logprobs(scorer(model, 0.7), groups, max_tokens, CPU, share_prefix)
    for group, of_group in zip(groups, found, strict=True):
        for rollout, logprobs in zip(group, of_group, strict=True):
            ids = torch.tensor([rollout.prompt.prompt_ids + rollout.response_ids])
            scores = (model(ids).logits[0] / 0.7).log_softmax(-1)[len(rollout.prompt.prompt_ids) - 1 : -1]
            expected = scores.gather(1, torch.tensor(rollout.response_ids, dtype=torch.long)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(logprobs), expected.detach(), **CLOSE)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_every_token_gets_its_own_advantage(share_prefix):
    groups = random_groups([(3, 0, [2, 4]), (5, 0, [1, 3, 0])])
    groups = [[replace(one, response_ids=[50 * p + 10 * g + t + 2 for t in range(len(one.response_ids))])
               for g, one in enumerate(group)] for p, group in enumerate(groups)]
    advantages = [[[float(token) for token in one.response_ids] for one in group] for group in groups]
    for micro_batch in pack(groups, advantages, 20, CPU, share_prefix):
        assert micro_batch.advantages.tolist() == micro_batch.targets.tolist() != []


def test_the_script_learns_from_the_difference_of_teacher_and_policy():
    """At ratio 1 the gradient by a log-probability is -(log p_teacher - log p_policy) / N."""
    groups = random_groups([(4, 0, [3, 2]), (3, 0, [4])])
    policy, teacher = scorer(tiny_model()), scorer(with_noise(tiny_model(), 0.5, seed=1))
    taught = response_logprobs(teacher, groups, 100, CPU)
    [micro_batch] = pack(groups, taught, 100, CPU)
    micro_batch = against_teacher(with_logprobs(micro_batch, policy, None))
    expected = teacher.logprobs(micro_batch) - policy.logprobs(micro_batch)
    torch.testing.assert_close(micro_batch.advantages, expected.float())
    assert expected.abs().max() > 0.1
    logprobs = policy.logprobs(micro_batch).requires_grad_()
    flags = {"clip_eps": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0, "old_logprobs": "actor"}
    losses = losses_of_script(self_distillation, micro_batch, lambda _: (logprobs, torch.zeros_like(logprobs)),
                              num_response_tokens=9, **flags)
    losses["loss"].backward()
    torch.testing.assert_close(logprobs.grad, -micro_batch.advantages / 9)
    told = re.findall(r"advantage ([+-]\d\.\d{3})", describe_group([micro_batch], byte_tokenizer()))
    assert list(map(float, told)) == pytest.approx([expected[:3].mean().item(), expected[3:5].mean().item()], abs=1e-3)
