"""What a run has cost, in tokens."""

from dataclasses import dataclass
from pathlib import Path

from utils.report.lineage import lineage
from utils.report.runs import read_metrics

SCORED = ("tokens/response", "tokens/hint", "tokens/demonstration")


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens over the steps of a run, or of several: sampled, and trained by kind. Hints that no loss has
    are not trained; a demonstration is one beside responses or, where nothing is sampled, all that is trained."""

    sampled: float = 0.0
    response: float = 0.0
    hint: float = 0.0
    demonstration: float = 0.0

    @property
    def forward_passes(self) -> float:
        """Of one token each: one to sample it, three to train it (the backward pass is two). So a token that is sampled
        and trained is four. Prompts, evaluation, and log-probabilities by a reference or before an update are not in
        it."""
        return self.sampled + 3 * (self.response + self.hint + self.demonstration)

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.sampled + other.sampled, self.response + other.response, self.hint + other.hint,
                      self.demonstration + other.demonstration)


def tokens_of(output_dir: Path) -> Tokens | None:
    """Of a run and of those it goes on from, as far as it does; None where a line of them does not say."""
    total = Tokens()
    for folder, last_step in lineage(output_dir):
        lines = [line for line in read_metrics(folder) if "loss" in line and line["step"] <= last_step]
        if not all(name in line for line in lines for name in SCORED):
            return None
        total += tokens_of_lines(lines)
    return total


def tokens_of_lines(lines: list[dict]) -> Tokens:
    response, hint, demonstration = (sum(line[name] for line in lines) for name in SCORED)
    if not any("tokens/sampled" in line for line in lines):
        return Tokens(demonstration=hint + demonstration)
    learned = any(line.get("state_grad_norm/hint") for line in lines)  # null where no update of a step happened
    return Tokens(sum(line["tokens/sampled"] for line in lines), response, hint if learned else 0.0, demonstration)
