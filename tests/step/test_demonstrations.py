"""A demonstration beside the samples: numbers by hand, gradients against plain PyTorch, and what must not see it.

The losses are the lines of the scripts as they stand (helpers/models.losses_of_script).
"""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from rewards.answer import CORRECT, WRONG_RESULT
from tests.helpers.float64 import CLOSE
from tests.helpers.models import (
    CPU,
    byte_tokenizer,
    counted_by_script,
    group_length,
    losses_of_script,
    make_problem,
    make_prompt,
    random_groups,
    rewarded_by_script,
    scorer,
    tiny_model,
    with_noise,
)
from training import chord, hpt, luffy, rft, srft
from utils.guards import engine_mismatch
from utils.inspection import describe_group
from utils.losses import clipped_surrogate, group_advantages, masked_mean, saturating, uncertainty
from utils.packing import pack, with_logprobs
from utils.prompts import PromptBuilder
from utils.rollouts import Verdict, group_texts, rollout_metrics, sampled
from utils.setup import memory_probe, references
from utils.setup.inputs import check_demonstration_lengths
from utils.setup.plan import Plan
from utils.types import LongestGroup, Rollout

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
FLAGS = {"clip_eps": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0, "sft_coef": 1.0, "shaping": 0.1, "phi": False,
         "old_logprobs": "actor"}


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=atol, rtol=0)


def member(prompt, length, demonstration=False):
    return Rollout(prompt, [7] * length, [0.0] * length, "stop", demonstration)


def batch(*groups):
    """One micro-batch; each group is the advantages and lengths of its samples, and of its demonstration."""
    rollouts = [[member(make_prompt([3, 4], index=number), length) for _, length in samples]
                + [member(make_prompt([3, 4], index=number), length, True) for _, length in demonstration]
                for number, (samples, demonstration) in enumerate(groups)]
    advantages = [[advantage for advantage, _ in samples + demonstration] for samples, demonstration in groups]
    [micro_batch] = pack(rollouts, advantages, 100, CPU)
    return micro_batch


def of_probabilities(script, micro_batch, demonstrated, sampled=0.5, entropies=None, reference=None, **more):
    """The script's losses where the demonstration's tokens have these probabilities, one after the other, and samples
    another; the log-probabilities are a leaf, with which the first comes back."""
    logprobs = torch.full((len(micro_batch.targets),), math.log(sampled))
    logprobs[micro_batch.demonstration_mask] = torch.tensor(demonstrated).log()
    logprobs.requires_grad_()
    entropies = torch.zeros_like(logprobs) if entropies is None else torch.tensor(entropies)
    numbers = counted_by_script(script, [micro_batch], more.pop("most_tokens", math.nan), more.pop("constant", False))
    losses = losses_of_script(script, micro_batch, lambda _: (logprobs, entropies), reference,
                              numbers=numbers | more.pop("numbers", {}), **(FLAGS | more))
    return losses, logprobs


# ----- numbers by hand -----


def test_the_shape_of_p_over_p_plus_a_tenth_and_of_its_gradient():
    logprobs = torch.tensor([0.01, 0.1, 0.5, 0.9]).log().requires_grad_()
    shaped = saturating(logprobs, 0.1)
    shaped.sum().backward()
    close(shaped.detach(), [0.09091, 0.5, 0.83333, 0.9])
    close(logprobs.grad, [0.08264, 0.25, 0.13889, 0.09])


def test_advantages_of_a_group_with_its_demonstration():
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    close(group_advantages(rewards, False), [[-0.25, -0.25, -0.25, 0.75], [0.0] * 4])
    close(group_advantages(rewards), [[-0.5, -0.5, -0.5, 1.5], [0.0] * 4])
    close(group_advantages(torch.tensor([[0.1, 0.0, 0.1, 0.0, 1.0]])),
          [[-0.32727, -0.56103, -0.32727, -0.56103, 1.77659]])


def test_luffy_by_hand():
    """Three one-token samples at ratio 1 and a demonstration of p .5, .1: (.75 - 1) / 5."""
    micro_batch = batch(([(-0.25, 1)] * 3, [(0.75, 2)]))
    losses, logprobs = of_probabilities(luffy, micro_batch, [0.5, 0.1])
    close(losses["loss"].item(), -0.05)
    losses["loss"].backward()
    close(logprobs.grad[micro_batch.demonstration_mask], [-0.020833, -0.0375], atol=1e-6)
    close(logprobs.grad[micro_batch.response_mask], [0.05] * 3)
    losses, _ = of_probabilities(luffy, batch(([(0.0, 1)] * 3, [(0.0, 2)])), [0.5, 0.1])
    assert losses["loss"].item() == 0.0  # all were right


def test_the_schedule_of_mu():
    paper = SimpleNamespace(mu_peak=0.9, mu_valley=0.05, mu_warmup=0, mu_decay=200)
    assert {name: getattr(chord.Args, name) for name in vars(paper)} == vars(paper)
    close([chord.mu_at(t, paper) for t in (0, 50, 100, 150, 200, 499)], [0.9, 0.77552, 0.475, 0.17448, 0.05, 0.05])
    other = SimpleNamespace(mu_peak=0.5, mu_valley=0.02, mu_warmup=200, mu_decay=400)
    close([chord.mu_at(t, other) for t in (0, 100, 200, 400, 600, 700)], [0.0, 0.25, 0.5, 0.26, 0.02, 0.02])
    constant = SimpleNamespace(mu_peak=0.1, mu_valley=0.1, mu_warmup=0, mu_decay=200)
    assert {chord.mu_at(t, constant) for t in range(300)} == {0.1}


def test_chord_by_hand():
    """pg_loss is .2, of one sample. Its normaliser has no demonstration in it, and that of sft_loss no sample."""
    micro_batch = batch(([(-0.2, 1)], [(0.0, 2)]))
    numbers = {"mu": 0.1}
    losses, _ = of_probabilities(chord, micro_batch, [0.5, 0.1], numbers=numbers)
    close(losses["sft_loss"].item(), 1.49787)
    close(losses["loss"].item(), 0.9 * 0.2 + 0.1 * 1.49787)
    losses, logprobs = of_probabilities(chord, micro_batch, [0.5, 0.1], numbers=numbers, phi=True)
    close(losses["sft_loss"].item(), 0.19026)
    close(losses["loss"].item(), 0.19903)
    losses["sft_loss"].backward()
    close(2 * logprobs.grad[micro_batch.demonstration_mask], [-0.25, -0.09])  # + .0942 if phi had a gradient


def test_the_weight_of_uncertain_tokens_has_no_gradient():
    logprobs = torch.tensor([0.1, 0.5]).log().requires_grad_()
    assert not uncertainty(logprobs).requires_grad
    close(uncertainty(logprobs), [0.09, 0.25])


def test_hpt_by_hand():
    """Problem X is gated, p .5 and .1; problem Y has rewards 1 0 0 0: 2.99573 / 6."""
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), False)[0].tolist()
    micro_batch = batch(([], [(0.0, 2)]), ([(advantage, 1) for advantage in advantages], []))
    losses, _ = of_probabilities(hpt, micro_batch, [0.5, 0.1])
    close(losses["loss"].item(), 0.49929)
    losses, _ = of_probabilities(hpt, micro_batch, [0.5, 0.1], sft_coef=0.3)
    close(losses["loss"].item(), 0.3 * 0.49929)


def test_srft_by_hand():
    """A right sample of p .5, entropy .5; a wrong one of .5, 1; a demonstration of p .5 and .1, entropies .5 and 1."""
    [*_, advantage] = group_advantages(torch.tensor([[1.0, 0.0, 1.0]]))[0].tolist()
    close(advantage, 0.57735)
    micro_batch = batch(([(1.0, 1), (-1.0, 1)], [(advantage, 2)]))
    flags = {"sft_coef": 0.5, "entropy_sign": -1, "right_coef": 0.1}
    losses, logprobs = of_probabilities(srft, micro_batch, [0.5, 0.1], entropies=[0.5, 1.0, 0.5, 1.0], **flags)
    close([losses[name].item() for name in ("sft_loss", "demonstration_loss", "right_loss", "wrong_loss", "loss")],
          [0.31687, -0.38490, 0.11428 / 2, -0.69315 / 2, -0.35746])
    losses["pg_loss"].backward(retain_graph=True)
    close(logprobs.grad[:2], [-0.16487 / 2, 0.5])
    for sign, weights in ((-1, [0.5, 0.40937, 0.30327, 0.18394]), (1, [0.5, 0.61070, 0.82436, 1.35914])):
        of_demonstration = batch(([], [(0.0, 4)]))
        losses, logprobs = of_probabilities(srft, of_demonstration, [0.5] * 4, entropies=[0, 0.2, 0.5, 1],
                                            **(flags | {"entropy_sign": sign}))
        losses["sft_loss"].backward()
        close(-4 * logprobs.grad, weights)
    losses, logprobs = of_probabilities(srft, batch(([(1.0, 4)], [])), [], entropies=[0, 0.2, 0.5, 1],
                                        **flags)
    losses["right_loss"].backward()
    close(-4 * logprobs.grad, [0.1, 0.12214, 0.16487, 0.27183])


def test_a_constant_normaliser_by_hand():
    """Rewards 1 0 0 0, lengths 10 20 30 40, at most 100 tokens."""
    for with_std, constant, expected in ((False, True, 0.0375), (False, False, 0.15), (True, False, 0.3)):
        [advantages] = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), with_std).tolist()
        [micro_batch] = pack([[member(make_prompt([3]), length) for length in (10, 20, 30, 40)]], [advantages], 200,
                             CPU)
        losses, _ = of_probabilities(rft, micro_batch, [], most_tokens=4 * 100, constant=constant)
        close(losses["pg_loss"].item(), expected, atol=2e-6)


def test_the_constant_is_all_members_at_full_length():
    """Without the prefix; LUFFY's sampled members are one fewer, whose place the demonstration has."""
    for longest, responses, members in ((LongestGroup(50, 4, 100), 8 * 400, 8 * 400),
                                        (LongestGroup(50, 3, 100, False, 70), 8 * 300, 8 * 370)):
        plan = SimpleNamespace(flags=SimpleNamespace(mini_batch_prompts=8), longest=longest)
        assert (Plan.most_response_tokens.fget(plan), Plan.most_tokens.fget(plan)) == (responses, members)


def test_an_upper_clip_of_its_own_and_none():
    surrogate = [clipped_surrogate(torch.tensor([1.5]).log(), torch.zeros(1), torch.tensor([0.75]), eps, math.inf, high)
                 for eps, high in ((0.2, 0.28), (0.2, 0.0), (1e9, 0.0))]
    close(torch.cat(surrogate), [-0.96, -0.9, -1.125])
    low = clipped_surrogate(torch.tensor([0.5]).log(), torch.zeros(1), torch.tensor([-1.0]), 0.2, math.inf, 0.28)
    close(low, [0.8])  # the lower bound stays


# ----- packed, against plain PyTorch -----


SIZES = [(4, 0, [5, 1, 6, 2]), (2, 0, [1, 1, 3]), (6, 0, [2, 7]), (3, 0, [4, 4])]


def demonstrated_groups():
    """Random groups whose last member is a demonstration; of the last group nothing else is left."""
    groups = [[*group[:-1], replace(group[-1], demonstration=True)] for group in random_groups(SIZES)]
    groups[-1] = groups[-1][-1:]
    random = torch.Generator().manual_seed(5)
    return groups, [torch.randn(len(group), generator=random).tolist() for group in groups]


def plain_terms(model, old, groups, advantages):
    """For each scored token: log-probability, old one, entropy, advantage, whether of a demonstration."""
    terms = []
    for group, of_group in zip(groups, advantages, strict=True):
        for one, advantage in zip(group, of_group, strict=True):
            ids = torch.tensor([one.prompt.prompt_ids + one.response_ids])
            start = len(one.prompt.prompt_ids) - 1
            pair = []
            for some in (model, old):
                log_p = some(input_ids=ids).logits[0].log_softmax(-1)[start:-1]
                pair.append((log_p.gather(-1, ids[0, start + 1 :, None])[:, 0], -(log_p.exp() * log_p).sum(-1)))
            for n in range(len(one.response_ids)):
                terms.append((pair[0][0][n], pair[1][0][n].detach(), pair[0][1][n], advantage, one.demonstration))
    return terms


def plain_loss(name, terms):
    of_samples = [one for one in terms if not one[4]]
    of_demonstrations = [one for one in terms if one[4]]
    pg = sum(-torch.minimum((new - old).exp() * a, (new - old).exp().clamp(0.8, 1.2) * a)
             for new, old, _, a, _ in of_samples)
    entropy = sum(one[2] for one in of_samples) / len(of_samples)
    nll = sum(-new for new, *_ in of_demonstrations)
    if name == "luffy":
        shaped = sum(-a * new.exp() / (new.exp() + 0.1) for new, _, _, a, _ in of_demonstrations)
        return (pg + shaped) / len(terms) - 0.2 * entropy
    if name == "chord":
        weighed = sum(-new * (new.exp() * (1 - new.exp())).detach() for new, *_ in of_demonstrations)
        return 0.7 * pg / len(of_samples) + 0.3 * weighed / len(of_demonstrations) - 0.2 * entropy
    if name == "srft":
        demonstration = sum(-0.5 * (-h.detach()).exp() * new - a * new.exp() / (new.exp() + 0.1)
                            for new, _, h, a, _ in of_demonstrations)
        samples = sum(-0.1 * h.detach().exp() * new if a > 0 else new for new, _, h, a, _ in of_samples)
        return demonstration / len(of_demonstrations) + samples / len(of_samples) - 0.2 * entropy
    return pg / len(terms) + 0.5 * nll / len(terms) - 0.2 * entropy


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("slack", [0, 20, 200])
@pytest.mark.parametrize("script", [luffy, chord, hpt, srft], ids=lambda script: script.__name__)
def test_loss_and_all_gradients_equal_those_of_plain_rows(script, slack, share_prefix):
    """Whatever the token budget, with shared prefixes and without."""
    groups, advantages = demonstrated_groups()
    model = tiny_model(Qwen2ForCausalLM, seed=1)
    old = with_noise(model, 0.03, seed=2)
    name = script.__name__.split(".")[-1]
    expected = plain_loss(name, plain_terms(model, old, groups, advantages))

    micro_batches = pack(groups, advantages, max(map(group_length, groups)) + slack, CPU, share_prefix)
    numbers = counted_by_script(script, micro_batches) | {"mu": 0.3}
    flags = FLAGS | {"entropy_coef": 0.2, "sft_coef": 0.5, "phi": True, "entropy_sign": -1, "right_coef": 0.1}
    actor, sampler = scorer(model), scorer(old)
    actual = sum(losses_of_script(script, with_logprobs(one, sampler, None), actor, numbers=numbers, **flags)["loss"]
                 for one in micro_batches)
    torch.testing.assert_close(actual, expected, **CLOSE)
    for one, other in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in (actual, expected)),
                          strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_the_three_masks_cover_every_scored_token_once(share_prefix):
    groups = random_groups([(4, 3, [5, 1, 6]), (2, 0, [1, 3])])
    groups[1][-1] = replace(groups[1][-1], demonstration=True)
    for one in pack(groups, [[1.0] * len(group) for group in groups], 60, CPU, share_prefix):
        kinds = torch.stack([one.response_mask, one.hint_mask, one.demonstration_mask]).long()
        assert (kinds.sum(0) == 1).all()
        assert kinds.sum(1).tolist() == [13, 3, 3]
        assert one.targets[one.demonstration_mask].tolist() == groups[1][-1].response_ids


# ----- what was not sampled counts nowhere as if it were -----


def test_no_metric_sees_a_demonstration():
    """Each member is worth a number of its own; a demonstration beside them changes none."""
    prompt = make_prompt([3] * 4)
    group = [member(prompt, 3), replace(member(prompt, 5), finish="length")]
    scores = [Verdict(*CORRECT, pattern="a + b"), Verdict(*WRONG_RESULT)]
    demonstration = replace(member(prompt, 50, True), response_ids=[1] * 50)
    seconds = {"seconds/rollout": 2.0, "seconds/reward": 0.0}
    without = rollout_metrics([group], [scores], seconds)
    assert without == rollout_metrics([[*group, demonstration]], [[*scores, Verdict(*CORRECT, pattern="c")]], seconds)
    assert without["response_tokens"] == 4 and without["accuracy"] == 0.5
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    assert group_texts([*group, demonstration], [*scores, CORRECT], tokenizer) == group_texts(group, scores, tokenizer)
    assert sampled([[*group, demonstration]]) == [group]


def test_kl_entropy_ratio_and_engine_terms_leave_demonstrations_out():
    """The tokens of a demonstration get other log-probabilities and entropies: only its own loss changes."""
    micro_batch = batch(([(-0.25, 1)] * 3, [(0.75, 2)]))
    micro_batch = replace(micro_batch, ref_logprobs=torch.full((5,), -1.0), old_logprobs=torch.full((5,), -0.6))
    seen = []
    for p, entropy in (([0.5, 0.1], 0.3), ([0.9, 0.01], 70.0)):
        entropies = torch.where(micro_batch.demonstration_mask, entropy, 0.4).tolist()
        losses, _ = of_probabilities(luffy, micro_batch, p, entropies=entropies, reference=object())
        seen.append({name: losses[name].item() for name in ("pg_loss", "kl_loss", "entropy", "demonstration_loss")})
    assert seen[0].pop("demonstration_loss") != seen[1].pop("demonstration_loss")
    assert seen[0] == seen[1] and seen[0]["kl_loss"] > 0 and seen[0]["entropy"] == pytest.approx(0.4)


def test_the_engine_is_never_compared_on_a_demonstration():
    groups = [[member(make_prompt([3]), 2, True)]]
    with pytest.raises(AssertionError, match="no engine has sampled it"):
        engine_mismatch(groups, None, CPU, 0.1, 100)


# ----- what the scripts make of rewards -----


TOKENIZER = byte_tokenizer()
PROMPTS = PromptBuilder(TOKENIZER, 100, False)
TEXTS = {1.0: "<answer> 2 + 3 </answer>", 0.1: "<answer> 2 - 3 </answer>", 0.0: "well"}


def rewarded(script, *rewards, demonstration=1.0, **flags):
    """(members of each group, advantages) where the samples have these rewards and the demonstration another."""
    groups = []
    for number, of_group in enumerate(rewards):
        prompt = PROMPTS.build(make_problem(number, "ask ", demonstration=TEXTS[demonstration]))
        ids = [TOKENIZER(TEXTS[reward])["input_ids"] for reward in of_group]
        groups.append([Rollout(prompt, one, [0.0] * len(one), "length") for one in ids])
    names = rewarded_by_script(script, groups, PROMPTS, **({"advantage_std": script.Args.advantage_std} | flags))
    return names.get("members", names["groups"]), torch.as_tensor(names["advantages"]).tolist() if (
        script is not hpt) else names["advantages"]


def test_luffy_rewards_its_demonstration_as_a_member():
    members, advantages = rewarded(luffy, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.1, 0.0, 1.0))
    assert [[one.demonstration for one in group] for group in members] == [[False] * 3 + [True]] * 3
    close(advantages, [[-0.25, -0.25, -0.25, 0.75], [0.0] * 4, [-0.425, -0.525, 0.475, 0.475]])
    _, advantages = rewarded(luffy, (0.1, 0.0, 1.0), demonstration=0.1)  # one that the verifier judges wrong
    close(advantages, [[-0.2, -0.3, 0.7, -0.2]])
    _, advantages = rewarded(luffy, (0.1, 0.0, 0.1, 0.0), advantage_std=True)
    close(advantages, [[-0.32727, -0.56103, -0.32727, -0.56103, 1.77659]])


def test_chords_demonstrations_have_no_part_in_the_advantages():
    members, advantages = rewarded(chord, (0.0, 1.0), (1.0, 1.0), advantage_std=False)
    assert [[one.demonstration for one in group] for group in members] == [[False, False, True]] * 2
    close(advantages, [[-0.5, 0.5, 0.0], [0.0] * 3])


def test_hpt_drops_the_samples_of_problems_with_too_few_right_ones():
    """Right, not rewarded: a well-formed wrong answer has a reward too."""
    rewards = (0.1, 0.1, 0.1, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)
    for gate, gated in ((0, [True, False, False]), (1, [True, True, False]), (4, [True, True, True])):
        members, advantages = rewarded(hpt, *rewards, gate=gate)
        assert [[one.demonstration for one in group] for group in members] == [
            [True] if is_gated else [False] * 4 for is_gated in gated]
        for is_gated, row, plain in zip(gated, advantages, ([], [0.75, -0.25, -0.25, -0.25], [0.0] * 4), strict=True):
            close(row, [0.0] if is_gated else plain)


def test_srft_marks_right_samples_and_the_others():
    members, advantages = rewarded(srft, (1.0, 0.1, 0.0), (0.0, 0.0, 0.0))
    assert [[one.demonstration for one in group] for group in members] == [[False] * 3 + [True]] * 2
    of_demonstrations = group_advantages(torch.tensor([[1.0, 0.1, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))[:, -1].tolist()
    close(advantages, [[1.0, -1.0, -1.0, of_demonstrations[0]], [-1.0, -1.0, -1.0, of_demonstrations[1]]])
    close(of_demonstrations[1], 1.5)


# ----- what is shown and what is left out -----


def test_a_dumped_group_shows_its_demonstration_as_such():
    prompt = PROMPTS.build(make_problem(0, "ask ", demonstration="yes"))
    group = [Rollout(prompt, [5], [0.0], "length"), PROMPTS.demonstrate(prompt)]
    [micro_batch] = pack([group], [[-0.5, 0.75]], 99, CPU)
    lines = re.sub(r"\033\[\d+m", "", describe_group([micro_batch], TOKENIZER)).split("\n")
    assert len(lines) == 4 and lines[2].startswith("response (1 tokens, pg_loss with advantage -0.500")
    assert lines[3] == f"demonstration (4 tokens, not sampled, advantage +0.750): y|e|s|{TOKENIZER.eos_token}"


def test_a_demonstration_is_the_encoded_text_and_the_end():
    prompt = PROMPTS.build(make_problem(0, "ask ", demonstration="yes"))
    one = PROMPTS.demonstrate(prompt)
    assert one.prompt is prompt and one.demonstration and one.finish == "stop" and one.logprobs == [0.0] * 4
    assert TOKENIZER.decode(one.response_ids) == "yes" + TOKENIZER.eos_token


def test_problems_with_long_demonstrations_are_left_out_by_the_demonstrations_own_length():
    problems = [make_problem(0, "a long prompt", demonstration="123"), make_problem(1, "q", demonstration="1234")]
    flag = "--max_demonstration_length"
    assert check_demonstration_lengths(problems, PROMPTS, 5, flag, with_prompt=False) == (problems, 0)
    assert check_demonstration_lengths(problems, PROMPTS, 4, flag, with_prompt=False) == (problems[:1], 1)
    with pytest.raises(Exception, match="flag --max_demonstration_length 3: no demonstration is as short"):
        check_demonstration_lengths(problems, PROMPTS, 3, flag, with_prompt=False)


def test_references_that_the_verifier_judges_wrong_are_told():
    right, wrong = "<answer> 2 + 3 </answer>", "<answer> 2 - 3 </answer>"
    problems = [make_problem(number, demonstration=right) for number in range(3)]
    words = references.judge_references(problems, PROMPTS, together=True)
    assert words == "the verifier judges 100.0% of 3 references right"
    problems += [make_problem(3, demonstration=wrong)]
    words = references.judge_references(problems, PROMPTS, together=False)
    assert words.startswith("warning: the verifier judges 75.0% of 4 references right; 1 are not (wrong result 1)")


def test_a_demonstration_makes_the_longest_group_longer():
    shared = LongestGroup(10, 3, 5, True, 7)
    assert (shared.tokens, shared.rows, shared.row_length) == (32, 1, 32)
    apart = LongestGroup(10, 3, 5, False, 7)
    assert (apart.tokens, apart.rows, apart.row_length) == (32, 4, 17)
    assert LongestGroup(10, 3, 8, False, 7).row_length == 18


def test_the_memory_probe_has_the_branches_of_the_longest_group():
    def branches(longest):
        return memory_probe._micro_batch(1, longest.row_length, longest, CPU).branch_ids.tolist()[0]

    assert branches(LongestGroup(2, 2, 3, True, 4)) == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert branches(LongestGroup(2, 2, 3, False, 5)) == [0, 0, 1, 1, 1, 1, 1]
    assert branches(LongestGroup(2, 2, 2)) == [0, 0, 1, 1, 2, 2]
    micro_batch = memory_probe._micro_batch(1, 12, LongestGroup(2, 2, 3, True, 4), CPU)
    assert micro_batch.response_mask.all() and not (micro_batch.hint_mask | micro_batch.demonstration_mask).any()


def test_masked_means_of_nothing_are_zero():
    """A mini-batch of which every problem is gated, and one of which none is."""
    for micro_batch, p in ((batch(([], [(0.0, 2)])), [0.5, 0.1]), (batch(([(0.5, 1)], [])), [])):
        losses, _ = of_probabilities(hpt, micro_batch, p)
        assert losses["loss"].isfinite()
    assert masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool), 0) == 0
