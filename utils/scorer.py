"""A policy that scores packed micro-batches, compared once with the model's own forward pass."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from utils import profiling
from utils.attention import Layout, tolerance, window_of
from utils.layouts import Masked, kinds_of_layouts
from utils.packing import ONE_ROW, ROWS_OF_ALL_KINDS, trial
from utils.policy import Policy, own_logprobs
from utils.run import distributed, stopping, watchdog
from utils.run.errors import RunStopped
from utils.types import MicroBatch

LONGEST_WINDOW = {"cpu": 1_024, "cuda": 8_192}  # tokens; what leaves a longer one is not tried


class Scorer:
    """A policy that scores micro-batches; `ds_engine` is the DeepSpeed engine (or plain module) that runs it.

    What it computes is compared once with the model's own forward pass, and with log-probabilities whose attention is
    exact, of a few tokens; where the model has a window of at most LONGEST_WINDOW tokens, of some that leave it.
    Attention goes by the first layout of `kinds_of_layouts` that is about as near to these as attention under a
    mask, else under a mask.

    Raises:
        RunStopped: log-probabilities are not those of the model's own logits.
    """

    def __init__(self, policy: Policy, ds_engine: nn.Module, temperature: float):
        self.policy = policy
        self.ds_engine = ds_engine
        self.temperature = temperature
        self.layout_of = Masked.of
        window = window_of(policy.model.config) or 0
        leaving = ((window - 3, 6, 4),) if 4 < window <= LONGEST_WINDOW[policy.head.weight.device.type] else ()
        micro_batch = self._trial(ROWS_OF_ALL_KINDS + leaving)
        exact = self.logprobs(micro_batch, partial(Masked.of, is_exact=True))
        noise = self._difference(self.logprobs(micro_batch), exact)
        limit = tolerance(policy.model.dtype, noise)
        difference = self._difference_from_model(tuple(lengths[:2] for lengths in leaving) or ONE_ROW)
        if not difference <= limit:  # so NaN is too much
            raise RunStopped(
                f"training computes other log-probabilities than the model {policy.model.name_or_path} itself: they "
                f"differ by {difference:.2g} nats on average over a few tokens. Training knows an LM head with a bias, "
                "a scale (logit_scale, logits_scaling) and a soft cap (final_logit_softcapping), and decoders that "
                "take a mask and positions; this model does something else. Take another one"
            )
        for kind in kinds_of_layouts(policy.head.weight.device, policy.model.dtype, policy.model.config):
            difference = self._difference(self.logprobs(micro_batch, kind.of), exact)
            if difference <= limit:
                self.layout_of = kind.of
                break
            if distributed.is_main():
                print(f"warning: attention by {kind.__name__} (utils/layouts.py) changes the log-probabilities of this "
                      f"model by {difference:.2g}, where attention under a mask changes them by {noise:.2g}; something "
                      "slower is taken", file=sys.stderr)

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model

    @property
    def device(self) -> torch.device:
        return self.ds_engine.device

    def _difference_from_model(self, lengths: Sequence[tuple[int, ...]]) -> float:
        """From the model's own log-probabilities, of one row that is not packed."""
        micro_batch = self._trial(lengths)
        expected = own_logprobs(self.model, micro_batch.input_ids, micro_batch.predictors, micro_batch.targets,
                                self.temperature)
        return self._difference(self.logprobs(micro_batch), expected)

    def _difference(self, logprobs: Tensor, expected: Tensor) -> float:
        """Mean of the absolute differences, the largest of all ranks."""
        return distributed.maximum((logprobs - expected).abs().mean().item())

    def _trial(self, lengths: Sequence[tuple[int, ...]]) -> MicroBatch:
        return trial(self.policy.model.config.vocab_size, self.policy.head.weight.device, lengths)

    def __call__(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (N,), (N,) of the scored tokens. All ranks call together."""
        return self._forward(micro_batch, self.layout_of, with_entropies=True)

    @torch.no_grad()
    def logprobs(self, micro_batch: MicroBatch, layout_of: Callable[..., Layout] | None = None) -> Tensor:
        """(N,) log-probabilities without a graph; by another layout than the chosen one if that is given."""
        return self._forward(micro_batch, layout_of or self.layout_of, with_entropies=False)[0]

    def _forward(
        self, micro_batch: MicroBatch, layout_of: Callable[..., Layout], with_entropies: bool
    ) -> tuple[Tensor, Tensor | None]:
        watchdog.progress()
        stopping.safe_point()
        profiling.scored(micro_batch, is_learned=with_entropies)
        return self.ds_engine(micro_batch.input_ids, micro_batch.position_ids, layout_of(micro_batch, self.model.dtype),
                              micro_batch.predictors, micro_batch.targets, self.temperature, with_entropies)
