"""Models that are more than a stack of layers and a matrix: heads with a bias, a scale or a soft cap, and generation
configs that say how to sample, or contradict themselves."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2ForCausalLM,
    GenerationConfig,
    GraniteForCausalLM,
    PhiForCausalLM,
)

from inference.deepspeed_engine import DeepSpeedEngine
from inference.torch_engine import TorchEngine
from tests.helpers.launching import start_in_turn, succeed, training_lines
from tests.helpers.models import EOS, byte_tokenizer, own_loss, random_prompts, scorer, tiny_model
from utils.actor import checkpoint_layers
from utils.data import load_problems
from utils.pretrained import load_generation_config
from utils.run.errors import BadInput
from utils.types import Sampling

PENALTIES = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_p": 0.9, "min_new_tokens": 9,
             "suppress_tokens": [2, 3, 4], "bad_words_ids": [[5]], "max_length": 4}


def write(model, base_model, folder):
    """The model with the base's tokenizer, as a folder."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
    return folder


def with_generation_config(base_model, folder, **settings):
    shutil.copytree(base_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def sft_flags(model, countdown_data, output_dir):
    return {"model": model, "data": countdown_data, "output_dir": output_dir, "total_steps": 1, "prompts_per_step": 4,
            "mini_batch_prompts": 4, "max_length": 96, "max_prompt_length": 64, "max_response_length": 8,
            "eval_problems": 2, "zero_stage": 0, "engine": "deepspeed"}


# ----- heads -----


HEADS = [
    (GraniteForCausalLM, {"logits_scaling": 8.0}), (PhiForCausalLM, {}),
    (Gemma2ForCausalLM, {"final_logit_softcapping": 5.0}),
]


@pytest.fixture(scope="module")
def sft_runs(tmp_path_factory, base_model, countdown_data):
    """{kind of model, or "contradictory": folder of its run of sft}, one after another in one process."""
    folder, num_tokens = tmp_path_factory.mktemp("sft"), len(AutoTokenizer.from_pretrained(base_model))
    models = {kind: write(tiny_model(kind, vocab_size=num_tokens, **settings), base_model, folder / kind.__name__)
              for kind, settings in HEADS}
    runs = {kind: folder / f"{kind.__name__}_run" for kind in models} | {"contradictory": folder / "run"}
    every = {"prompts_per_step": 200, "mini_batch_prompts": 200}
    flags = [sft_flags(model, countdown_data, runs[kind]) | every for kind, model in models.items()]
    model = with_generation_config(base_model, folder / "model", do_sample=False, temperature=0.6, top_p=0.9)
    flags.append(sft_flags(model, countdown_data, runs["contradictory"]))
    succeed(start_in_turn([("training/sft.py", one) for one in flags]))
    return runs


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("kind", "settings"), HEADS)
def test_sft_trains_on_the_models_own_loss_whatever_its_head_is(sft_runs, base_model, countdown_data, kind, settings):
    """Float32, and means over some 200 tokens: 1e-6 a token of rounding; a head taken for a matrix is off by whole
    nats."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = tiny_model(kind, vocab_size=len(tokenizer), **settings)
    [line] = training_lines(sft_runs[kind])
    expected = own_loss(model, tokenizer, load_problems(str(countdown_data), "train"))
    assert line["sft_loss"] == pytest.approx(expected, abs=1e-4)


# ----- what is sampled -----


def engines(model):
    """DeepSpeed's rollout and ours, with the same weights."""
    actor = scorer(model)
    actor.ds_engine.device = torch.device("cpu")
    tokenizer = byte_tokenizer()
    return DeepSpeedEngine(actor, tokenizer, [EOS], kv_cache_gb=1), TorchEngine(model, [EOS], kv_cache_gb=1)


@pytest.mark.float64
@pytest.mark.numerics
def test_no_engine_samples_by_the_models_own_generation_config():
    model = tiny_model()
    prompts = random_prompts([(4, 2), (7, 0), (3, 1), (5, 0)])
    plain = [group[0].response_ids for group in engines(model)[0].generate(prompts, Sampling(1, 12, temperature=0))]
    model.generation_config = own = GenerationConfig(**PENALTIES)
    for engine in engines(model):
        groups = engine.generate(prompts, Sampling(1, 12, temperature=0))
        assert [group[0].response_ids for group in groups] == plain
    assert model.generation_config is own
    theirs = model.generate(torch.tensor([prompts[0].prompt_ids + prompts[0].hint_ids]), max_new_tokens=12)
    assert theirs[0, 6:].tolist() != plain[0]  # else the config would show nothing


def test_generating_leaves_checkpointed_layers_as_they_were():
    model = tiny_model()
    checkpoint_layers(model)
    before = [module.training for module in model.modules()]
    assert sum(before) == 2
    engines(model)[0].generate(random_prompts([(4, 2)]), Sampling(1, 3, temperature=1))
    assert [module.training for module in model.modules()] == before


# ----- what is saved -----


def test_sampling_values_without_do_sample_get_it(tmp_path, base_model):
    folder = with_generation_config(base_model, tmp_path / "model", do_sample=False, temperature=0.6, eos_token_id=[7])
    config = load_generation_config(str(folder))
    assert (config.do_sample, config.temperature, config.eos_token_id) == (True, 0.6, [7])
    config.save_pretrained(tmp_path)
    assert not load_generation_config(str(base_model)).do_sample


@pytest.mark.parametrize(("own", "joined"), [(None, [5, 7]), (7, [5, 7]), ([9, 7], [5, 7, 9])])
def test_the_ends_that_are_given_join_the_models_own(tmp_path, base_model, own, joined):
    folder = str(with_generation_config(base_model, tmp_path / "model", eos_token_id=own))
    assert load_generation_config(folder).eos_token_id == own
    assert load_generation_config(folder, {5, 7}).eos_token_id == joined


def test_a_damaged_generation_config_is_not_a_missing_one(tmp_path, base_model):
    folder = with_generation_config(base_model, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    assert load_generation_config(str(folder)).eos_token_id == load_generation_config(str(base_model)).eos_token_id
    (folder / "generation_config.json").write_text('{"eos_tok')
    with pytest.raises(BadInput, match="generation_config.json cannot be read"):
        load_generation_config(str(folder))


@pytest.mark.slow
def test_a_model_with_a_contradictory_generation_config_is_saved(sft_runs):
    saved = sft_runs["contradictory"] / "checkpoints" / "step_1" / "hf"
    assert GenerationConfig.from_pretrained(saved).top_p == 0.9
    AutoModelForCausalLM.from_pretrained(saved)
