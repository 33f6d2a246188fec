"""Training with a chat template: what the model is given, how its turns end, what is saved, resumed and evaluated."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.helpers.chat import CHATML, HYBRID
from tests.helpers.launching import evaluation_lines, start, succeed, training_lines
from training import sft
from utils.data import load_problems
from utils.run.errors import BadInput

pytestmark = pytest.mark.slow

MARKS = ["<|im_start|>", "<|im_end|>"]
ENOUGH = {"total_steps": 30, "eval_every": 30, "save_every": 15, "prompts_per_step": 32, "mini_batch_prompts": 32,
          "lr": 5e-3}  # of SFT, to end turns


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory, base_model):
    """The base model with the marks of turns as tokens, and no template. Where it ended a text it now ends a turn."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(base_model), AutoModelForCausalLM.from_pretrained(base_model)
    tokenizer.add_tokens(MARKS, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    embeddings, eos = model.get_input_embeddings().weight.data, tokenizer.eos_token_id
    embeddings[tokenizer.convert_tokens_to_ids("<|im_end|>")] = embeddings[eos]
    embeddings[eos] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(chat_model, countdown_data, tmp_path_factory):
    template = tmp_path_factory.mktemp("template") / "mine.jinja"
    template.write_text(HYBRID)
    return {"model": chat_model, "data": countdown_data, "seed": 1, "total_steps": 2, "eval_every": 2,
            "eval_problems": 12, "save_every": 1, "prompts_per_step": 8, "mini_batch_prompts": 8,
            "max_prompt_length": 128, "max_response_length": 48, "chat_template": template,
            "system_prompt": "Be brief.", "think": False, "zero_stage": 0, "lr": 1e-3}


def turns(problem):
    asked = problem.prompt.removesuffix("\n<think> ")
    return (f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{asked}"
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<think> ")


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory, flags):
    output_dir = tmp_path_factory.mktemp("sft") / "run"
    own = {"max_length": 160, "output_dir": output_dir, "dump_batch": True} | ENOUGH
    return output_dir, succeed(start("training/sft.py", flags | own)).stdout


def sft_args(flags):
    return sft.Args(**{name: str(value) if isinstance(value, Path) else value for name, value in flags.items()},
                    max_length=160)


def test_a_demonstration_ends_with_the_turn(sft_run):
    assert "<|im_end|>" in sft_run[1]


def test_the_checkpoint_says_how_it_was_trained(sft_run, chat_model):
    """To transformers and vLLM: the template, and the ids that end a response."""
    hf = sft_run[0] / "checkpoints" / "step_30" / "hf"
    tokenizer = AutoTokenizer.from_pretrained(hf)
    assert tokenizer.chat_template == HYBRID and AutoTokenizer.from_pretrained(chat_model).chat_template is None
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(GenerationConfig.from_pretrained(hf).eos_token_id) == ends and len(ends) == 2


def test_an_evaluation_of_the_checkpoint_gives_the_number_that_training_logged(sft_run, flags, tmp_path):
    model = sft_run[0] / "checkpoints" / "step_30" / "hf"
    own = {"model": model, "data": flags["data"], "eval_problems": 12, "output_dir": tmp_path / "run"}
    shown = succeed(start("training/eval.py", own)).stdout
    assert repr(turns(load_problems(str(flags["data"]), "test")[0])) in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    last = evaluation_lines(sft_run[0])[-1]
    for name in ("accuracy", "format", "response_tokens", "truncated"):
        assert results["results"]["countdown"][name] == last[f"eval/{name}"], name
    assert last["eval/truncated"] < 1  # some responses ended


def test_a_run_goes_on_with_the_same_template_only(sft_run, flags, tmp_path):
    other = tmp_path / "other.jinja"
    own = {"output_dir": sft_run[0], "resume": True, "resume_step": 15, "check": True} | ENOUGH
    other.write_text(HYBRID)
    sft.main(sft_args(flags | own | {"chat_template": other}))  # the text is what counts
    other.write_text(CHATML + "{# enable_thinking #}")
    for changes, rule in (({"chat_template": other}, "--chat_template was a template with fingerprint "),
                          ({"system_prompt": "Be kind."}, "--system_prompt was Be brief. and is Be kind."),
                          ({"think": True}, "--think was False and is True")):
        with pytest.raises(BadInput) as error:
            sft.main(sft_args(flags | own | changes))
        assert str(error.value).count(rule) == 1 and str(error.value).count(" was ") == 1


def test_hints_and_responses_follow_the_opened_turn(flags, tmp_path):
    own = {"group_size": 2, "max_tokens_per_micro_batch": 512, "p_high": 0.9, "p_low": 0.7}
    succeed(start("training/uft.py", flags | own | {"output_dir": tmp_path / "run"}))
    assert len(training_lines(tmp_path / "run")) == 2
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    sample, _ = [one for one in samples if one["kind"] == "training"]
    assert sample["prompt"] in {turns(problem) for problem in load_problems(str(flags["data"]), "train")}
