"""Numbers of a training line: sums of losses, and seconds. Every rank calls these together."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from utils import profiling
from utils.losses import masked_mean
from utils.run import distributed, stopping, watchdog
from utils.types import MicroBatch


def count_tokens(masks: Sequence[Tensor]) -> float:
    """Tokens under the masks of a mini-batch's micro-batches on all ranks: the normaliser of a loss."""
    return distributed.sums({"tokens": float(sum(mask.sum() for mask in masks))})["tokens"]


def scored_tokens(mini_batches: Sequence[Sequence[MicroBatch]]) -> dict[str, float]:
    """Tokens under each kind of mask, on this rank. A hint is counted once for the responses that share it."""
    micro_batches = [micro_batch for mini_batch in mini_batches for micro_batch in mini_batch]
    return {"tokens/response": float(sum(one.response_mask.sum() for one in micro_batches)),
            "tokens/hint": float(sum(one.hint_mask.sum() for one in micro_batches)),
            "tokens/demonstration": float(sum(one.demonstration_mask.sum() for one in micro_batches))}


class LossSums:
    """Adds up the parts of the losses of one step without waiting for the device."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, **parts: Tensor) -> None:
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()

    def add_ratios(self, logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, num_tokens: float, cap: float):
        """Importance weights of the response tokens against the engine, before they are truncated at `cap`: their mean,
        their maximum, and the share above the cap."""
        ratios = torch.exp(logprobs.detach() - engine_logprobs)
        self.add(engine_ratio=masked_mean(ratios, mask, num_tokens),
                 engine_ratio_capped=masked_mean((ratios > cap).float(), mask, num_tokens))
        largest = torch.where(mask, ratios, 0.0).max()
        self.maxima["engine_ratio_max"] = torch.maximum(self.maxima.get("engine_ratio_max", largest), largest)

    def not_finite(self) -> list[str]:
        """Names of the losses of which a part of this step is NaN or infinite on some rank. All ranks call together."""
        counts = distributed.sums({name: float(not part.isfinite()) for name, part in sorted(self.parts.items())})
        return [name for name, count in counts.items() if count]

    def means(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> dict[str, float]:
        """Each loss summed over micro-batches and ranks, averaged over the step's updates, one for each mini-batch; the
        maxima; and how many tokens of each kind the updates scored."""
        names, tokens = sorted(self.parts), scored_tokens(mini_batches)
        values = torch.stack([self.parts[name] for name in names]).tolist()
        totals = distributed.sums(dict(zip(names, values, strict=True)) | tokens)
        maxima = {name: distributed.maximum(float(value)) for name, value in self.maxima.items()}
        return {name: totals[name] / (1 if name in tokens else len(mini_batches)) for name in totals} | maxima


class StateGradients:
    """How hard the loss pulls at hint, response and demonstration tokens: the norm of its gradient with respect to the
    states that enter the LM head to predict them, one state for each scored token.

    Losses of different kinds of tokens have no such state in common, so the gradient that the backward pass computes
    anyway holds them side by side. States are activations: no ZeRO stage cuts them, and how the work is
    divided over micro-batches and ranks changes nothing.
    """

    def __init__(self, head: nn.Module) -> None:
        self.micro_batch: MicroBatch | None = None  # the one in its forward pass
        self.num_updates = 0
        # Of updates that happened, and of this one.
        self.squares = self.pending = dict.fromkeys(("hint", "response", "demonstration"), 0.0)
        head.register_forward_pre_hook(self._watch)

    def _watch(self, _head: nn.Module, given: tuple[Any, ...]) -> None:
        states = given[0]  # (N, D)
        if states.requires_grad:
            states.register_hook(partial(self._add, self.micro_batch))

    def _add(self, micro_batch: MicroBatch, grad: Tensor) -> None:
        dtype = torch.promote_types(grad.dtype, torch.float)
        squares = torch.linalg.vector_norm(grad, dim=1, dtype=dtype).square()  # (N,)
        masks = {"hint": micro_batch.hint_mask, "response": micro_batch.response_mask,
                 "demonstration": micro_batch.demonstration_mask}
        self.pending = {name: self.pending[name] + torch.where(mask, squares, 0.0).sum()
                        for name, mask in masks.items()}

    def end_update(self, happened: bool) -> None:
        """What was added since the last call counts if its update happened."""
        if happened:
            self.squares = {name: self.squares[name] + self.pending[name] for name in self.squares}
            self.num_updates += 1
        self.pending = dict.fromkeys(self.pending, 0.0)

    def norms(self) -> dict[str, float]:
        """Over all ranks, of the updates since the last call: root mean squares; NaN where none happened. All ranks
        call together."""
        squares = distributed.sums({name: float(square) for name, square in self.squares.items()})
        num_updates, self.num_updates = self.num_updates, 0
        self.squares = dict.fromkeys(self.squares, 0.0)
        if not num_updates:
            return {f"state_grad_norm/{name}": math.nan for name in squares}
        # Actor.backward has multiplied the loss by the number of ranks.
        return {f"state_grad_norm/{name}": math.sqrt(square / num_updates) / distributed.world_size()
                for name, square in squares.items()}


class Stopwatch:
    """Seconds of the parts of a step, under the names of the metrics; the watchdog and a profile (--profile_steps) are
    told which part is on."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seconds: dict[str, float] = {}
        self.part: str | None = None
        self.since = 0.0
        watchdog.phase("problems", step)
        if profiling.current is not None:
            profiling.current.step(step)

    def begin(self, part: str) -> None:
        """End the part before, and begin this one, unless the run was asked to stop."""
        stopping.meet()
        self._end_part()
        self.part = part
        watchdog.phase(part)
        if profiling.current is not None:
            profiling.current.begin(part)

    def end(self) -> None:
        """End the last part, and with it the step."""
        self._end_part()
        if profiling.current is not None:
            profiling.current.end_step(self.step)

    def _end_part(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.part is not None:
            name = f"seconds/{self.part}"
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since  # a part may begin again
        self.part, self.since = None, now
        if profiling.current is not None:
            profiling.current.end()
