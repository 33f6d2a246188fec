"""Some steps under torch's profiler, and what they compute, counted. Stopwatch tells what begins and ends; while no
profile is wanted, all of this is a comparison with None.

Work is: tokens of a forward pass without padding, those of them that are scored, and pairs of tokens of which one sees
the other. A prompt counts once for all its responses where it is computed once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from utils.run.output_dir import writing
from utils.types import PREFIX, MicroBatch, Rollout

BACKWARD = 2  # times the FLOPs of the forward pass


@dataclass
class Phase:
    """Of one name, over the profiled steps: seconds, and work, where what is computed backward counts for itself."""

    seconds: float = 0.0
    tokens: float = 0.0
    scored: float = 0.0
    pairs: float = 0.0

    def add(self, tokens: int, scored: int, pairs: int, times: int) -> None:
        self.tokens += times * tokens
        self.scored += times * scored
        self.pairs += times * pairs


class Profile:
    """Of the steps `first` to `last`; `trace` is the file of the profiler, None on ranks that write none. `report` is
    called after the last step, on every rank, with the phases and the number of steps."""

    def __init__(self, first: int, last: int, trace: Path | None, report: Callable[[dict[str, Phase], int], None]):
        self.first, self.last, self.trace, self.report = first, last, trace, report
        self.phases: dict[str, Phase] = {}
        self.num_steps = 0
        self.is_on = False
        self.profiler: profile | None = None
        self.name: str | None = None
        self.since = 0.0
        self.mark = nullcontext()

    def step(self, step: int) -> None:
        """A step begins."""
        self.is_on = self.first <= step <= self.last
        if not self.is_on:
            return
        self.num_steps += 1
        if self.trace is not None and self.profiler is None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.profiler = profile(activities=activities)
            self.profiler.start()

    def begin(self, name: str) -> None:
        """A phase begins; the one before has ended."""
        if self.is_on:
            self.name, self.since, self.mark = name, time.perf_counter(), record_function(name)
            self.mark.__enter__()

    def end(self) -> None:
        """The phase ends, if there is one, and the device has done what it was told."""
        if self.is_on and self.name is not None:
            self.mark.__exit__(None, None, None)
            self.phases.setdefault(self.name, Phase()).seconds += time.perf_counter() - self.since
            self.name = None

    def end_step(self, step: int) -> None:
        if not self.is_on:
            return
        self.is_on = False
        if step == self.last:
            if self.profiler is not None:
                self.profiler.stop()
                with writing(self.trace):
                    self.trace.parent.mkdir(exist_ok=True)
                    self.profiler.export_chrome_trace(str(self.trace))
                self.profiler = None
            self.report(self.phases, self.num_steps)

    def count(self, tokens: int, scored: int, pairs: int, times: int = 1) -> None:
        if self.is_on and self.name is not None:
            self.phases.setdefault(self.name, Phase()).add(tokens, scored, pairs, times)


current: Profile | None = None


def start(profile: Profile | None) -> None:
    global current
    current = profile


def scored(micro_batch: MicroBatch, is_learned: bool) -> None:
    """A forward pass over it, in the present phase; `is_learned`: a backward pass follows."""
    if current is not None and current.is_on:
        current.count(*work_of_micro_batch(micro_batch), 1 + BACKWARD if is_learned else 1)


def sampled(groups: Sequence[Sequence[Rollout]]) -> None:
    """They were generated in the phase before the present one."""
    if current is not None and current.is_on and "rollout" in current.phases:
        current.phases["rollout"].add(*work_of_groups(groups), times=1)


def pairs_of(prefix: int, responses: Sequence[int]) -> int:
    """Pairs of tokens of a group: each sees itself and what is before it, the prefix and its own response."""
    return prefix * (prefix + 1) // 2 + sum(length * prefix + length * (length + 1) // 2 for length in responses)


def work_of_groups(groups: Sequence[Sequence[Rollout]]) -> tuple[int, int, int]:
    """Tokens, scored, pairs."""
    tokens = num_scored = pairs = 0
    for group in groups:
        prefix = len(group[0].prompt.prompt_ids) + len(group[0].prompt.hint_ids)
        responses = [len(rollout.response_ids) for rollout in group]
        tokens, num_scored = tokens + prefix + sum(responses), num_scored + sum(responses)
        pairs += pairs_of(prefix, responses)
    return tokens, num_scored, pairs


def work_of_micro_batch(micro_batch: MicroBatch) -> tuple[int, int, int]:
    """The same of what is packed."""
    rows = torch.arange(len(micro_batch.branch_ids))[:, None].expand_as(micro_batch.branch_ids)
    ids = torch.stack([rows, micro_batch.segment_ids, micro_batch.branch_ids], -1)[micro_batch.branch_ids >= PREFIX]
    lengths: dict[tuple[int, int], dict[int, int]] = {}
    for (row, segment, branch), length in zip(*(part.tolist() for part in ids.unique(dim=0, return_counts=True)),
                                              strict=True):
        lengths.setdefault((row, segment), {})[branch] = length
    pairs = sum(pairs_of(of.get(PREFIX, 0), [length for branch, length in of.items() if branch != PREFIX])
                for of in lengths.values())
    return len(ids), len(micro_batch.targets), pairs
