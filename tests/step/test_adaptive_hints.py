"""Hints that adapt, in tokens or slices, and prefixes that learn: numbers by hand, gradients against plain PyTorch, and
what a run keeps of its problems. The losses and rollouts are the lines of the scripts as they stand."""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from rewards.answer import CORRECT, WRONG_RESULT
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.float64 import CLOSE
from tests.helpers.models import (
    CPU,
    byte_tokenizer,
    lines_of_script,
    losses_of_script,
    make_problem,
    make_prompt,
    random_groups,
    scorer,
    tiny_model,
    with_noise,
)
from training import adaback, ghpo, prefix_rft, relift, uft_adaptive
from utils import problem_state
from utils.hints import highest_of_hints
from utils.losses import group_advantages, trusting
from utils.packing import pack, with_logprobs
from utils.problem_state import FILE, ProblemState
from utils.prompts import PromptBuilder, encode
from utils.rollouts import Verdict, group_texts, rollout_metrics
from utils.run.errors import RunStopped
from utils.types import Rollout, Sampling

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
TOKENIZER = byte_tokenizer()
ADABACK, GHPO, PREFIX, ADAPTIVE = (script.Args(model="", data="", output_dir="")
                                   for script in (adaback, ghpo, prefix_rft, uft_adaptive))
FLAGS = {"clip_eps": 0.2, "kl_coef": 0.0, "entropy_coef": 0.0, "sft_coef": 0.5, "prefix_top": 0.2,
         "old_logprobs": "actor", "trust": 0.1}
TOP = {"top": 0.2, "all": 1.0, "nll": 0.0, "trust": 0.0, "none": 0.0}  # as prefix_rft's main has it


# ----- a share of the solution -----


@pytest.mark.parametrize(("share", "room", "hint"), [
    (0.0, 99, ""), (0.09, 99, ""), (0.1, 99, "0"), (0.25, 99, "01"), (0.5, 99, "01234"), (0.99, 99, "012345678"),
    (1.0, 99, "0123456789"), (0.5, 3, "012"), (1.0, 0, ""),
])
def test_a_hint_of_tokens_is_the_first_ids_that_fit(share, room, hint):
    problem = make_problem(prompt="ask ", solution=["012", "3456789"])
    prompt = PromptBuilder(TOKENIZER, 4 + room, False).build_share(problem, share)
    assert prompt.hint_ids == encode("0123456789", TOKENIZER)[: len(hint)] == encode(hint, TOKENIZER)
    assert (prompt.prompt_ids, prompt.hint_slices) == (encode("ask ", TOKENIZER), 0)
    assert prompt.hint_share == len(hint) / 10


def test_ids_of_a_hint_are_not_those_of_its_text():
    """Cut within what is one token of the whole: the ids are the solution's."""
    tokenizer = byte_tokenizer("so we")
    problem = make_problem(solution=["so we", " go"])
    prompt = PromptBuilder(tokenizer, 99, False).build_share(problem, 0.25)
    whole = encode("so we go", tokenizer)
    assert len(whole) == 4 and prompt.hint_ids == whole[:1] and tokenizer.decode(prompt.hint_ids) == "so we"


def test_a_hint_of_slices_by_its_share():
    prompts = PromptBuilder(TOKENIZER, 99, False)
    shown = [prompts.build_share(make_problem(solution="abcd"), share, 4).hint_slices
             for share in (0.19, 0.2, 0.5, 0.6, 0.8, 1)]
    assert shown == [0, 1, 2, 3, 4, 4]
    assert prompts.build_share(make_problem(solution="abcd"), 0.5, 2).hint_ids == encode("ab", TOKENIZER)


# ----- an interval per problem -----


def test_intervals_by_hand():
    interval, seen = (0.0, 1.0), []
    for share, accuracy in ((0.6, 0.0), (0.8, 1.0)):
        interval = adaback.narrowed(interval, share, accuracy, ADABACK)
        seen.append(interval)
    assert seen == [(0.6, 1.0), (0.0, 0.8)]
    interval, seen = (0.0, 0.8), []
    for share, accuracy in ((0.5, 0.25), (0.7, 0.5)):
        interval = adaback.narrowed(interval, share, accuracy, ADABACK)
        seen.append(interval)
    assert seen == [(0.5, 0.8), (0.0, 0.7)]
    assert adaback.narrowed((0.5, 0.8), 0.0, 0.25, ADABACK) == (0.5, 0.8)  # a forced 0 that fails
    assert adaback.narrowed((0.5, 0.8), 0.0, 0.5, ADABACK) == (0.0, 0.0)  # never hinted again
    assert adaback.narrowed((0.0, 1.0), 0.5, 0.5, replace(ADABACK, solved=0.6)) == (0.5, 1.0)


def test_shares_are_uniform_in_the_interval_but_for_a_tenth():
    shares = [adaback.draw_share((0.25, 0.5), make_problem(index), 7, ADABACK) for index in range(4000)]
    inside = [share for share in shares if share]
    assert abs(len(inside) / 4000 - 0.9) < 5 * (0.09 / 4000) ** 0.5
    assert 0.25 <= min(inside) < 0.251 and 0.499 < max(inside) < 0.5
    assert abs(sum(inside) / len(inside) - 0.375) < 5 * 0.25 / (12 * len(inside)) ** 0.5
    again = [adaback.draw_share((0.25, 0.5), make_problem(index), 7, ADABACK) for index in reversed(range(4000))]
    assert again[::-1] == shares
    other = replace(ADABACK, seed=1)
    assert len({adaback.draw_share((0.0, 1.0), make_problem(index), step, args)
                for index in (1, 2) for step in (1, 2) for args in (ADABACK, other)}) == 8


def test_without_updates_slices_are_as_many_as_r3s():
    """Any number of them equally often: chi-square over 5 outcomes below its 99.99 % quantile."""
    args, prompts, count = replace(ADABACK, hint_free=0.0), PromptBuilder(TOKENIZER, 99, False), 3000
    shown = Counter(
        prompts.build_share(problem, adaback.draw_share((0.0, 1.0), problem, 1, args), 4).hint_slices
        for problem in (make_problem(index, solution="abcd") for index in range(count)))
    assert sum((shown[k] - count / 5) ** 2 / (count / 5) for k in range(5)) < 23.5


# ----- a probability per problem -----


@pytest.mark.parametrize(("p", "accuracy", "expected"), [
    (0.5, 0.0, 0.75), (0.5, 0.5, 0.5), (0.5, 1.0, 0.25), (0.9, 0.0, 1.0), (0.1, 1.0, 0.0), (0.5, 0.75, 0.375),
])
def test_hints_get_longer_where_groups_fail_and_shorter_where_they_succeed(p, accuracy, expected):
    assert uft_adaptive.adapted(p, accuracy, ADAPTIVE) == pytest.approx(expected)
    assert uft_adaptive.adapted(0.5, 0.25, replace(ADAPTIVE, target_accuracy=0.25, hint_rate=0.1)) == 0.5


@pytest.mark.parametrize("needed", [0.2, 0.5, 0.8])
def test_about_half_of_a_problems_responses_get_right(needed):
    """A problem that is right with a share of slices above `needed`, on average over many visits."""
    random, p, right = torch.Generator().manual_seed(0), 0.95, []
    for step in range(2000):
        shown = len(uft_adaptive.draw_hint(make_problem(3, solution="abcde"), p, step, ADAPTIVE)) / 5
        chance = 1 / (1 + math.exp(-12 * (shown - needed)))
        right.append((torch.rand(4, generator=random) < chance).double().mean().item())
        p = uft_adaptive.adapted(p, right[-1], ADAPTIVE)
    assert sum(right[100:]) / 1900 == pytest.approx(0.5, abs=0.03)


def test_the_draw_of_slices_is_binomial_and_of_seed_step_and_problem():
    problems = [make_problem(index, solution="abcde") for index in range(2000)]
    shown = [uft_adaptive.draw_hint(problem, 0.3, 5, ADAPTIVE) for problem in problems]
    assert all(hint == list("abcde"[: len(hint)]) for hint in shown)
    assert abs(sum(map(len, shown)) / 2000 - 1.5) < 5 * (5 * 0.21 / 2000) ** 0.5
    assert shown == [uft_adaptive.draw_hint(problem, 0.3, 5, ADAPTIVE) for problem in problems]
    assert shown != [uft_adaptive.draw_hint(problem, 0.3, 6, ADAPTIVE) for problem in problems]
    assert not uft_adaptive.draw_hint(problems[0], 0.0, 5, ADAPTIVE)
    assert len(uft_adaptive.draw_hint(problems[0], 1.0, 5, ADAPTIVE)) == 5


# ----- what a run keeps of its problems -----


def test_a_problem_keeps_its_numbers_and_a_new_one_begins_with_running_means():
    state = ProblemState({"low": 0.0, "high": 1.0})
    assert state.of(make_problem(7)) == (0.0, 1.0)
    assert state.merge({7: (0.5, 1.0), 2: (0.0, 0.5)}, 0.1) == {"low": 0.025, "high": 0.975, "problems_met": 2}
    assert state.of(make_problem(7)) == (0.5, 1.0) and state.of(make_problem(2)) == (0.0, 0.5)
    assert state.of(make_problem(3)) == (0.025, 0.975)
    state.merge({7: (0.0, 0.75)}, 1.0)
    assert state.of(make_problem(7)) == state.of(make_problem(3)) == (0.0, 0.75)
    assert state.of(make_problem(2)) == (0.0, 0.5)


def test_every_rank_has_the_numbers_of_all_whoever_they_came_from(monkeypatch):
    random = torch.Generator().manual_seed(0)
    numbers = {index: tuple(torch.rand(2, generator=random).tolist()) for index in range(30)}
    states = []
    for split in (1, 2, 3):
        parts = [dict(list(numbers.items())[rank::split]) for rank in range(split)]
        monkeypatch.setattr(problem_state.distributed, "gather", lambda _, parts=parts: parts)
        for _ in range(split):
            state = ProblemState({"low": 0.0, "high": 1.0})
            state.merge({}, 0.3)
            states.append((state.means, dict(sorted(state.known.items()))))
    assert states == [states[0]] * 6  # bit for bit


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    state, other = ProblemState({"low": 0.0, "high": 1.0}), ProblemState({"low": 0.3, "high": 0.4})
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        state.merge({int(index): tuple(torch.rand(2, generator=random).tolist())
                     for index in torch.randint(50, (9,), generator=random)}, 0.1)
    state.save(tmp_path)
    other.load(tmp_path)
    assert (other.known, other.means) == (state.known, state.means)
    assert json.loads((tmp_path / FILE).read_text())["names"] == ["low", "high"]  # plain JSON, for anyone to read


def test_a_checkpoint_without_these_numbers_is_refused(tmp_path):
    with pytest.raises(RunStopped, match="does not hold hint_p of each problem"):
        ProblemState({"hint_p": 0.95}).load(tmp_path)
    ProblemState({"low": 0.0, "high": 1.0}).save(tmp_path)
    with pytest.raises(RunStopped, match="does not hold hint_p of each problem"):
        ProblemState({"hint_p": 0.95}).load(tmp_path)


@pytest.mark.parametrize("script", [adaback, uft_adaptive, relift], ids=lambda script: script.__name__)
def test_state_changes_after_the_last_update_only(script):
    """A step that is given up before would else leave a trace, and be taken again."""
    lines = lines_of_script(script, "for num_done in", "logger.close").splitlines()
    changes = [number for number, line in enumerate(lines) if "plan.state.merge" in line or "plan.state.put" in line]
    assert len(changes) in (1, 2) and changes[0] > next(n for n, line in enumerate(lines) if "guard.check" in line)


# ----- guidance where a group fails -----


def guided(right, num_solution=8):
    """What ghpo.py makes of problems whose calls have these numbers of right responses."""
    problems = [make_problem(index, solution=["12345678"[:num_solution]]) for index in right]
    engine, begun = FakeEngine(right), []
    prompts = PromptBuilder(TOKENIZER, 99, False)
    names = vars(ghpo) | {
        "engine": engine, "problems": problems, "prompts": [prompts.build(problem) for problem in problems], "step": 5,
        "plan": SimpleNamespace(prompts=prompts, tokenizer=None), "watch": SimpleNamespace(begin=begun.append),
        "args": GHPO, "sampling": Sampling(4, 40, 1.0), "score_rollouts": engine.verdicts,
    }
    lines = lines_of_script(ghpo, "groups = engine.generate", "# 4. batch")
    exec(lines, names)  # noqa: S102
    return names, engine, begun


def test_the_group_that_was_made_last_is_trained():
    names, engine, begun = guided({0: [0, 0, 2], 1: [1], 2: [0, 0, 0, 0]})
    shown = [group[0].prompt.hint_ids for group in names["groups"]]
    assert shown == [encode("1234", TOKENIZER), [], encode("123456", TOKENIZER)]  # 50 %, none, 75 %
    assert [group[0].response_ids for group in names["groups"]] == [[300], [100], [400]]
    assert [[score.correct for score in group] for group in names["scores"]] == [
        [True, True, False, False], [True, False, False, False], [False] * 4]
    advantages = names["advantages"]
    assert advantages[2].tolist() == [0.0] * 4 and advantages[:2].abs().min() > 0
    asked = engine.asked[:-1]
    assert engine.asked[-1] == "sleep"
    assert [[prompt.problem.index for prompt in prompts] for prompts, *_ in asked] == [[0, 1, 2], [0, 2], [0, 2], [2]]
    assert [sampling.first_sample for _, sampling, _ in asked] == [0, 4, 8, 12]  # no stream twice
    assert all(sampling.group_size == 4 and step == 5 for _, sampling, step in asked)
    assert begun == ["reward", *["rollout", "reward"] * 3]


def test_every_call_is_made_even_for_nothing():
    """Ranks may share an engine: all make as many calls."""
    _, engine, _ = guided({0: [3], 1: [4]})
    assert [len(prompts) for prompts, *_ in engine.asked[:-1]] == [2, 0, 0, 0]


# ----- prefixes -----


@pytest.mark.parametrize(("done", "low"), [(0, 0.95), (125, 0.8182), (250, 0.5), (375, 0.1818), (500, 0.05)])
def test_the_bound_of_prefixes_follows_the_cosine(done, low):
    shares = [prefix_rft.draw_share(index, done + 1, PREFIX) for index in range(2000)]
    assert PREFIX.total_steps == 500 and max(shares) <= 0.95
    assert min(shares) == pytest.approx(low, abs=2e-3) and min(shares) >= low - 5e-5
    assert sum(shares) / 2000 == pytest.approx((low + 0.95) / 2, abs=0.03)


def test_the_highest_of_each_hint_are_kept():
    """Of 10, 5, 4, 1 and 0 tokens 2, 1, 1, 1 and 0, however they are packed."""
    lengths, values = (10, 5, 4, 1, 0), {}
    prompts = [make_prompt([2, 3], [10 * number + n for n in range(length)]) for number, length in enumerate(lengths)]
    groups = [[Rollout(prompt, [4, 5], [0.0] * 2, "stop")] for prompt in prompts]
    random = torch.Generator().manual_seed(0)
    for number, length in enumerate(lengths):
        values |= {10 * number + n: value for n, value in enumerate(torch.rand(length, generator=random).tolist())}
    kept = {10 * number + n for number, length in enumerate(lengths) for n in range(length)
            if sorted((values[10 * number + k] for k in range(length)), reverse=True).index(values[10 * number + n])
            < length - int(0.8 * length)}
    assert len(kept) == 5
    for budget in (14, 30, 100):
        found = set()
        for one in pack(groups, [[1.0]] * 5, budget, CPU):
            entropies = torch.tensor([values.get(token, 9.0) if hint else 9.0 for token, hint in
                                      zip(one.targets.tolist(), one.hint_mask.tolist(), strict=True)])
            mask = highest_of_hints(entropies, one, 0.2)
            assert not (mask & ~one.hint_mask).any()
            assert torch.equal(highest_of_hints(entropies, one, 1.0), one.hint_mask)
            assert not highest_of_hints(entropies, one, 0.0).any()
            found |= set(one.targets[mask].tolist())
        assert found == kept


def hybrid_group(advantages, prefix=5):
    """Three one-token samples and one that goes on from a prefix."""
    plain, begun = make_prompt([2, 3]), make_prompt([2, 3], list(range(10, 10 + prefix)))
    group = [Rollout(plain, [7], [0.0], "stop")] * 3 + [Rollout(begun, [8], [0.0], "stop")]
    [micro_batch] = pack([group], [advantages], 100, CPU)
    return micro_batch


def test_prefix_rft_by_hand():
    advantages = group_advantages(torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), False)
    assert not PREFIX.advantage_std and advantages[1].tolist() == [-0.5, -0.5, 0.5, 0.5]
    micro_batch = hybrid_group(advantages[0].tolist())
    assert micro_batch.advantages[micro_batch.hint_mask].tolist() == [0.75] * 5
    logprobs = torch.full((9,), -1.0, requires_grad=True)
    expected = {"top": (0.75 - 0.75 - 0.75) / 9, "all": (0.75 - 0.75 - 5 * 0.75) / 9, "none": 0.0, "nll": 0.5 * 1.0,
                "trust": -0.5 * 1.0}
    for how, value in expected.items():
        losses = losses_of_script(prefix_rft, micro_batch, lambda _: (logprobs, torch.arange(9.0)), None,
                                  numbers=numbers_of(how, 4, 5) | {"num_hint_tokens": 5}, **FLAGS, prefix_loss=how)
        assert losses["loss"].item() == pytest.approx(value, abs=1e-12), how
        [gradient] = torch.autograd.grad(losses["loss"], logprobs)
        assert int((gradient[micro_batch.hint_mask] != 0).sum()) == {"top": 1, "all": 5, "none": 0}.get(how, 5)


def test_a_trusted_prefix_pulls_as_nll_does_down_to_a_tenth_and_less_below():
    logprobs = torch.tensor([0.01, 0.05, 0.1, 0.5]).log().requires_grad_()
    loss = -trusting(logprobs, PREFIX.trust)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([-0.1, -0.5, -1.0, -1.0]))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.1, -0.5, -1.0, -1.0]))


def numbers_of(how, num_response, num_hint):
    """Local variables of the script before its losses."""
    return {"num_pg_tokens": num_response + num_hint * (how in ("top", "all")), "top": TOP[how]}


def test_the_scripts_own_normaliser_and_share_are_those():
    """Lines that come before the losses."""
    for how, top in TOP.items():
        args = SimpleNamespace(prefix_loss=how, prefix_top=0.2, constant_normaliser=False, old_logprobs="actor")
        names = {"math": math, "args": args, "count_tokens": lambda masks: float(torch.cat(masks).sum()),
                 "mini_batch": [hybrid_group([1.0] * 4)], "plan": None}
        exec(lines_of_script(prefix_rft, "top = {", "max_ratio = "), names)  # noqa: S102
        exec(lines_of_script(prefix_rft, "num_response_tokens = ", "for number, micro_batch"), names)  # noqa: S102
        assert (names["top"], names["num_pg_tokens"]) == (top, 9.0 if how in ("top", "all") else 4.0)


SIZES = [(4, 0, [5, 1, 6]), (3, 7, [2]), (2, 0, [1, 3, 3]), (6, 5, [4])]  # two problems: samples, and what goes on


def hybrid_groups():
    plain, begun, *others = random_groups(SIZES)
    groups = [plain + begun, others[0] + others[1]]
    random = torch.Generator().manual_seed(5)
    return groups, [torch.randn(len(group), generator=random).tolist() for group in groups]


def plain_loss(how, model, old, groups, advantages):
    """One row after the other, token by token."""
    pg, entropy, nll, num_prefix = [], [], [], 0
    for group, of_group in zip(groups, advantages, strict=True):
        for one, advantage in zip(group, of_group, strict=True):
            prompt = one.prompt
            ids = torch.tensor([prompt.prompt_ids + prompt.hint_ids + one.response_ids])
            start, num_hint = len(prompt.prompt_ids) - 1, len(prompt.hint_ids)
            log_p, old_log_p = (some(input_ids=ids).logits[0].log_softmax(-1)[start:-1] for some in (model, old))
            new, before = (some.gather(-1, ids[0, start + 1 :, None])[:, 0] for some in (log_p, old_log_p))
            entropies = -(log_p.exp() * log_p).sum(-1)
            ratio = (new - before.detach()).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            pg += list(loss[num_hint:])
            entropy += list(entropies[num_hint:])
            floor = new[:num_hint].detach().exp().clamp(min=0.1)
            nll += list(-new[:num_hint].exp() / floor if how == "trust" else -new[:num_hint])
            num_prefix += num_hint
            num_kept = {"top": num_hint - int(0.8 * num_hint), "all": num_hint}.get(how, 0)
            pg += list(loss[:num_hint][entropies[:num_hint].argsort(descending=True)[:num_kept]])
    num_pg = sum(len(one.response_ids) for group in groups for one in group)
    num_pg += num_prefix if how in ("top", "all") else 0
    total = torch.stack(pg).sum() / num_pg - 0.2 * torch.stack(entropy).mean()
    return total + (0.5 * torch.stack(nll).mean() if how in ("nll", "trust") else 0.0)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("budget", [16, 30, 200])
@pytest.mark.parametrize("how", TOP)
def test_loss_and_all_gradients_equal_those_of_plain_rows(how, budget, share_prefix):
    groups, advantages = hybrid_groups()
    model = tiny_model(Qwen2ForCausalLM, seed=1)
    old = with_noise(model, 0.03, seed=2)
    expected = plain_loss(how, model, old, groups, advantages)
    micro_batches = pack(groups, advantages, budget, CPU, share_prefix)
    num_response, num_hint = (sum(int(getattr(one, f"{name}_mask").sum()) for one in micro_batches)
                              for name in ("response", "hint"))
    flags = FLAGS | {"entropy_coef": 0.2, "prefix_loss": how}
    actor, sampler = scorer(model), scorer(old)
    actual = sum(losses_of_script(prefix_rft, with_logprobs(one, sampler, None), actor, None,
                                  num_response_tokens=num_response, num_hint_tokens=num_hint,
                                  numbers=numbers_of(how, num_response, num_hint), **flags)["loss"]
                 for one in micro_batches)
    assert num_hint == 12
    torch.testing.assert_close(actual, expected, **CLOSE)
    for one, other in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in (actual, expected)),
                          strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_prefix_that_responses_share_has_the_sum_of_their_advantages(share_prefix):
    """The policy gradient of each response's whole row, prefix included, added up; 0 for a whole GRPO group."""
    [group] = random_groups([(4, 3, [5, 1, 6])])
    for advantages in ([0.5, -1.25, 2.0], group_advantages(torch.tensor([[1.0, 0.0, 0.1]]))[0].tolist()):
        batches = pack([group], [advantages], 40, CPU, share_prefix)
        of_hint = torch.cat([one.advantages[one.hint_mask] for one in batches])
        assert of_hint.tolist() == pytest.approx([sum(advantages)] * 3, abs=1e-12)
        rows = Counter()
        for rollout, advantage in zip(group, advantages, strict=True):
            for place, token in enumerate([*rollout.prompt.hint_ids, *rollout.response_ids]):
                rows[place, token if place > 2 else "hint"] += advantage
        packed = Counter()
        for one in batches:
            for state, token, hint, advantage in zip(one.predictors.tolist(), one.targets.tolist(),
                                                     one.hint_mask.tolist(), one.advantages.tolist(), strict=True):
                place = int(one.position_ids.flatten()[state]) - 3
                packed[place, "hint" if hint else token] += advantage
        assert packed == pytest.approx(rows, abs=1e-12)


def test_rollouts_of_a_group_share_the_prefix_that_they_have():
    groups, advantages = hybrid_groups()
    [micro_batch] = pack(groups, advantages, 400, CPU)
    segments = {(row, int(segment)) for row, of_row in enumerate(micro_batch.segment_ids)
                for segment in of_row.unique() if segment >= 0}
    assert len(segments) == 4 and int(micro_batch.hint_mask.sum()) == 12
    own = [of_group[-1] for of_group in advantages]
    assert sorted(set(micro_batch.advantages[micro_batch.hint_mask].tolist())) == pytest.approx(sorted(own))
    same = replace(groups[0][-1], prompt=groups[0][0].prompt)  # a prefix of no tokens
    [micro_batch] = pack([[*groups[0][:-1], same]], [advantages[0]], 400, CPU)
    assert micro_batch.segment_ids.max() == 0 and micro_batch.branch_ids.max() == 4


def test_metrics_and_texts_of_a_group_with_two_prompts():
    plain = replace(make_prompt([3] * 4), hint_slices=0)
    begun = replace(make_prompt([3] * 4, [5, 6, 7]), hint_slices=0, hint_share=0.75)
    group = [Rollout(plain, [8, 9], [0.0] * 2, "stop")] * 3 + [Rollout(begun, [8], [0.0], "stop")]
    other = [Rollout(plain, [8, 9], [0.0] * 2, "stop")] * 4
    right, wrong = Verdict(*CORRECT), Verdict(*WRONG_RESULT)
    line = rollout_metrics([group, other], [[wrong, right, wrong, right], [wrong] * 4], {"seconds/rollout": 2.0})
    expected = {"hint_tokens": 1.5, "hint_share": 0.375, "hint_slices": 0.0, "accuracy/slices_0": 1 / 7,
                "rollouts/slices_0": 7, "accuracy/hinted": 1.0, "rollouts/hinted": 1, "flat_groups": 0.5,
                "accuracy": 0.25, "groups_all_wrong": 0.5}
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    assert [text["hint"] for text in group_texts(group, [right] * 4, tokenizer)] == ["", "", "", "5 6 7"]
    assert math.isclose(line["prompt_tokens"], 4)
