"""The tiny base: a folder that transformers loads as it was saved, and a tokenizer that keeps the three texts apart."""

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import tiny_base
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import countdown
from utils.tasks.tiny_texts import TASKS, countdown_texts

SMALL = {"steps": 3, "batch_size": 4, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "eval_problems": 4,
         "max_response_length": 8, "tokenizer_texts": 300, "threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    countdown.build(folder, train_problems=200, test_problems=100)
    return folder


@pytest.fixture(scope="module")
def model_folder(data):
    folder = data.parent / "model"
    tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(folder), **SMALL))
    return folder


def test_folder_loads_with_transformers_and_knows_where_to_stop(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert model.config.model_type == "qwen2" and model.dtype == torch.float32
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token_id is None and model.config.bos_token_id is None
    assert model.config.vocab_size == len(tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not list(model_folder.parent.glob("*.building"))


def test_loaded_tokenizer_gives_the_ids_that_training_used(data, model_folder):
    """AutoTokenizer makes a Qwen2Tokenizer of any Qwen2 folder; 20 tokens of a prompt had become 160 that way."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [p.prompt + p.demonstration for p in load_problems(str(data), "train")]
    trained_with = tiny_base.make_tokenizer(texts, TASKS["countdown"].breaks, 1024)
    assert tokenizer(texts)["input_ids"] == trained_with(texts)["input_ids"]
    assert max(len(ids) for ids in tokenizer([p.prompt for p in load_problems(str(data), "test")])["input_ids"]) <= 24


def test_every_text_survives_the_tokenizer(data, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for problem in load_problems(str(data), "train") + load_problems(str(data), "test"):
        for text in (problem.prompt, problem.demonstration, *problem.solution):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    foreign = "hello <think> wörld 12 **\t\n\n(x)"
    assert tokenizer.decode(tokenizer(foreign)["input_ids"]) == foreign


def test_tokenising_prompt_and_slices_apart_or_together_gives_the_same_ids(data, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for problem in load_problems(str(data), "test"):
        for shown in range(len(problem.solution) + 1):
            pieces = [problem.prompt, *problem.solution[:shown]]
            apart = [token for piece in pieces for token in tokenizer(piece)["input_ids"]]
            assert tokenizer("".join(pieces))["input_ids"] == apart


def test_same_seed_same_weights(data, model_folder):
    again, other = data.parent / "again", data.parent / "other"
    tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(again), **SMALL))
    tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(other), seed=1, **SMALL))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (model_folder, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_solved_fraction_and_held_out_puzzles(tmp_path):
    countdown.build(tmp_path, train_problems=1, test_problems=200, min_numbers=3, max_numbers=3, max_number=9,
                    max_target=40, operators="+-")
    test_problems = load_problems(str(tmp_path), "test")

    def solved(prompt, completion):
        return prompt.split("Target: ")[1].split("\n")[0] == completion.split("\nAll")[0].rsplit(" = ", 1)[1]

    def key(prompt):
        numbers, target = prompt.split("Numbers: ")[1].split("\n<think>")[0].split("\nTarget: ")
        return tuple(sorted(map(int, numbers.split(", ")))), int(target)

    def draw(held_out, solved_fraction):
        return list(islice(countdown_texts(tmp_path, held_out, solved_fraction, seed=0), 2000))

    held_out = {key(problem.prompt) for problem in test_problems}
    all_solved = draw([], 1.0)
    assert all(solved(*text) for text in all_solved)
    assert held_out & {key(prompt) for prompt, _ in all_solved}
    assert not held_out & {key(prompt) for prompt, _ in draw(test_problems, 1.0)}
    shares = [sum(solved(*text) for text in draw([], fraction)) / 2000 for fraction in (0.0, 0.5)]
    assert shares[0] < 0.15 and 0.45 < shares[1] < 0.6


@pytest.mark.gpu
def test_a_gpu_trains_the_same_model(data, model_folder):
    """To rounding, in the few steps here; the tokenizer is the same."""
    folder = data.parent / "by_gpu"
    tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(folder), device="cuda", **SMALL))
    ours, theirs = (AutoModelForCausalLM.from_pretrained(some).state_dict() for some in (folder, model_folder))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-3 for name in theirs)
    assert (folder / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


def test_prompts_and_padding_have_no_loss():
    input_ids, labels = tiny_base.make_batch([[5, 6], [7]], [[8, 1], [9, 9, 1]], pad=0)
    assert input_ids.tolist() == [[5, 6, 8, 1], [7, 9, 9, 1]]
    assert labels.tolist() == [[-100, -100, 8, 1], [-100, 9, 9, 1]]
    input_ids, labels = tiny_base.make_batch([[5], [7]], [[1], [9, 1]], pad=0)
    assert input_ids.tolist() == [[5, 1, 0], [7, 9, 1]]
    assert labels.tolist() == [[-100, 1, -100], [-100, 9, 1]]


@pytest.mark.parametrize(("flag", "value"), [("steps", 0), ("solved_fraction", 1.5), ("num_heads", 3),
                                             ("hidden_size", 36), ("max_position_embeddings", 16), pytest.param(
                                                 "device", "cuda", marks=pytest.mark.skipif(
                                                     torch.cuda.is_available(), reason="there is a GPU"))])
def test_bad_value_is_named_with_its_flag(data, tmp_path, flag, value):
    args = tiny_base.Args(data=str(data), output_dir=str(tmp_path / "m"), **(SMALL | {flag: value}))
    with pytest.raises(BadInput, match=f"flag --{flag} {value}: "):
        tiny_base.main(args)
    assert not (tmp_path / "m").exists()


def test_a_model_is_not_replaced_unasked(data, model_folder):
    with pytest.raises(BadInput, match="--output_dir .*--overwrite"):
        tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(model_folder), **SMALL))


def test_overwriting_replaces_a_model_and_nothing_else(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="--output_dir .* holds no model, and --overwrite replaces nothing else"):
        tiny_base.main(tiny_base.Args(data=str(data), output_dir=str(tmp_path), overwrite=True, **SMALL))
    assert (tmp_path / "thesis.tex").exists()
