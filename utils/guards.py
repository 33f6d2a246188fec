"""Numbers that stop a run: updates that are not finite, and an engine that samples from another policy."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from utils.metrics import LossSums
from utils.packing import pack
from utils.run import distributed
from utils.run.errors import RunStopped
from utils.scorer import Scorer
from utils.types import MicroBatch, Rollout

GUARD_TOKENS = 256  # of each process, scored at each step to compare the engine with the actor
GUARD_PROMPTS = 4  # of each process, sampled for it where training samples nothing


class UpdateGuard:
    """Counts what `Actor.step` skipped, over the steps of a run. A resumed run begins to count anew."""

    def __init__(self, output_dir: str | Path, max_skipped: int):
        self.output_dir = Path(output_dir)
        self.max_skipped = max_skipped
        self.in_a_row = 0
        self.norms: list[float] = []  # of the step's updates, infinite where skipped

    def check(self, step: int, norm: float, losses: LossSums, mini_batch: list[MicroBatch]) -> None:
        """`norm` is what `Actor.step` returned for `mini_batch`, `losses` those of the step so far. All ranks call
        together.

        Raises:
            RunStopped: `max_skipped` updates in a row were skipped. Each rank has saved its part of the last one's
                mini-batch; weights are not saved.
        """
        self.norms.append(norm)
        if math.isfinite(norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        names = losses.not_finite()
        what = f"the gradient and {', '.join(names)}" if names else "the gradient, and no loss"
        message = f"step {step}, update {len(self.norms)}: not finite: {what}"
        if self.in_a_row < self.max_skipped:
            if distributed.is_main():
                tqdm.write(f"{message}; the update is skipped, {self.in_a_row} in a row")
            return
        name = self.output_dir / f"bad_batch_step_{step}_rank_{distributed.rank()}.safetensors"
        problem = save_batch(name, mini_batch)
        distributed.barrier()  # the launcher kills the others as soon as one has ended
        where = f"the mini-batch is in {name.with_name(f'bad_batch_step_{step}_rank_*.safetensors')}"
        raise RunStopped(
            f"{message}; {self.in_a_row} updates in a row were skipped (--max_skipped_updates {self.max_skipped}); "
            f"{problem or where}; the weights are those of before, and the last checkpoint stays as it is"
        )

    def metrics(self) -> dict[str, float]:
        """Of the updates since the last call: mean norm of those that happened (NaN, in files null, where none did),
        and the number of those that did not."""
        happened = [norm for norm in self.norms if math.isfinite(norm)]
        skipped, self.norms = len(self.norms) - len(happened), []
        return {"grad_norm": sum(happened) / len(happened) if happened else math.nan, "skipped_updates": skipped}


def save_batch(path: Path, mini_batch: list[MicroBatch]) -> str | None:
    """Write the tensors of the micro-batches as `micro_batch_N.name`; what went wrong, in words, or None."""
    tensors = {f"micro_batch_{number}.{name}": tensor.detach().cpu().clone().contiguous()
               for number, micro_batch in enumerate(mini_batch)
               for name, tensor in vars(micro_batch).items() if tensor is not None}
    try:
        save_file(tensors, path)
    except Exception as error:  # a full disk must not hide why the run stops
        return f"the mini-batch could not be saved ({error})"
    return None


def load_batch(path: Path, device: torch.device) -> list[MicroBatch]:
    """The micro-batches that `save_batch` wrote, to reproduce an update with."""
    with safe_open(path, "pt", device=str(device)) as file:
        names = set(file.keys())
        count = sum(name.endswith(".input_ids") for name in names)
        return [MicroBatch(**{field.name: file.get_tensor(name) for field in fields(MicroBatch)
                              if (name := f"micro_batch_{number}.{field.name}") in names}) for number in range(count)]


def engine_mismatch(
    groups: Sequence[Sequence[Rollout]], actor: Scorer, device: torch.device, limit: float, max_tokens: int
) -> dict[str, float]:
    """How far the engine's log-probabilities of a few sampled tokens are from the actor's, over all ranks: the mean and
    the maximum of |engine - actor| in nats. Every rank calls this together, before the weights change. The tokens are
    scored in one forward pass over at most `max_tokens`, prompts and padding included.

    Raises:
        RunStopped: the mean is over `limit`, or not a number.
    """
    few: list[Rollout] = []
    longest = 0
    for first, *_ in groups:
        assert not first.demonstration, "no engine has sampled it"
        longest = max(longest, sum(map(len, (first.prompt.prompt_ids, first.prompt.hint_ids, first.response_ids))))
        if few and (longest * (len(few) + 1) > max_tokens
                    or sum(len(rollout.response_ids) for rollout in few) >= GUARD_TOKENS):
            break
        few.append(first)
    [micro_batch] = pack([[one] for one in few], [[0.0]] * len(few), longest * len(few), device)
    mask = micro_batch.response_mask
    differences = (actor.logprobs(micro_batch) - micro_batch.engine_logprobs)[mask].abs().double()
    totals = distributed.sums({"sum": differences.sum().item(), "tokens": float(mask.sum())})
    mean, largest = totals["sum"] / max(totals["tokens"], 1), distributed.maximum(differences.max().item())
    if not mean <= limit:
        raise RunStopped(
            f"the engine's log-probabilities differ from the actor's by {mean:.3g} on average (largest {largest:.3g}), "
            f"over --max_logprob_mismatch {limit:g}: it is not sampling from the policy that is trained. Look at: a "
            "sync that failed or was left out (stale weights); other weights, dtype, rope scaling or tokenizer in "
            "--model than the engine read; a temperature that only one side applies; the engine's attention kernels. "
            "With --engine torch there is nothing between the two; if it runs there, the other engine is at fault. In "
            "bfloat16 0.01 to 0.05 is rounding, for which the limit may be raised"
        )
    return {"logprob_mismatch": mean, "logprob_mismatch_max": largest}
