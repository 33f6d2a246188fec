"""One pretrained model through the whole path: evaluation, three steps of UFT, generate.py, and parity with its own
forward pass. For a machine that has real weights; on its CPU, or with SHOW_GPUS=1 on its GPUs:

    PRETRAINED_MODEL=/path/to/gemma-3-270m bash launch_scripts/test.sh -m pretrained

Problems are additions at the end of a text, longer than the model's window where that is at most LONGEST tokens.
"""

import json
import os
import sys

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from inference import selfcheck
from inference.hybrid_engine import load_engine
from tests.helpers.launching import evaluation_lines, launch_in_turn, run, succeed, training_lines
from utils.pretrained import resolve_dtype

MODEL = os.environ.get("PRETRAINED_MODEL", "")
pytestmark = [
    pytest.mark.slow, pytest.mark.pretrained,
    pytest.mark.skipif(not MODEL, reason="PRETRAINED_MODEL names no folder with pretrained weights"),
]
LONGEST = 2_048  # tokens of a prompt
RESPONSE = 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROCESSES = torch.cuda.device_count() or 1


@pytest.fixture(scope="module")
def window():
    """Of the model's layers that have one, where rows longer than it are tried; else 0."""
    config = AutoConfig.from_pretrained(MODEL).get_text_config()
    has_window = "sliding_attention" in (config.to_dict().get("layer_types") or [])
    return config.sliding_window if has_window and config.sliding_window < LONGEST else 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, window):
    """The folder of a run of UFT, `uft`, and of an evaluation of what it has made, `eval`."""
    folder = tmp_path_factory.mktemp("pretrained")
    text, tokenizer = "A note that is not to the point. ", AutoTokenizer.from_pretrained(MODEL)
    note = text * (window // len(tokenizer(text)["input_ids"]) + 1 if window else 1)
    rows = [{"prompt": f"{note}What is {n} + {n + 3}?", "solution": f"Take {n}.\nAdd {n + 3}.\nIt is {2 * n + 3}.",
             "answer": str(2 * n + 3)} for n in range(20)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    longest = len(tokenizer(rows[-1]["prompt"])["input_ids"]) + 160  # with what is said around it, and hints
    lengths = {"max_prompt_length": longest, "max_response_length": RESPONSE}
    uft = {"model": MODEL, "data": folder / "sums.jsonl", "output_dir": folder / "uft", "total_steps": 3,
           "hint_steps": 3, "eval_every": 3, "save_every": 3, "eval_problems": 2, "prompts_per_step": 2 * PROCESSES,
           "mini_batch_prompts": 2 * PROCESSES, "group_size": 2, "lr": 1e-6, "engine": "torch",
           "max_tokens_per_micro_batch": longest + 2 * RESPONSE + 256} | lengths
    evaluation = {"model": folder / "uft" / "checkpoints" / "step_3" / "hf", "data": folder / "sums.jsonl",
                  "output_dir": folder / "eval", "eval_problems": 2, "engine": "torch"} | lengths
    succeed(launch_in_turn([("training/uft.py", uft), ("training/eval.py", evaluation)], PROCESSES))
    return folder


def test_three_steps_of_uft_agree_with_the_engine(runs):
    """The first update of a step is the sampling policy's own."""
    lines = training_lines(runs / "uft")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad_norm"] > 0 and line["skipped_updates"] == 0 for line in lines)
    assert all(line["logprob_mismatch"] < (0.05 if DEVICE.type == "cuda" else 1e-4) for line in lines)
    assert sum(line["hint_tokens"] for line in lines) > 0


def test_rows_are_longer_than_the_window(runs, window):
    [first, *_] = (json.loads(line) for line in (runs / "uft" / "samples.jsonl").read_text().splitlines())
    assert len(AutoTokenizer.from_pretrained(MODEL)(first["prompt"])["input_ids"]) > window


def test_an_evaluation_of_the_checkpoint_is_the_runs_own(runs):
    [numbers] = json.loads((runs / "eval" / "results.json").read_text())["results"].values()
    last = evaluation_lines(runs / "uft")[-1]
    assert (numbers["accuracy"], numbers["response_tokens"]) == (last["eval/accuracy"], last["eval/response_tokens"])


def test_the_engine_decodes_what_the_model_itself_says(window):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    engine = load_engine("torch", MODEL, tokenizer, resolve_dtype("auto", DEVICE), DEVICE,
                         max_length=(window or 256) + 2 * RESPONSE, kv_cache_gb=1, tp_size=1, memory_fraction=0.3)
    difference, limit = selfcheck.compare(engine)
    assert difference <= limit


def test_generate_goes_on_with_a_prompt():
    words = [sys.executable, "inference/generate.py", "--model", MODEL, "--prompt", "One, two, three, four,",
             "--temperature", "0", "--max_response_length", "8", "--engine", "torch"]
    assert "--- response 1 of 1" in succeed(run(words)).stdout
