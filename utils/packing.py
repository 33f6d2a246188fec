"""Rollouts -> micro-batches: rows of whole groups, each group's prefix stored and computed once.

A row holds groups one after the other, each as `prompt | hint | response 1 | ... | response G`. A response sees its
prefix and itself; its positions continue from the prefix. So every token has the context it had when it was sampled,
and the result equals the plain padded computation, values and gradients.

Prompt 11 12 with hint 13 and responses 21 22 and 31, and prompt 41 with responses 51 52 and 61, in rows of 6:

    input_ids     11 12 13 21 22 31 | 41 51 52 61  0  0
    position_ids   0  1  2  3  4  3 |  0  1  2  1  0  0
    segment_ids    0  0  0  0  0  0 |  0  0  0  0 -1 -1    which group of its row
    branch_ids     0  0  0  1  1  2 |  0  1  1  2 -1 -1    prefix 0, responses 1 and 2, padding -1
    targets       13 21 22 31 51 52 61                     what is scored: hints and responses
    predictors     1  2  3  2  6  7  6                     by the states at these places: 2 predicts 21 and 31
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from utils.losses import teacher_advantages
from utils.run import distributed
from utils.types import PADDING, PREFIX, MicroBatch, Problem, Prompt, Rollout

Advantage = float | Sequence[float]  # of a response, or of each of its tokens


@dataclass(frozen=True)
class Segment:
    """A prefix and the responses that share it. Where nothing is shared a response has a copy of its own, of which one
    scores the hint: `behind_hint` are the advantages of all responses behind it, empty where another does."""

    rollouts: Sequence[Rollout]
    advantages: Sequence[Advantage]
    behind_hint: Sequence[Advantage]

    @property
    def prefix_ids(self) -> list[int]:
        return self.rollouts[0].prompt.prompt_ids + self.rollouts[0].prompt.hint_ids

    def __len__(self) -> int:
        return len(self.prefix_ids) + sum(len(rollout.response_ids) for rollout in self.rollouts)


def pack(
    groups: Sequence[Sequence[Rollout]],
    advantages: Sequence[Sequence[Advantage]],
    max_tokens: int,
    device: torch.device,
    share_prefix: bool = True,
) -> list[MicroBatch]:
    """All rollouts of `groups` as micro-batches of at most `max_tokens` tokens, padding included.

    `advantages[p][g]` belongs to `groups[p][g]`: a number, or one for each token; behind a hint a number. Rollouts of a
    group that follow one another share a prefix where they have the same. With `share_prefix` off every rollout carries
    its own; a hint is scored once all the same.
    """
    return [_tensors(rows, device) for rows in lay_out(groups, advantages, max_tokens, share_prefix)]


def lay_out(
    groups: Sequence[Sequence[Rollout]], advantages: Sequence[Sequence[Advantage]], max_tokens: int, share_prefix: bool
) -> Iterator[list[list[Segment]]]:
    """What `pack` puts into the rows of each micro-batch."""
    segments = []
    for group, of_group in zip(groups, advantages, strict=True):
        for rollouts, own in by_prefix(group, of_group):
            if share_prefix:
                segments.append(Segment(rollouts, own, own))
            else:
                longest = max(range(len(rollouts)), key=lambda sample: len(rollouts[sample].response_ids))
                segments += [Segment([rollout], [advantage], own if sample == longest else [])
                             for sample, (rollout, advantage) in enumerate(zip(rollouts, own, strict=True))]
    return first_fit(segments, max_tokens)


def by_prefix(
    group: Sequence[Rollout], advantages: Sequence[Advantage]
) -> Iterator[tuple[list[Rollout], list[Advantage]]]:
    """The rollouts that follow one another behind the same ids, with their advantages."""
    pairs = zip(group, advantages, strict=True)
    for _, same in itertools.groupby(pairs, key=lambda pair: (pair[0].prompt.prompt_ids, pair[0].prompt.hint_ids)):
        rollouts, own = zip(*same, strict=True)
        yield list(rollouts), list(own)


def first_fit(segments: list[Segment], max_tokens: int) -> Iterator[list[list[Segment]]]:
    """Longest first, each segment into the first row with room; the first of a micro-batch sets the row length."""
    rows: list[list[Segment]] = []
    used: list[int] = []
    for segment in sorted(segments, key=len, reverse=True):
        length = len(segment)
        assert length <= max_tokens, "plan.check_batch lets no group be longer than a micro-batch"
        row_length = used[0] if rows else length
        room = next((row for row in range(len(rows)) if used[row] + length <= row_length), None)
        if room is not None:
            rows[room].append(segment)
            used[room] += length
        elif (len(rows) + 1) * row_length <= max_tokens:
            rows.append([segment])
            used.append(length)
        else:
            yield rows
            rows, used = [[segment]], [length]
    if rows:
        yield rows


@dataclass
class _Scored:
    """The flat fields of a micro-batch under construction."""

    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    is_hint: list[bool] = field(default_factory=list)
    is_demonstration: list[bool] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    engine_logprobs: list[float] = field(default_factory=list)

    def add(
        self, predictors, targets, is_hint: bool, advantage: Advantage, engine_logprobs, is_demonstration: bool = False
    ) -> None:
        self.predictors += predictors
        self.targets += targets
        self.is_hint += [is_hint] * len(targets)
        self.is_demonstration += [is_demonstration] * len(targets)
        self.advantages += advantage if isinstance(advantage, Sequence) else [advantage] * len(targets)
        self.engine_logprobs += engine_logprobs


def _tensors(rows: list[list[Segment]], device: torch.device) -> MicroBatch:
    shape = len(rows), max(sum(map(len, row)) for row in rows)
    input_ids = np.zeros(shape, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    segment_ids, branch_ids = np.full(shape, PADDING), np.full(shape, PADDING)
    scored = _Scored()
    for r, row in enumerate(rows):
        column = 0
        for number, segment in enumerate(row):
            prompt, prefix_ids = segment.rollouts[0].prompt, segment.prefix_ids
            prefix_end = column + len(prefix_ids)
            segment_ids[r, column : column + len(segment)] = number
            input_ids[r, column:prefix_end] = prefix_ids
            position_ids[r, column:prefix_end] = np.arange(len(prefix_ids))
            branch_ids[r, column:prefix_end] = PREFIX
            last_of_prefix = r * shape[1] + prefix_end - 1
            if prompt.hint_ids and segment.behind_hint:
                first, total = last_of_prefix - len(prompt.hint_ids), sum(segment.behind_hint)
                scored.add(range(first, last_of_prefix), prompt.hint_ids, True, total, [0.0] * len(prompt.hint_ids))
            start = prefix_end
            for sample, (rollout, advantage) in enumerate(zip(segment.rollouts, segment.advantages, strict=True)):
                end = start + len(rollout.response_ids)
                input_ids[r, start:end] = rollout.response_ids
                position_ids[r, start:end] = len(prefix_ids) + np.arange(end - start)
                branch_ids[r, start:end] = sample + 1
                within = range(r * shape[1] + start, r * shape[1] + end - 1)
                predictors = [last_of_prefix, *within][: end - start]  # none for an empty response
                scored.add(predictors, rollout.response_ids, False, advantage, rollout.logprobs, rollout.demonstration)
                start = end
            column = start

    def tensor(values, dtype=torch.long) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device)

    hint_mask, demonstration_mask = tensor(scored.is_hint, torch.bool), tensor(scored.is_demonstration, torch.bool)
    return MicroBatch(
        tensor(input_ids), tensor(position_ids), torch.from_numpy(segment_ids), torch.from_numpy(branch_ids),
        tensor(scored.predictors), tensor(scored.targets), ~(hint_mask | demonstration_mask), hint_mask,
        demonstration_mask, tensor(scored.advantages, torch.float), tensor(scored.engine_logprobs, torch.float),
    )


def filler(device: torch.device) -> MicroBatch:
    """A micro-batch that adds nothing: one scored token under no mask. Its loss is zero but attached to the weights."""
    one = torch.zeros(1, dtype=torch.long, device=device)
    none = torch.zeros(1, dtype=torch.bool, device=device)
    prefix = torch.full((1, 1), PREFIX)
    return MicroBatch(one[None], one[None], prefix, prefix, one, one, none, none, none, one.float(), one.float())


ROWS_OF_ALL_KINDS = ((5, 3, 6, 1), (3, 2), (4,), (2, 4, 4))  # several groups, none to three responses, padding
ONE_ROW = ((5, 6),)


def trial(vocab_size: int, device: torch.device, lengths: Sequence[tuple[int, ...]] = ROWS_OF_ALL_KINDS) -> MicroBatch:
    """A small micro-batch of arbitrary tokens; `lengths` of each group are its prompt's and its responses'."""
    problem, ids = Problem(0, "", "", (), "", {}), (token % vocab_size for token in itertools.count(2, 7))
    groups = []
    for prompt_length, *response_lengths in lengths:
        prompt = Prompt(problem, list(itertools.islice(ids, prompt_length)), [], 0)
        responses = [list(itertools.islice(ids, length)) for length in response_lengths or (0,)]
        groups.append([Rollout(prompt, response, [0.0] * len(response), "length") for response in responses])
    most = len(groups) * max(map(sum, lengths))
    [micro_batch] = pack(groups, [[0.0] * len(group) for group in groups], most, device)
    return micro_batch


def fill_up(micro_batches: list[MicroBatch], count: int, device: torch.device) -> list[MicroBatch]:
    """`micro_batches` followed by fillers, `count` in all: under ZeRO-3 every rank runs as many forward passes."""
    return micro_batches + [filler(device)] * (count - len(micro_batches))


def pack_mini_batches(
    groups: Sequence[Sequence[Rollout]], advantages: Sequence[Sequence[Advantage]], num_updates: int, max_tokens: int,
    device: torch.device, share_prefix: bool = True,
) -> list[list[MicroBatch]]:
    """The step's groups in `num_updates` equal parts, each packed; every rank gets as many micro-batches in a part."""
    size = len(groups) // num_updates
    assert size * num_updates == len(groups), "plan.check_batch lets only whole mini-batches through"
    parts = [pack(groups[i : i + size], advantages[i : i + size], max_tokens, device, share_prefix)
             for i in range(0, len(groups), size)]
    return [fill_up(part, int(distributed.maximum(len(part))), device) for part in parts]


def response_logprobs(
    scorer, groups: Sequence[Sequence[Rollout]], max_tokens: int, device: torch.device, share_prefix: bool = True
) -> list[list[list[float]]]:
    """For each rollout the log-probabilities of its tokens by a Scorer, behind the prompt that it has here. All ranks
    call together."""
    parts = list(lay_out(groups, [[0.0] * len(group) for group in groups], max_tokens, share_prefix))
    micro_batches = fill_up([_tensors(rows, device) for rows in parts], int(distributed.maximum(len(parts))), device)
    found: dict[int, list[float]] = {}
    for micro_batch, rows in itertools.zip_longest(micro_batches, parts, fillvalue=[]):
        logprobs = iter(scorer.logprobs(micro_batch)[~micro_batch.hint_mask].tolist())
        for rollout in (rollout for row in rows for segment in row for rollout in segment.rollouts):
            found[id(rollout)] = list(itertools.islice(logprobs, len(rollout.response_ids)))
    return [[found[id(rollout)] for rollout in group] for group in groups]


def with_logprobs(micro_batch: MicroBatch, old, reference) -> MicroBatch:
    """The micro-batch with the log-probabilities of the policy that sampled it, by the Scorer `old` ("engine": what the
    engine said), and of `reference`; None where None."""
    if old == "engine":
        old_logprobs = micro_batch.engine_logprobs
    else:
        old_logprobs = None if old is None else old.logprobs(micro_batch)
    ref_logprobs = None if reference is None else reference.logprobs(micro_batch)
    return replace(micro_batch, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)


def against_teacher(micro_batch: MicroBatch) -> MicroBatch:
    """The micro-batch, packed with a teacher's log-probabilities in the place of advantages, with its advantages over
    the policy that sampled it."""
    return replace(micro_batch, advantages=teacher_advantages(micro_batch.advantages, micro_batch.old_logprobs))
