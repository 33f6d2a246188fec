"""Scores of rollouts: the text that a verifier reads, its verdicts, and what a training line says of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards import pool, score_all
from utils import profiling
from utils.answers import answer_pattern, repeats_itself
from utils.prompts import PromptBuilder, decode
from utils.run import distributed, watchdog
from utils.types import Prompt, Rollout


class Verdict(NamedTuple):
    """A Score, and the pattern of the answer: see answers.py."""

    reward: float
    correct: bool
    reason: str
    pattern: str = ""


def completion_text(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hint and response as text, without the end-of-sequence token: what the verifier reads. Decoded in one go, since
    a character may be spread over tokens on both sides."""
    response_ids = rollout.response_ids[:-1] if rollout.finish == "stop" else rollout.response_ids
    return decode([*rollout.prompt.hint_ids, *response_ids], tokenizer)


def score_rollouts(groups: Sequence[Sequence[Rollout]], tokenizer: PreTrainedTokenizerBase) -> list[list[Verdict]]:
    """The verifier's judgement of every rollout; those that need worker processes are judged side by side."""

    def item(rollout: Rollout) -> tuple[str, str, dict[str, Any]]:
        problem = rollout.prompt.problem
        return problem.data_source, completion_text(rollout, tokenizer), problem.ground_truth

    profiling.sampled(sampled(groups))
    rollouts = [rollout for group in groups for rollout in group]
    items = [item(rollout) for rollout in rollouts]
    scores = score_all(items, watchdog.progress)
    verdicts = (Verdict(*score, answer_pattern(completion, rollout.prompt.problem.prompt))
                for score, (_, completion, _), rollout in zip(scores, items, rollouts, strict=True))
    return [[next(verdicts) for _ in group] for group in groups]


def rollout_metrics(
    groups: Sequence[Sequence[Rollout]], scores: Sequence[Sequence[Verdict]], seconds: Mapping[str, float],
    dropped: Sequence[Sequence[Rollout]] = (),
) -> dict[str, float]:
    """Means over the rollouts (*hint*: over the problems, *groups*: over the groups) of all ranks, and `seconds`, the
    times of a Stopwatch. The names are explained in utils/run/logger.py. Demonstrations are left out of all.

    verifier_timeouts is a count: rollouts whose verifier ran out of time, crashed or raised. tokens/sampled is one too,
    and the only number that has the groups which were sampled and `dropped` for others.
    """
    groups, scores = sampled(groups), sampled(groups, scores)
    rollouts = [rollout for group in groups for rollout in group]
    all_scores = [score for group in scores for score in group]
    shown = [max((rollout.prompt for rollout in group), key=lambda prompt: len(prompt.hint_ids)) for group in groups]
    totals = distributed.sums({
        "rollouts": len(rollouts),
        "groups": len(groups),
        "reward": sum(score.reward for score in all_scores),
        "accuracy": sum(score.correct for score in all_scores),
        "format": sum(score.reason != "no answer" for score in all_scores),
        "response_tokens": sum(len(rollout.response_ids) for rollout in rollouts),
        "truncated": sum(rollout.finish == "length" for rollout in rollouts),
        "prompt_tokens": sum(len(prompt.prompt_ids) for prompt in shown),
        "hint_share": sum(prompt.hint_share for prompt in shown),
        "repeated": sum(rollout.finish == "length" and repeats_itself(rollout.response_ids) for rollout in rollouts),
        "hint_slices": sum(prompt.hint_slices for prompt in shown),
        "hint_tokens": sum(len(prompt.hint_ids) for prompt in shown),
        "whole_hints": sum(prompt.hint_share == 1 for prompt in shown),
        "flat_groups": sum(len({score.reward for score in group}) == 1 for group in scores),
        "groups_all_right": sum(all(score.correct for score in group) for group in scores),
        "groups_all_wrong": sum(not any(score.correct for score in group) for group in scores),
        "verifier_timeouts": sum(map(pool.has_failed, all_scores)),
        "tokens_dropped": sum(len(rollout.response_ids) for group in dropped for rollout in group),
    })
    per_group = {"prompt_tokens", "hint_share", "hint_slices", "hint_tokens", "whole_hints", "flat_groups",
                 "groups_all_right", "groups_all_wrong"}
    num_rollouts, num_groups = totals.pop("rollouts"), totals.pop("groups")
    spent = seconds["seconds/rollout"] + seconds.get("seconds/reward", 0.0)
    by_hint = Counter((kind_of_hint(rollout.prompt), score.correct)
                      for rollout, score in zip(rollouts, all_scores, strict=True))
    patterns = Counter(score.pattern for score in all_scores if score.pattern)
    of_patterns, of_hints, spent = zip(*distributed.gather([(patterns, by_hint, spent)]), strict=True)  # by rank
    totals["common_answer"] = max(sum(of_patterns, Counter()).values(), default=0)
    times = {"slowest_rank": spent.index(max(spent)), "seconds/slowest_rank": max(spent),
             "seconds/mean_rank": sum(spent) / len(spent)}
    counts = {"verifier_timeouts": totals.pop("verifier_timeouts"),
              "tokens/sampled": totals["response_tokens"] + totals.pop("tokens_dropped")}
    tokens_per_second = totals["response_tokens"] / seconds["seconds/rollout"]
    means = {name: total / (num_groups if name in per_group else num_rollouts) for name, total in totals.items()}
    return (means | counts | accuracy_by_hint(sum(of_hints, Counter())) | {"tokens_per_second": tokens_per_second}
            | seconds | times)


def sampled(groups: Sequence[Sequence[Rollout]], values: Sequence[Sequence[Any]] | None = None) -> list[list[Any]]:
    """The members of the groups that are not demonstrations, or what `values` has for them."""
    return [[value for rollout, value in zip(group, of_group, strict=True) if not rollout.demonstration]
            for group, of_group in zip(groups, groups if values is None else values, strict=True)]


def behind_solutions(groups: Sequence[Sequence[Rollout]], prompts: PromptBuilder) -> list[list[Rollout]]:
    """The same responses, as if the model had been shown the solutions of the problems first."""
    return [[replace(rollout, prompt=prompt) for rollout in group]
            for group in groups for prompt in [prompts.for_teacher(group[0].prompt.problem)]]


def share_shown(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Of what a teacher was given, over the groups of all ranks."""
    totals = distributed.sums({"share": sum(group[0].prompt.hint_share for group in groups), "groups": len(groups)})
    return {"teacher_share": totals["share"] / totals["groups"]}


def kind_of_hint(prompt: Prompt) -> str:
    return "hinted" if prompt.hint_ids and not prompt.hint_slices else f"slices_{prompt.hint_slices}"


def accuracy_by_hint(number: Mapping[tuple[str, bool], int]) -> dict[str, float]:
    """Of the rollouts that were shown N slices, for each N that occurs: accuracy/slices_N, and their number,
    rollouts/slices_N; hinted in the place of slices_N for those whose hint is counted in tokens. `number` is that of
    each (kind of hint, whether right)."""
    metrics = {}
    for kind in sorted({kind for kind, _ in number}, key=lambda kind: (kind == "hinted", len(kind), kind)):
        right, wrong = number.get((kind, True), 0), number.get((kind, False), 0)
        metrics |= {f"accuracy/{kind}": right / (right + wrong), f"rollouts/{kind}": float(right + wrong)}
    return metrics


def group_texts(
    group: Sequence[Rollout], scores: Sequence[Verdict], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str | float]]:
    """The rollouts of a group for people: prompt, hint and response as texts, the verdict, and what came of it. Not a
    demonstration."""
    return [{"prompt": decode(rollout.prompt.prompt_ids, tokenizer), "hint": decode(rollout.prompt.hint_ids, tokenizer),
             "response": decode(rollout.response_ids, tokenizer), "reward": judged.reward, "reason": judged.reason,
             "index": rollout.prompt.problem.index, "sample": sample, "truncated": rollout.finish == "length",
             "hint_slices": rollout.prompt.hint_slices}
            for sample, (rollout, judged) in enumerate(zip(group, scores, strict=True)) if not rollout.demonstration]
