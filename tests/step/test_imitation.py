"""What no response got right waits, and is imitated in an update of its own: the lines of relift.py as they stand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from rewards.answer import CORRECT, WRONG_RESULT
from tests.helpers.models import CPU, byte_tokenizer, lines_of_script, make_problem
from training import relift
from utils.problem_state import FILE, ProblemState
from utils.prompts import PromptBuilder
from utils.rollouts import Verdict
from utils.run import distributed

pytestmark = [pytest.mark.float64, pytest.mark.numerics]
PROMPTS = PromptBuilder(byte_tokenizer(), 99, False)
PROBLEMS = [make_problem(index, "ask ", demonstration="x" * (index + 1)) for index in range(10)]
ARGS = SimpleNamespace(buffer_size=3, max_tokens_per_micro_batch=40, sft_lr=0.5)


class Recorder:
    """An actor and a guard: every token has the probability 1 / 2; keeps what it is asked for."""

    def __init__(self):
        self.targets, self.losses, self.rates, self.last, self.checked = [], [], [], [], []

    def __call__(self, micro_batch):
        logprobs = torch.full((len(micro_batch.targets),), math.log(0.5), requires_grad=True)
        self.targets.append(micro_batch.targets[micro_batch.demonstration_mask].tolist())
        return logprobs, None

    def backward(self, loss, is_last):
        self.losses.append(loss.item())
        self.last.append(is_last)

    def step(self, lr):
        self.rates.append(lr)
        return 2.0

    def check(self, step, norm, losses, mini_batch):
        self.checked.append((step, norm, list(losses.parts), len(mini_batch)))


def imitate(state, step, failed, right=()):
    """What relift.py does after the updates of a step whose problems of these rows have no right response, or one."""
    recorder, scores = Recorder(), [[Verdict(*WRONG_RESULT)] * 2] * len(failed)
    scores += [[Verdict(*WRONG_RESULT), Verdict(*CORRECT)]] * len(right)
    names = vars(relift) | {
        "problems": [PROBLEMS[row] for row in (*failed, *right)], "step": step, "args": ARGS, "device": CPU,
        "plan": SimpleNamespace(state=state, prompts=PROMPTS), "of_row": dict(enumerate(PROBLEMS)), "scores": scores,
        "actor": recorder, "guard": recorder,
    }
    exec(lines_of_script(relift, "# 6. imitation", "watch.end()"), names)  # noqa: S102
    return names["imitated"], recorder


def waiting(state):
    return {row: since for row, (since,) in state.known.items() if since}


def test_those_that_have_waited_longest_are_imitated_together():
    state = ProblemState({"waits_since": 0.0})
    imitated, recorder = imitate(state, 1, [7, 2], [1])
    assert imitated == [] and waiting(state) == {7: 1, 2: 1} and recorder.rates == []
    imitated, recorder = imitate(state, 2, [0, 7, 5])  # 7 fails again: it waits since step 1
    assert imitated == [2, 7, 0] and waiting(state) == {5: 2}
    assert recorder.rates == [0.5] and recorder.checked == [(2, 2.0, ["sft_loss"], len(recorder.losses))]
    imitated, _ = imitate(state, 3, [], [5])  # what is right later waits on
    assert imitated == [] and waiting(state) == {5: 2}
    imitated, _ = imitate(state, 4, [2, 9], [])  # imitated once, it may fail again
    assert imitated == [5, 2, 9] and waiting(state) == {}
    imitated, _ = imitate(state, 5, [], [2])
    assert imitated == []


def test_the_loss_is_the_mean_over_the_tokens_of_all_their_demonstrations():
    _, recorder = imitate(ProblemState({"waits_since": 0.0}), 1, [9, 0, 5])
    assert len(recorder.losses) > 1 and recorder.last == [False] * (len(recorder.losses) - 1) + [True]
    assert sum(recorder.losses) == pytest.approx(math.log(2))
    end = PROMPTS.end_id
    assert sum(targets.count(end) for targets in recorder.targets) == 3
    assert sum(map(len, recorder.targets)) == 11 + 2 + 7


def test_problems_of_all_ranks_wait_together_and_are_shared(monkeypatch):
    """The other rank brings the rows 4 and 6."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sums", lambda values: values)
    monkeypatch.setattr(distributed, "maximum", lambda value: value)
    monkeypatch.setattr(distributed, "gather", lambda items: [*items, {4: (1.0,), 6: (3.0,)}])
    for rank, num_tokens in ((0, 6 + 10), (1, 8)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        imitated, recorder = imitate(ProblemState({"waits_since": 0.0}), 3, [8])
        assert imitated == [4, 6, 8] and sum(map(len, recorder.targets)) == num_tokens


def test_what_waits_is_written_and_read_exactly(tmp_path):
    state = ProblemState({"waits_since": 0.0})
    imitate(state, 2, [7, 2])
    state.save(tmp_path)
    other = ProblemState({"waits_since": 0.0})
    other.load(tmp_path)
    assert (other.known, other.means) == (state.known, state.means) == ({7: (2.0,), 2: (2.0,)}, (0.0,))
    written = (tmp_path / FILE).read_text()
    other.save(tmp_path)
    assert (tmp_path / FILE).read_text() == written and json.loads(written)["names"] == ["waits_since"]
