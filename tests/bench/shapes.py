"""Models in the shapes of real ones, with random weights made where they are used; and what their work costs.

    0.5B 1.5B 3B    Qwen2.5, the shapes of utils/setup/shapes.SHAPES
    gemma3-270M     its layers, with windows of 512 tokens
    olmo2-1B-short  4 of its 16 layers
    olmo3-small     windows of 128 tokens

    python -m tests.bench.shapes 0.5B FOLDER    # a folder with such a model, for the scripts
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    Olmo2Config,
    Olmo3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from training.tiny_base import make_tokenizer
from utils.profiling import work_of_groups
from utils.setup.shapes import SHAPES, Shape
from utils.types import Rollout

ShapeName = Literal["", "0.5B", "1.5B", "3B"]  # "": no such shape, a small model
QWEN = {name.removeprefix("Qwen/Qwen2.5-"): shape for name, shape in SHAPES.items() if name.startswith("Qwen/")}


OTHERS = {  # from the published configs; the vocabulary is that of the tokenizer, bytes
    "gemma3-270M": Gemma3TextConfig(
        hidden_size=640, intermediate_size=2_048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1,
        head_dim=256, sliding_window=512, query_pre_attn_scalar=256, max_position_embeddings=32_768,
    ),
    "olmo2-1B-short": Olmo2Config(
        hidden_size=2_048, intermediate_size=8_192, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=16,
        max_position_embeddings=4_096, tie_word_embeddings=False,
    ),
    "olmo3-small": Olmo3Config(
        hidden_size=512, intermediate_size=1_408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        sliding_window=128, max_position_embeddings=4_096, tie_word_embeddings=False,
    ),
}


def config_of(shape: Shape, **settings: object) -> Qwen2Config:
    """The Qwen2 config of that shape; `settings` replace some of it."""
    return Qwen2Config(**{
        "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads, "max_position_embeddings": 32_768, "tie_word_embeddings": shape.tied,
        "bos_token_id": None, "pad_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    } | settings)


def random_model(config: PretrainedConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Weights drawn on the device."""
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()
    return model


def save_model(name: str, folder: Path) -> Path:
    """A folder with random bfloat16 weights in the shape `name`, for what reads one; its tokenizer knows bytes only."""
    save_without_weights(OTHERS[name] if name in OTHERS else config_of(QWEN[name]), folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(AutoConfig.from_pretrained(folder), device, torch.bfloat16)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    return folder


def save_without_weights(config: PretrainedConfig, folder: Path) -> Path:
    """A folder whose config and tokenizer are all that is read before a model loads."""
    tokenizer = make_tokenizer([], r"\n", config.max_position_embeddings)
    own = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    own |= {} if isinstance(config, Qwen2Config) else {"vocab_size": len(tokenizer)}
    type(config)(**config.to_dict() | own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def update_flops(shape: Shape, groups: Sequence[Sequence[Rollout]]) -> float:
    """FLOPs of matrix products and attention that the update of these groups needs, forward and backward: a prompt
    once, each token with those that it sees. What is recomputed, padded or masked is not in it."""
    tokens, scored, pairs = work_of_groups(groups)
    width = shape.num_heads * shape.head_dim
    linear = shape.hidden_size * (2 * width + 2 * shape.num_kv_heads * shape.head_dim + 3 * shape.intermediate_size)
    forward = 2 * tokens * shape.num_layers * linear + 4 * pairs * shape.num_layers * width
    return 3 * (forward + 2 * scored * shape.vocab_size * shape.hidden_size)


def decode_bytes(shape: Shape, prompts: int, samples: int, prefix: int, suffix: float, itemsize: int) -> float:
    """Bytes of weights and of keys and values that the next token of all rows has to read, where a group holds its
    prompt's once; `suffix` response tokens each."""
    embeddings = shape.vocab_size * shape.hidden_size * (0 if shape.tied else 1)  # of the others a few rows are read
    cache = prompts * (prefix + samples * suffix) * shape.cache_elements
    return itemsize * (shape.parameters - embeddings + cache)


if __name__ == "__main__":
    save_model(sys.argv[1], Path(sys.argv[2]))
