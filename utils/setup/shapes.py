"""The shapes of models: their number of parameters, and all that memory and time are computed from."""

from dataclasses import dataclass

from transformers import PretrainedConfig

TYPES = ("llama", "mistral", "qwen2", "qwen3")  # of models whose layers have the parts that are counted here


@dataclass(frozen=True)
class Shape:
    """A model of one of TYPES. `layer_biases` counts the bias elements of a layer; `tied`: the head is the embedding;
    `head_norms`: queries and keys are normalised (Qwen3)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_biases: int = 0
    tied: bool = True
    head_norms: bool = False

    @property
    def parameters(self) -> int:
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.head_norms
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms + self.layer_biases
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    @property
    def cache_elements(self) -> int:
        """Number of elements that one token takes in the KV cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


SHAPES = {  # for machines that cannot reach the hub
    "Qwen/Qwen2.5-0.5B": Shape(151_936, 896, 4_864, 24, 14, 2, 64, layer_biases=1_152),
    "Qwen/Qwen2.5-1.5B": Shape(151_936, 1_536, 8_960, 28, 12, 2, 128, layer_biases=2_048),
    "Qwen/Qwen2.5-3B": Shape(151_936, 2_048, 11_008, 36, 16, 2, 128, layer_biases=2_560),
    "meta-llama/Llama-3.2-1B": Shape(128_256, 2_048, 8_192, 16, 32, 8, 64),
    "meta-llama/Llama-3.2-3B": Shape(128_256, 3_072, 8_192, 28, 24, 8, 128),
}


def shape_of(config: PretrainedConfig) -> Shape | None:
    """The shape of a model, None for a type that is not among TYPES."""
    if config.model_type not in TYPES:
        return None
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    settings = config.to_dict()  # the types have different ones
    head_dim = settings.get("head_dim") or config.hidden_size // heads
    biases = 0
    if config.model_type == "qwen2" or settings.get("attention_bias"):
        biases += (heads + 2 * kv_heads) * head_dim
    if settings.get("attention_bias"):  # Qwen2 has no such setting, and no bias here
        biases += config.hidden_size
    if settings.get("mlp_bias"):
        biases += 2 * config.intermediate_size + config.hidden_size
    return Shape(config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads,
                 kv_heads, head_dim, biases, config.tie_word_embeddings, config.model_type == "qwen3")
