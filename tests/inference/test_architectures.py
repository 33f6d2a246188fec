"""Models of many kinds, small and random: the torch engine and training against transformers' own computation.

Each has windows, caps, norms and experts as its family has them; windows are shorter than prompts and than responses.
"""

from copy import deepcopy

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from inference import llama_decoder, selfcheck
from inference.decoder import Decoder, Step
from inference.llama_decoder import LlamaDecoder
from inference.torch_engine import TorchEngine
from tests.helpers.float64 import CLOSE
from tests.helpers.models import CPU, VOCABULARY, random_prompts, scorer
from utils.attention import Scores
from utils.layouts import Masked
from utils.packing import pack
from utils.response_batches import Batches
from utils.run.errors import RunStopped
from utils.types import Sampling

pytestmark = pytest.mark.float64
ENDS = [1, 3, 7]
LENGTHS = [(5, 0), (1, 0), (9, 3), (3, 2)]  # of prompts and hints
WINDOW = {"sliding_window": 5}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
          "v_head_dim": 6}
SETTINGS = {  # of the classes' configs, beside those that all have
    "Apertus": {}, "Arcee": {}, "BitNet": {}, "Cohere": {"logit_scale": 0.25},
    "Cohere2": WINDOW | {"logit_scale": 0.25},
    "DeepseekV3": LATENT | EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}, "Ernie4_5": {},
    "Exaone4": MIXED, "GPTNeoX": {}, "Gemma": {"head_dim": 8},
    "Gemma2": WINDOW | {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "Gemma3": MIXED | {"head_dim": 8}, "Glm4": {"head_dim": 8},
    "GptOss": MIXED | EXPERTS | {"head_dim": 8, "num_local_experts": 4},
    "Granite": {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
                "logits_scaling": 2.0},
    "Helium": {"head_dim": 4}, "Llama": {}, "Mistral": WINDOW, "Mixtral": EXPERTS | {"num_local_experts": 4}, "OPT": {
        "ffn_dim": 24, "word_embed_proj_dim": 16},
    "Nemotron": {}, "Olmo2": {}, "Olmo3": MIXED, "Olmoe": EXPERTS | {"num_experts": 4}, "Phi": {}, "Phi3": WINDOW,
    "Qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 1}, "Qwen3": {"head_dim": 6},
    "Qwen3Moe": EXPERTS | {"head_dim": 6, "num_experts": 4}, "SeedOss": {"head_dim": 8}, "SmolLM3": {},
    "Starcoder2": WINDOW,
}


def random_model(name: str, **changes: object) -> PreTrainedModel:
    """Two layers with every weight drawn, those of norms around 1."""
    kind = getattr(transformers, f"{name}ForCausalLM")
    config = kind.config_class(**{
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    } | SETTINGS[name] | changes)
    model = kind(config).to(torch.get_default_dtype()).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the fast one knows no float64
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            middle = 1.0 if "norm" in path and parameter.dim() == 1 else 0.0
            parameter.copy_(middle + 0.3 * torch.randn(parameter.shape, generator=random))
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that attends in transformers' plainest way, which knows soft caps and sinks."""
    copy = deepcopy(model)
    copy.set_attn_implementation("eager")
    return copy


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "Nemotron"])
def test_engine_and_training_compute_what_transformers_does(name):
    model = random_model(name)
    theirs = plain(model)
    engine = TorchEngine(model, ENDS, kv_cache_gb=1.0, max_length=40)
    engine.check()
    prompts = random_prompts(LENGTHS)

    for group in engine.generate(prompts, Sampling(1, 16, temperature=0.0)):
        ids = torch.tensor([group[0].prompt.prompt_ids + group[0].prompt.hint_ids])
        expected = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                   max_new_tokens=16, eos_token_id=ENDS, pad_token_id=0)
        assert group[0].response_ids == expected[0, ids.shape[1] :].tolist()

    groups = engine.generate(prompts, Sampling(4, 16, temperature=1.0))
    total = 0
    for rollout in (rollout for group in groups for rollout in group):
        ids = torch.tensor([rollout.prompt.prompt_ids + rollout.prompt.hint_ids + rollout.response_ids])
        length = len(rollout.response_ids)
        log_p = theirs(input_ids=ids).logits[0, -length - 1 : -1].log_softmax(dim=-1)
        logprobs = log_p.gather(-1, ids[0, -length:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs.detach(), **CLOSE)
        total = total + logprobs.sum()
    expected = torch.autograd.grad(total, list(theirs.parameters()), allow_unused=True)

    actor = scorer(model)
    assert actor.layout_of == Batches.of
    for layout in (Batches, Masked):
        actor.layout_of = layout.of
        ours = sum(actor(micro_batch)[0][micro_batch.response_mask].sum()
                   for micro_batch in pack(groups, [[0.0] * 4] * len(groups), 120, CPU))
        torch.testing.assert_close(ours, total, **CLOSE)
        gradients = torch.autograd.grad(ours, list(model.parameters()), allow_unused=True)
        assert [some is None for some in gradients] == [some is None for some in expected]
        torch.testing.assert_close([some for some in gradients if some is not None],
                                   [some for some in expected if some is not None], **CLOSE)


# ----- the engine's own check -----


def windowless(decoder_step):
    """The same step, but a layer sees all that is before it."""
    return lambda step, window: decoder_step(step, None)


@pytest.mark.parametrize("max_length", [20, 21, None])
def test_the_check_leaves_the_window_where_the_run_can(monkeypatch, max_length):
    monkeypatch.setattr(Step, "_masks", windowless(Step._masks))
    engine = TorchEngine(random_model("Mistral", sliding_window=20), ENDS, 1.0, max_length=max_length)
    if max_length == 21:
        with pytest.raises(RunStopped, match="the torch engine computes other log-probabilities than the model"):
            engine.check()
    else:
        engine.check()


def test_a_model_that_is_not_quite_llama_is_computed_by_its_own_forward_pass(monkeypatch, capsys):
    engine = TorchEngine(model := random_model("Llama"), ENDS, 1.0)
    right = engine.generate(random_prompts(LENGTHS), Sampling(2, 9, 1.0))
    monkeypatch.setattr(llama_decoder, "Scores", lambda scale: Scores(0.9 * scale))
    engine = TorchEngine(model, ENDS, 1.0)
    assert isinstance(engine.decoder, LlamaDecoder)
    engine.check()
    assert type(engine.decoder) is Decoder
    assert "warning: inference/llama_decoder.py changes log-probabilities by" in capsys.readouterr().err
    again = engine.generate(random_prompts(LENGTHS), Sampling(2, 9, 1.0))
    assert [[rollout.response_ids for rollout in group] for group in again] == [
        [rollout.response_ids for rollout in group] for group in right]


def test_the_check_comes_with_the_first_sync_and_once(monkeypatch):
    calls = []
    monkeypatch.setattr(selfcheck, "compare", lambda engine: calls.append(engine) or (0.0, 1.0))
    engine = TorchEngine(random_model("Qwen2"), ENDS, 1.0)
    engine.sync()
    engine.sync()
    assert calls == [engine]


def test_layers_that_do_not_attend_by_the_interface_are_told():
    """Nemotron says that they do."""
    engine = TorchEngine(random_model("Nemotron"), ENDS, 1.0)
    with pytest.raises(RunStopped, match="of type nemotron do not attend by transformers' interface"):
        engine.check()
