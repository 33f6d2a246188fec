"""What is loaded of a pretrained model, a folder or name of the Hugging Face hub: weights, and how it generates."""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from utils.adapters import Lora, add_adapters
from utils.cpu_kernels import prepare_for_cpu
from utils.run import devices, watchdog
from utils.run.errors import BadMachine, require


def load_generation_config(model: str, end_ids: Collection[int] = ()) -> GenerationConfig:
    """Of a folder or Hugging Face name: its own, or what its config implies; `end_ids` join those that end a response.
    Where it has values of sampling without do_sample, as older models do, it gets that too: transformers saves no
    config that contradicts itself.

    Raises:
        BadInput: the file is there and cannot be read.
    """
    config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))
    file = Path(model) / GENERATION_CONFIG_NAME
    try:
        config = GenerationConfig.from_pretrained(model)
    except (OSError, ValueError) as error:  # OSError is transformers' word for missing and damaged alike
        require(not file.exists(), "--model", model, f"{file} cannot be read ({' '.join(str(error).split())})")
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    if end_ids:
        config.eos_token_id = sorted({*end_ids, *as_ids(config.eos_token_id)})
    return config


def as_ids(eos: int | list[int] | None) -> list[int]:
    """The ids of a generation config's end of sequence, however many."""
    return [eos] if isinstance(eos, int) else eos or []


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 (with a float32 master copy in the optimiser) on a GPU that has it, else float32.

    Raises:
        BadMachine: bfloat16 is asked for, and a GPU here has it not.
    """
    older = devices.before_ampere() if device.type == "cuda" else ""
    if dtype == "auto":
        dtype = "float32" if older or device.type != "cuda" else "bfloat16"
    if dtype == "bfloat16" and older:
        raise BadMachine("flag --dtype bfloat16: needs a GPU of compute capability 8.0 or newer, and here is one of "
                         f"{older}; give --dtype float32")
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]


def load_model(
    model: str, dtype: torch.dtype, end_ids: Collection[int] = (), lora: Lora | None = None
) -> PreTrainedModel:
    """The model, with adapters where `lora` says so; `end_ids` end its responses, too, here and wherever it is loaded
    from a checkpoint."""
    watchdog.phase("loading the model")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    loaded.generation_config = load_generation_config(model, end_ids)
    if lora is not None:
        add_adapters(loaded, lora)
    return loaded if torch.cuda.is_available() else prepare_for_cpu(loaded)  # with CUDA it goes to a GPU
