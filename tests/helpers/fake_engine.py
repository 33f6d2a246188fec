"""An engine whose responses are right as often as a test says."""

from rewards.answer import CORRECT, WRONG_RESULT
from utils.rollouts import Verdict
from utils.types import Rollout


class FakeEngine:
    """Gives for each call as many right responses to each problem as `right` says; keeps what it was asked for."""

    def __init__(self, right):
        self.right, self.asked = right, []

    def generate(self, prompts, sampling, step):
        self.asked.append((prompts, sampling, step))
        number = len(self.asked)
        return [[Rollout(prompt, [100 * number + sample], [0.0], "stop") for sample in range(sampling.group_size)]
                for prompt in prompts]

    def sleep(self):
        self.asked.append("sleep")

    def verdicts(self, groups, _tokenizer):
        """Of the call before."""
        call = len(self.asked)
        return [[Verdict(*(CORRECT if sample < self.right[group[0].prompt.problem.index][call - 1] else WRONG_RESULT))
                 for sample in range(len(group))] for group in groups]
