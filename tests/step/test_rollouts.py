"""What a training line says of the rollouts, by hand; and how gradients at hint and at response tokens add up."""

import math
from types import SimpleNamespace

import pytest
import torch

from rewards.answer import CORRECT, NO_ANSWER, WRONG_RESULT
from tests.helpers.models import make_problem
from utils import metrics
from utils.metrics import LossSums, StateGradients
from utils.packing import pack_mini_batches
from utils.rollouts import Verdict, group_texts, rollout_metrics
from utils.types import Prompt, Rollout

SECONDS = {"seconds/rollout": 2.0}


def group(number, hint_slices, share, num_tokens=3):
    prompt = Prompt(make_problem(number), [7] * (4 + number), [8] * hint_slices, hint_slices, share)
    return [Rollout(prompt, [9] * num_tokens, [0.0] * num_tokens, finish) for finish in ("stop", "length")]


def test_groups_hints_and_accuracy_by_slices():
    groups = [group(0, 0, 0.0), group(1, 2, 0.5), group(2, 2, 0.25), group(3, 0, 0.0)]
    scores = [[WRONG_RESULT, NO_ANSWER], [CORRECT, CORRECT], [CORRECT, WRONG_RESULT], [CORRECT, NO_ANSWER]]
    line = rollout_metrics(groups, [[Verdict(*score) for score in group] for group in scores], SECONDS)
    expected = {
        "groups_all_right": 0.25, "groups_all_wrong": 0.25, "flat_groups": 0.25, "accuracy": 0.5,
        "hint_share": 0.1875, "hint_slices": 1.0, "prompt_tokens": 5.5,
        "accuracy/slices_0": 0.25, "rollouts/slices_0": 4, "accuracy/slices_2": 0.75, "rollouts/slices_2": 4,
    }
    assert {name: line[name] for name in expected} == expected
    assert not {"accuracy/slices_1", "rollouts/slices_1"} & set(line)  # of no rollout nothing is said


def test_tokens_are_counted_as_sampled_and_as_scored():
    """Two groups of two responses of 3 tokens, one with a hint of 2 that was sampled in the place of two others, of 2
    and of 5 tokens; for the second group its demonstration of 4 is trained, as HPT does."""
    kept, gated = group(0, 2, 0.5), group(1, 0, 0.0)
    dropped = [group(0, 0, 0.0, num_tokens=2), group(0, 1, 0.25, num_tokens=5)]
    scores = [[Verdict(*CORRECT), Verdict(*NO_ANSWER)]] * 2
    line, without = (rollout_metrics([kept, gated], scores, SECONDS, groups) for groups in (dropped, []))
    assert line["tokens/sampled"] == 4 * 3 + 2 * 2 + 2 * 5 and without["tokens/sampled"] == 4 * 3
    assert line == without | {"tokens/sampled": line["tokens/sampled"]}  # no other number sees them
    demonstration = Rollout(gated[0].prompt, [9] * 4, [0.0] * 4, "stop", demonstration=True)
    losses = LossSums()
    losses.add(loss=torch.tensor(3.0))
    for share_prefix in (True, False):
        mini_batches = pack_mini_batches([kept, [demonstration]], [[1.0, -1.0], [0.0]], 2, 64, torch.device("cpu"),
                                         share_prefix)
        assert losses.means(mini_batches) == {"loss": 1.5, "tokens/response": 6, "tokens/hint": 2,
                                              "tokens/demonstration": 4}


def test_seconds_of_a_part_that_begins_again_add_up(monkeypatch):
    now = iter([1.0, 3.0, 7.0, 8.0, 16.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    watch = metrics.Stopwatch(1)
    for part in ("rollout", "reward", "rollout", "update"):
        watch.begin(part)
    watch.end()
    assert watch.seconds == {"seconds/rollout": 3.0, "seconds/reward": 4.0, "seconds/update": 8.0}


def test_a_group_as_texts():
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    first, second = group_texts(group(1, 2, 0.5), [CORRECT, WRONG_RESULT], tokenizer)
    assert first == {"prompt": "7 7 7 7 7", "hint": "8 8", "response": "9 9 9", "reward": 1.0, "reason": "correct",
                     "index": 1, "sample": 0, "truncated": False, "hint_slices": 2}
    assert (second["sample"], second["reason"], second["truncated"]) == (1, "wrong result", True)


def test_norms_of_states_are_root_mean_squares_of_the_updates_that_happened():
    """States of gradient 3 and 4 (hint), 12 (response), then 1 and 2 (response), 6 and 8 (demonstration); an update
    between them is skipped."""
    head = torch.nn.Identity()
    gradients = StateGradients(head)

    def update(slopes, hint_mask, happened, demonstration_mask=None):
        states = torch.ones(len(slopes), 1, requires_grad=True)
        hint_mask = torch.tensor(hint_mask)
        demonstration_mask = torch.tensor(demonstration_mask or [False] * len(slopes))
        gradients.micro_batch = SimpleNamespace(hint_mask=hint_mask, response_mask=~(hint_mask | demonstration_mask),
                                                 demonstration_mask=demonstration_mask)
        (head(states)[:, 0] * torch.tensor(slopes)).sum().backward()
        gradients.end_update(happened)

    update([3.0, 4.0, 12.0], [True, True, False], happened=True)
    update([math.nan, 100.0], [True, False], happened=False)
    update([1.0, 2.0, 6.0, 8.0], [False] * 4, True, [False, False, True, True])
    assert gradients.norms() == pytest.approx({"state_grad_norm/hint": math.sqrt(25 / 2),
                                               "state_grad_norm/response": math.sqrt((144 + 5) / 2),
                                               "state_grad_norm/demonstration": math.sqrt(100 / 2)})
    assert all(map(math.isnan, gradients.norms().values()))  # of no update
    with torch.no_grad():
        head(torch.ones(2, 1))  # nothing to watch
