"""LoRA (arXiv 2106.09685) by peft: next to a linear layer's frozen weight W learns alpha / rank * B A, which begins at
zero, and nothing else does. The model stays the class that it is; peft has its linear layers in layers of its own.

With its adapters off it is the base, which kl_loss is measured against: there is no second copy. What leaves the
actor, to engines and into a checkpoint's `hf/`, are merged weights under the names of the base.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from utils import seeding
from utils.run.errors import BadInput, require

NAME = "default"  # peft's, of the one adapter that there is
ALL = "all-linear"  # all linear layers but the head


class LoraFlags(Protocol):
    """The flags of adapters, which every training script has."""

    lora_rank: int
    lora_alpha: float
    lora_targets: str
    seed: int


@dataclass(frozen=True)
class Lora:
    """`targets`: all-linear, or ends of layers' names with commas between them."""

    rank: int
    alpha: float
    targets: str
    seed: int

    @classmethod
    def of(cls, flags: LoraFlags) -> "Lora | None":
        """None where all weights learn."""
        return cls(flags.lora_rank, flags.lora_alpha, flags.lora_targets, flags.seed) if flags.lora_rank else None


# ----- into a model -----


def add_adapters(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """The same model with adapters, drawn from the seed, in the type of the weights; all else is frozen.

    Raises:
        BadInput: the targets name no linear layer, or the head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    ends = model.get_input_embeddings(), model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in ends}
    targets = linear if lora.targets == ALL else {name.strip() for name in lora.targets.split(",")}
    config = LoraConfig(  # what changes numbers is named, peft's defaults too: A drawn, B zero, times alpha / rank
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none",
        init_lora_weights=True, use_rslora=False, use_dora=False, task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeding.generator("lora", lora.seed).integers(2**62)))
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"flag --lora_targets {lora.targets}: peft says: {reason}") from error
    others = {name for name, module in model.named_modules() if hasattr(module, "lora_A")} - linear
    require(not others, "--lora_targets", lora.targets, "must name linear layers other than the head, such as "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in linear}))}; not {', '.join(sorted(others)[:3])}")
    return model


def num_learning(model: str, lora: Lora) -> int:
    """Parameters that learn beside those of `model`, a folder or Hugging Face name, of which only the config is read.
    Raises BadInput as `add_adapters` does."""
    with torch.device("meta"):
        model = add_adapters(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)), lora)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def has_adapters(model: nn.Module) -> bool:
    return any(hasattr(module, "lora_A") for module in model.modules())


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """In here the model computes what its base does, bit for bit: adapters count 0 times. They run all the same, for
    under ZeRO-3 DeepSpeed expects the layers in the order that it has seen."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(model, 0.0):
        yield


# ----- out of it -----


@dataclass(frozen=True)
class Whole:
    """A weight of the base model: `compute` makes it of parameters, which must be gathered then."""

    parameters: list[nn.Parameter]
    compute: Callable[[], Tensor]


def whole_weights_of(model: nn.Module) -> dict[str, Whole]:
    """{name: weight} as the base model has them, adapters merged in."""
    layers = {f"{name}.base_layer": module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        whole = Whole([parameter], parameter.detach)
        if owner in layers:
            name = f"{owner.removesuffix('.base_layer')}.{last}"
            if last == "weight":
                layer = layers[owner]
                whole = Whole([parameter, layer.lora_A[NAME].weight, layer.lora_B[NAME].weight], partial(merged, layer))
        elif layers and parameter.requires_grad:
            continue  # an adapter, which is in the weight beside it
        found[name] = whole
    return found


def adapter_weights_of(model: nn.Module) -> dict[str, Whole]:
    """{name of the parameter: its value}."""
    return {name: Whole([parameter], parameter.detach) for name, parameter in model.named_parameters()
            if parameter.requires_grad}


@torch.no_grad()
def merged(layer: nn.Module) -> Tensor:
    """W + alpha / rank * B A of a layer of peft's, summed in float32 at least and rounded once."""
    weight = layer.base_layer.weight
    exact = torch.promote_types(weight.dtype, torch.float)
    a, b = layer.lora_A[NAME].weight.to(exact), layer.lora_B[NAME].weight.to(exact)
    return (weight.to(exact) + layer.scaling[NAME] * (b @ a)).to(weight.dtype)


def save_adapters(folder: Path, model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """`weights` {name of the parameter: value} as peft reads them: PeftModel.from_pretrained(base, folder)."""
    folder.mkdir(parents=True)
    model.peft_config[NAME].save_pretrained(folder)
    named = {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight for name, weight in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def base_digest(model: nn.Module) -> str:
    """Of all frozen weights: sums of their bits, which are the same in whatever order they are added."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {name: int(parameter.detach().view(words[parameter.itemsize]).sum(dtype=torch.int64))
            for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()
