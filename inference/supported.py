"""Which models the torch engine can run."""

from transformers import PretrainedConfig

from utils.run.errors import BadInput

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")  # model types
ROTARY = ("default", "linear", "llama3", "yarn")  # the others change with the longest row of the batch


def check_supported(config: PretrainedConfig) -> None:
    """Raises BadInput for a model whose layers this engine does not know, or whose attention has a window."""
    settings = config.to_dict()  # the types have different ones
    layer_types = set(settings.get("layer_types") or []) - {"full_attention"}
    reason = None
    if config.model_type not in SUPPORTED:
        reason = f"a model of type {config.model_type}, only {', '.join(SUPPORTED)}"
    elif settings.get("use_sliding_window") or (config.model_type == "mistral" and config.sliding_window is not None):
        reason = "a model with sliding-window attention"
    elif layer_types:
        reason = f"a model with layers of type {', '.join(sorted(layer_types))}"
    elif config.rope_parameters["rope_type"] not in ROTARY:
        reason = f"a model with rotary embeddings of type {config.rope_parameters['rope_type']}"
    if reason is not None:
        raise BadInput(f"flag --engine torch: cannot run {reason}; take vLLM, --engine vllm")
