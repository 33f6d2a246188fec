"""Numbers of a training line: sums of losses, and seconds. Every rank calls these together."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from utils import profiling
from utils.losses import masked_mean
from utils.run import distributed, stopping, watchdog


def count_tokens(masks: Sequence[Tensor]) -> float:
    """Tokens under the masks of a mini-batch's micro-batches on all ranks: the normaliser of a loss."""
    return distributed.sums({"tokens": float(sum(mask.sum() for mask in masks))})["tokens"]


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

    def means(self, num_updates: int) -> dict[str, float]:
        """Each loss summed over micro-batches and ranks, averaged over the step's updates; and the maxima."""
        names = sorted(self.parts)
        values = torch.stack([self.parts[name] for name in names]).tolist()
        totals = distributed.sums(dict(zip(names, values, strict=True)))
        maxima = {name: distributed.maximum(float(value)) for name, value in self.maxima.items()}
        return {name: totals[name] / num_updates for name in names} | maxima


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
            self.seconds[f"seconds/{self.part}"] = now - self.since
        self.part, self.since = None, now
        if profiling.current is not None:
            profiling.current.end()
