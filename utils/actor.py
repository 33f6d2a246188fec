"""Actor and reference on DeepSpeed ZeRO: sharded weights, gradients and optimiser states, whole weights on request."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from utils.adapters import Whole, adapter_weights_of, base_digest, has_adapters, whole_weights_of, without_adapters
from utils.deepspeed_config import GATHER_BUCKET, deepspeed_config
from utils.metrics import StateGradients
from utils.policy import Policy
from utils.pretrained import load_model
from utils.reshape import put, read_pieces
from utils.run import devices, distributed, stopping, watchdog
from utils.run.errors import RunStopped
from utils.scorer import Scorer
from utils.state_copies import Copies, StateFile
from utils.types import MicroBatch

BASE = "base.sha256"  # in a checkpoint's state: the digest of what adapters stand beside


def checkpoint_layers(model: PreTrainedModel) -> None:
    """From here on the activations of layers are recomputed in the backward pass. Transformers does so for layers in
    training mode; all within stays as it is, for in that mode a model may drop out what the engine does not."""
    if not torch.cuda.is_available():
        devices.give_back_freed_tensors()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """In here torch.load unpickles tensors and plain values, and of classes only those that DeepSpeed's states hold:
    by itself DeepSpeed would let a file run whatever it says."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals([ZeroStageEnum, LossScaler, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


class Actor(Scorer):
    """The model that learns.

    Losses given to `backward` are parts of sums over the whole mini-batch and all ranks (losses.masked_mean), so the
    gradient is the sum of all parts: DeepSpeed's average over ranks is undone.

    An update whose loss or gradient norm is not finite does not happen. A loss that is not finite makes the gradients
    NaN, on whichever rank; the sum over ranks hands NaN and infinity on to all, so the norm, which is computed anyway,
    tells every rank the same. DeepSpeed looks at it itself, except at stage 0 in float32.
    """

    def __init__(self, model: PreTrainedModel, *, betas: tuple[float, float], weight_decay: float,
                 max_grad_norm: float, temperature: float, zero_stage: int, offload: bool,
                 gradient_checkpointing: bool):
        watchdog.phase("setting up the actor")
        if gradient_checkpointing:
            checkpoint_layers(model)
        watchdog.progress()
        policy = Policy(model)
        self.zero_stage, self.offload = zero_stage, offload
        self.has_adapters = has_adapters(model)
        self.base_digest = base_digest(model) if self.has_adapters else ""
        learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        adam = deepspeed.ops.adam.DeepSpeedCPUAdam if offload and zero_stage > 0 else torch.optim.AdamW
        optimizer = adam(learning, lr=0.0, betas=betas, weight_decay=weight_decay)  # `step` gives the rate
        engine, self.optimizer, _, _ = deepspeed.initialize(
            model=policy, optimizer=optimizer,
            config=deepspeed_config(zero_stage, model.dtype, max_grad_norm, offload),
        )
        if zero_stage == 0:
            # In bfloat16 DeepSpeed allocates Adam's state by an empty step: harmless at rate 0, if then forgotten.
            for state in optimizer.state.values():
                state["step"].zero_()
        super().__init__(policy, engine, temperature)
        self.gradients = StateGradients(policy.head)

    def __call__(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        self.gradients.micro_batch = micro_batch
        return super().__call__(micro_batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradient of `loss`; `is_last` marks the last micro-batch before `step`."""
        watchdog.progress()
        one_or_nan = 1 + 0 * loss.detach()  # a bad loss may have good gradients: a clipped token's are zero
        self.ds_engine.set_gradient_accumulation_boundary(is_last)
        self.ds_engine.backward(loss * (one_or_nan * distributed.world_size()))

    def step(self, lr: float) -> float:
        """One optimiser update with the gradients added since the last one; returns their norm before clipping.

        Infinity says that the update was skipped, on all ranks: the gradients are gone; weights, master copies,
        optimiser states and their step counters are bit for bit what they were.
        """
        norm = self._step(lr)
        self.gradients.end_update(happened=math.isfinite(norm))
        return norm

    def _step(self, lr: float) -> float:
        watchdog.progress()
        stopping.must_finish()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        grads = [p.grad for p in self.policy.parameters() if p.grad is not None] if self.zero_stage == 0 else []
        unclipped = torch.nn.utils.get_total_norm(grads).item() if grads else None
        if unclipped is not None and not math.isfinite(unclipped):
            self.ds_engine.zero_grad()
            return math.inf
        self.ds_engine.step()
        if not self.ds_engine.was_step_applied():
            return math.inf
        norm = self.ds_engine.get_global_grad_norm()  # None at stage 0 in float32
        return unclipped if norm is None else float(norm)

    def whole_weights(self) -> Iterator[dict[str, Tensor]]:
        """The model's weights, adapters merged in, as buckets {name: whole weight}. Under ZeRO-3 each bucket is
        gathered by all ranks together and is gone when the next one comes, as are merged weights at any stage; the
        others are the weights themselves."""
        return self._buckets(whole_weights_of(self.model))

    def adapter_weights(self) -> Iterator[dict[str, Tensor]]:
        """What learns beside a frozen base, in the same way; {name of the parameter: whole value}."""
        return self._buckets(adapter_weights_of(self.model))

    def _buckets(self, weights: dict[str, Whole]) -> Iterator[dict[str, Tensor]]:
        bucket: dict[str, Whole] = {}
        size = 0
        for last, (name, whole) in enumerate(weights.items(), start=1 - len(weights)):
            watchdog.progress()
            bucket[name] = whole
            size += sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in whole.parameters)
            if last == 0 or size >= GATHER_BUCKET:
                parameters = [parameter for some in bucket.values() for parameter in some.parameters]
                with deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage == 3):
                    yield {name: some.compute() for name, some in bucket.items()}
                bucket, size = {}, 0

    def save(self, folder: Path) -> None:
        """All that an exact resume needs of this rank (weights that learn, master copies, optimiser states). A
        collective."""
        self.ds_engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False,
                                       exclude_frozen_parameters=self.has_adapters)
        if self.has_adapters and distributed.is_keeper():
            (folder / BASE).write_text(self.base_digest)

    def copy_state(self, folder: Path) -> list[StateFile]:
        """The same but for the large files: they come back as copies in CPU memory, for `write_state`. A collective."""
        engine = self.ds_engine.checkpoint_engine
        self.ds_engine.checkpoint_engine = copies = Copies()
        try:
            self.save(folder)
        finally:
            self.ds_engine.checkpoint_engine = engine
        return copies.files

    def write_state(self, files: list[StateFile]) -> None:
        """Of one rank, which may go on meanwhile."""
        for state, path in files:
            self.ds_engine.checkpoint_engine.save(state, path)

    def load(self, folder: Path, reshape: bool = False) -> None:
        """Restore what `save` wrote; with the same number of processes, ZeRO stage and place of the optimiser, or with
        `reshape` any.

        Raises:
            RunStopped: adapters were learnt beside other frozen weights than those of the present model.
        """
        if self.has_adapters and (folder / BASE).read_text() != self.base_digest:
            raise RunStopped(f"--resume: the weights of {self.model.name_or_path} are others than those that the "
                             f"adapters in {folder} were learnt beside; the frozen weights are not in a checkpoint")
        with weights_only():
            if reshape:
                learning = {name: parameter for name, parameter in self.policy.named_parameters()
                            if parameter.requires_grad}
                pieces = read_pieces(folder / "deepspeed", list(learning))
                return put(pieces, learning, self.optimizer, self.zero_stage, self.offload)
            path, _ = self.ds_engine.load_checkpoint(str(folder), tag="deepspeed",
                                                     load_module_strict=not self.has_adapters)
        assert path is not None, f"DeepSpeed found no checkpoint in {folder}"


class Base(Scorer):
    """The model that an actor's adapters stand beside. It is the actor's own, with these off."""

    def __init__(self, actor: Actor):
        self.policy, self.ds_engine, self.temperature = actor.policy, actor.ds_engine, actor.temperature
        self.layout_of = actor.layout_of

    def _forward(self, *args, **settings) -> tuple[Tensor, Tensor | None]:
        with without_adapters(self.policy):
            return super()._forward(*args, **settings)


def load_reference(model: str, actor: Actor) -> Scorer:
    """The frozen model that kl_loss is measured against, `model` as it was loaded for the actor: sharded under ZeRO-3,
    a plain module below. No second one where the actor has adapters."""
    if actor.has_adapters:
        return Base(actor)
    return make_reference(load_model(model, actor.model.dtype), actor)


def make_reference(model: PreTrainedModel, actor: Actor) -> Scorer:
    watchdog.phase("setting up the reference")
    policy = Policy(model.eval().requires_grad_(False))
    if actor.zero_stage < 3:
        return Scorer(policy, policy.to(actor.device), actor.temperature)
    config = deepspeed_config(actor.zero_stage, model.dtype, 0.0, actor.offload)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=policy, config=config)
    return Scorer(policy, engine, actor.temperature)
