"""Bad input: status not 0, and one message with the flag, its value and the rule, before any model loads."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig

from tests.helpers import chat, checkpoints
from tests.helpers.launching import launch, start, succeed, survivors, to_words
from training import (
    adaback,
    chord,
    dapo,
    ghpo,
    hpt,
    luffy,
    prefix_rft,
    r3,
    relift,
    rft,
    self_distillation,
    sft,
    srft,
    stage,
    uft,
    uft_adaptive,
)
from training import eval as eval_script
from utils import checkpoint, data
from utils.data import load_problems
from utils.run import processes, tracking
from utils.run.cli import run_script
from utils.run.logger import Logger

DEMONSTRATED = {"luffy": luffy, "chord": chord, "hpt": hpt, "srft": srft, "relift": relift}
HINTED = {"adaback": adaback, "ghpo": ghpo, "prefix_rft": prefix_rft, "uft_adaptive": uft_adaptive,
          "self_distillation": self_distillation}
SCRIPTS = {"rft": rft, "stage": stage, "r3": r3, "uft": uft, "sft": sft, "dapo": dapo,
           "eval": eval_script} | DEMONSTRATED | HINTED
NEEDLESS = {"sft": ("group_size",), "eval": ("group_size", "prompts_per_step", "mini_batch_prompts",
                                             "max_tokens_per_micro_batch")}


@pytest.fixture
def flags(base_model, countdown_data, tmp_path):
    """With these rft and uft run."""
    return {"model": base_model, "data": countdown_data, "output_dir": tmp_path / "run", "prompts_per_step": 16,
            "group_size": 4, "mini_batch_prompts": 8, "max_prompt_length": 64, "max_response_length": 48,
            "max_tokens_per_micro_batch": 512}


def of_script(name, flags):
    """The flags that the script has."""
    kept = {flag: value for flag, value in flags.items() if flag not in NEEDLESS.get(name, ())}
    return kept | ({"max_length": 128} if name == "sft" else {}) | (
        {"max_demonstration_length": 48} if name in DEMONSTRATED else {})


@pytest.fixture
def call(monkeypatch, capsys):
    """call(name, flags, *words) -> status, stdout, stderr of the script, which may neither load a model nor meet other
    processes. Line breaks and frames of the messages are taken out."""

    def too_late(*_arguments, **_settings):
        raise AssertionError("bad input was not found in time")

    def plain(text: str) -> str:
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())

    def run(name: str, flags: dict, *words: str):
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", too_late)
        monkeypatch.setattr(processes, "join", too_late)
        monkeypatch.setattr(os, "_exit", sys.exit)  # how a script ends
        monkeypatch.setattr(sys, "argv", [f"training/{name}.py", "--local_rank=0", *to_words(flags), *words])
        status = 0
        try:
            run_script(SCRIPTS[name].main, SCRIPTS[name].Args)
        except SystemExit as end:
            status = end.code
        output = capsys.readouterr()
        return status, plain(output.out), plain(output.err)

    return run


def expect(result, *fragments: str) -> None:
    status, _, stderr = result
    assert status not in (0, None)
    for fragment in fragments:
        assert fragment in stderr


# ----- flags and their values -----


BAD_FLAGS = [
    ({"learning_rate": 1}, "Unrecognized options: --learning_rate"),
    ({"zero_stage": 5}, "invalid choice '5' for argument '--zero_stage'. Expected one of ('0', '1', '2', '3')"),
    ({"dtype": "float64"}, "invalid choice 'float64' for argument '--dtype'"),
    ({"engine": "magic"}, "invalid choice 'magic' for argument '--engine'"),
    ({"total_steps": "many"}, "--total_steps"),
    ({"lr": -1}, "flag --lr -1.0: must be greater than 0"),
    ({"lr": "nan"}, "flag --lr nan: must be greater than 0"),
    ({"lr": "inf"}, "flag --lr inf: must be greater than 0, and at most 1e+09"),
    ({"total_steps": 0}, "flag --total_steps 0: must be greater than 0"),
    ({"eval_every": 0}, "flag --eval_every 0: must be greater than 0"),
    ({"save_every": -2}, "flag --save_every -2: must be greater than 0"),
    ({"hint_steps": 0}, "flag --hint_steps 0: must be greater than 0"),
    ({"hint_slices_max": 0}, "flag --hint_slices_max 0: must be greater than 0"),
    ({"p_high": 1.5}, "flag --p_high 1.5: must lie between 0 and 1"),
    ({"p_low": "nan"}, "flag --p_low nan: must lie between 0 and 1"),
    ({"sft_coef": -0.1}, "flag --sft_coef -0.1: must not be negative"),
    ({"kl_coef": "nan"}, "flag --kl_coef nan: must not be negative"),
    ({"entropy_coef": -1}, "flag --entropy_coef -1.0: must not be negative"),
    ({"clip_eps": 0}, "flag --clip_eps 0.0: must be greater than 0"),
    ({"temperature": 0}, "flag --temperature 0.0: must be greater than 0"),
    ({"max_grad_norm": 0}, "flag --max_grad_norm 0.0: must be greater than 0"),
    ({"weight_decay": -1}, "flag --weight_decay -1.0: must not be negative"),
    ({"seed": -1}, "flag --seed -1: must not be negative"),
    ({"kv_cache_gb": 0}, "flag --kv_cache_gb 0.0: must be greater than 0"),
    ({"kv_cache_gb": 1e300}, "flag --kv_cache_gb 1e+300: must be greater than 0, and at most 1e+09"),
    ({"max_engine_ratio": 1.1, "old_logprobs": "engine"},
     "flag --max_engine_ratio 1.1: must be at least the clip's 1.2: a token beyond it has no gradient"),
    ({"max_engine_ratio": 1.25, "clip_eps_high": 0.28, "old_logprobs": "engine"}, "at least the clip's 1.28"),
    ({"max_skipped_updates": 0}, "flag --max_skipped_updates 0: must be greater than 0"),
    ({"probe_memory": "maybe"}, "invalid choice 'maybe' for argument '--probe_memory'"),
    ({"tracker": "magic"}, "invalid choice 'magic' for argument '--tracker'"),
    ({"verbosity": "loud"}, "invalid choice 'loud' for argument '--verbosity'"),
    ({"profile_steps": "3:2"}, "flag --profile_steps 3:2: must lie between 1 and --total_steps"),
    ({"timeout_minutes": 1e-9}, "flag --timeout_minutes 1e-09: must be at least 0.1"),
    ({"beta2": 1.2}, "flag --beta2 1.2: must"),
    ({"beta1": 1}, "flag --beta1 1.0: must"),  # AdamW divides by 1 - beta
    ({"group_size": 1}, "flag --group_size 1: must be at least 2"),
    ({"max_prompt_length": 0}, "flag --max_prompt_length 0: must be greater than 0"),
    ({"max_response_length": 0}, "flag --max_response_length 0: must be greater than 0"),
    ({"max_response_length": 150},
     "flag --max_response_length 150: with --max_prompt_length 64 exceeds the 192 positions"),
    ({"max_prompt_length": 5}, "flag --max_prompt_length 5: 200 of 200 train prompts are longer"),
    ({"max_tokens_per_micro_batch": 255},
     "--max_tokens_per_micro_batch 255: must hold --max_prompt_length + --group_size * --max_response_length = 256"),
    ({"dry_run": "always"}, "flag --dry_run is called --probe_memory now"),
    ({"dry-run=always": True}, "flag --dry_run is called --probe_memory now"),
    ({"engine_memory_fraction": 0}, "flag --engine_memory_fraction 0.0: must be greater than 0"),
    ({"max_tokens_per_micro_batch": 255, "share_prefix": False}, "must hold --max_prompt_length + --group_size * "),
    ({"mini_batch_prompts": 7}, "flag --mini_batch_prompts 7 must divide --prompts_per_step 16"),
    ({"mini_batch_prompts": 0}, "flag --mini_batch_prompts 0: must be greater than 0"),
    ({"prompts_per_step": 208}, "flag --prompts_per_step 208: is more than the 200 training problems"),
    ({"eval_problems": 33}, "flag --eval_problems 33: is more than the 32 test problems"),
    ({"eval_problems": -1}, "flag --eval_problems -1: must not be negative"),
    ({"data": "/no/such/folder"}, "flag --data /no/such/folder: must be a built-in task (aime24, amc, countdown, "),
    ({"model": "/no/such/model"}, "flag --model /no/such/model: no such folder"),
    ({"model": "nobody/unreachable-3b"}, "flag --model nobody/unreachable-3b: config and tokenizer cannot be loaded"),
]


@pytest.mark.parametrize(("changes", "rule"), BAD_FLAGS, ids=[" ".join(to_words(changes)) for changes, _ in BAD_FLAGS])
def test_bad_flag_of_uft(call, flags, changes, rule):
    expect(call("uft", flags | changes), rule)
    assert not flags["output_dir"].exists()


@pytest.mark.parametrize(("name", "changes", "rule"), [
    ("rft", {"hint_steps": 3}, "--hint_steps"),  # none of its flags
    ("rft", {"group_size": 1}, "flag --group_size 1: must be at least 2"),
    ("rft", {"lr": 0}, "flag --lr 0.0: must be greater than 0"),
    ("eval", {"engine_memory_fraction": 0}, "flag --engine_memory_fraction 0.0: must be greater than 0"),
    ("sft", {"lr": -1}, "flag --lr -1.0: must be greater than 0"),
    ("sft", {"warmup": 2}, "flag --warmup 2.0: must lie between 0 and 1"),
    ("sft", {"max_length": 9}, "flag --max_length 9: no demonstration is as short"),
    ("sft", {"max_length": 193}, "flag --max_length 193: exceeds the 192 positions of"),
    ("sft", {"max_tokens_per_micro_batch": 100}, "flag --max_tokens_per_micro_batch 100: must hold --max_length = 128"),
    ("sft", {"mini_batch_prompts": 5}, "flag --mini_batch_prompts 5 must divide --prompts_per_step 16"),
    ("eval", {"eval_problems": 33}, "flag --eval_problems 33: is more than the 32 test problems"),
    ("prefix_rft", {"old_logprobs": "engine"}, "flag --old_logprobs engine: no engine has sampled the prefixes"),
    ("prefix_rft", {"max_tokens_per_micro_batch": 207},
     "--max_tokens_per_micro_batch 207: must hold --max_prompt_length + 3 responses of --max_response_length = 208"),
    ("uft", {"reshape": True, "node_local_output": True}, "flag --reshape True: needs all of a state in one folder"),
    ("prefix_rft", {"prefix_top": 1.5}, "flag --prefix_top 1.5: must lie between 0 and 1"),
    ("adaback", {"hint_free": -0.1}, "flag --hint_free -0.1: must lie between 0 and 1"),
    ("ghpo", {"hint_rounds": -1}, "flag --hint_rounds -1: must not be negative"),
    ("dapo", {"overlong": 2}, "flag --overlong 2.0: must lie between 0 and 1"),
    ("dapo", {"max_refills": 0}, "flag --max_refills 0: must be greater than 0"),
    ("relift", {"buffer_size": 0}, "flag --buffer_size 0: must be greater than 0"),
    ("uft_adaptive", {"target_accuracy": 2}, "flag --target_accuracy 2.0: must lie between 0 and 1"),
    ("eval", {"data": "/no/such/folder"}, "flag --data /no/such/folder"),
    ("eval", {"kv_cache_gb": -1}, "flag --kv_cache_gb -1.0: must be greater than 0"),
    ("eval", {"num_samples": -1}, "flag --num_samples -1: must not be negative"),
    ("eval", {"temperature": 0}, "flag --temperature 0.0: must be greater than 0"),
])
def test_bad_flag_of_another_script(call, flags, name, changes, rule):
    expect(call(name, of_script(name, flags) | changes), rule)


@pytest.mark.parametrize("name", ["rft", "stage", "r3", "uft", "sft"])
def test_tracker_that_is_not_installed(call, flags, monkeypatch, name):
    """A folder of its name, which wandb leaves behind, is not enough."""
    flags = of_script(name, flags | {"tracker": "wandb"})
    for spec in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(tracking, "find_spec", lambda name, spec=spec: spec)
        expect(call(name, flags), "flag --tracker wandb: is not installed; pip install wandb")


def test_eval_checks_every_model_and_data_set(call, flags, base_model, countdown_data, tmp_path):
    """Words that follow a flag's first value replace it."""
    flags, model, data = of_script("eval", flags), str(base_model), str(countdown_data)
    expect(call("eval", flags, "--model", model, "/no/such/model"), "flag --model /no/such/model: no such folder")
    unfinished = tmp_path / "step_4" / "hf"
    unfinished.parent.mkdir()
    (unfinished.parent / "manifest.json").touch()
    expect(call("eval", flags, "--model", str(unfinished)), f"{unfinished}: no such folder; its run was stopped before")
    expect(call("eval", flags, "--data", data, "/no/such/folder"), "flag --data /no/such/folder: must be")
    expect(call("eval", flags, "--model", model, f"{model}/"), f"flag --model {model} {model}/: must not name one")
    expect(call("eval", flags, "--data", data, data), f"flag --data {data} {data}: must not name one twice")
    expect(call("eval", flags, "--model"), "flag --model (none): must name at least one")
    short = changed_data(countdown_data, tmp_path / "data", "test", lambda table: table.slice(0, 9))
    expect(call("eval", flags | {"eval_problems": 20}, "--data", data, str(short)),
           f"flag --eval_problems 20: is more than the 9 test problems of --data {short}")
    shutil.copytree(base_model, tmp_path / "short")
    config = (tmp_path / "short" / "config.json").read_text()
    (tmp_path / "short" / "config.json").write_text(config.replace('embeddings": 192', 'embeddings": 96'))
    expect(call("eval", flags, "--model", model, str(tmp_path / "short")), "exceeds the 96 positions of", "/short")


def test_a_model_that_cannot_be_trained(call, flags, base_model, tmp_path):
    """Its attention is its own, so that no layout reaches it."""
    shutil.copytree(base_model, tmp_path / "gptj")
    GPTJConfig(vocab_size=5000, n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "gptj")
    expect(call("sft", of_script("sft", flags) | {"model": tmp_path / "gptj", "engine": "deepspeed"}),
           "flag --model ", "is a model of type gptj, whose attention is its own")


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "eval"])
@pytest.mark.parametrize(("settings", "what"), [
    ({"length_penalty": 2.0}, "no checkpoint could hold its GenerationConfig: "),
    ({"early_stopping": "perhaps"}, "generation_config.json cannot be read (`early_stopping` must be"),
])
def test_a_model_that_no_checkpoint_could_hold(call, flags, base_model, tmp_path, name, settings, what):
    shutil.copytree(base_model, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    expect(call(name, of_script(name, flags | {"model": tmp_path / "model"}), "--check"), "flag --model ", what)


@pytest.mark.parametrize("name", SCRIPTS)
def test_required_flag_is_missing(call, flags, name):
    flags = of_script(name, flags)
    for missing in ("model", "data", "output_dir"):
        expect(call(name, {flag: value for flag, value in flags.items() if flag != missing}), f"--{missing}")


def test_mini_batch_must_be_a_multiple_of_the_processes(call, flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    expect(call("uft", flags), "flag --mini_batch_prompts 8: must be a multiple of the number of processes, 3")


def test_only_the_first_process_complains(call, flags, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    status, _, stderr = call("uft", flags | {"lr": -1})
    assert status not in (0, None) and "--lr" not in stderr


# ----- --data -----


def changed_data(countdown_data: Path, folder: Path, split: str, change) -> Path:
    shutil.copytree(countdown_data, folder)
    path = folder / f"{split}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return folder


@pytest.mark.parametrize(("name", "column"), [
    *((name, column) for name in ("rft", "sft", "uft") for column in ("data_source", "prompt", "reward_model")),
    *((name, "hint") for name in ("uft", "stage", "r3", *HINTED)),
    *((name, "answer") for name in ("sft", *DEMONSTRATED)),
])
def test_missing_column(call, flags, countdown_data, tmp_path, name, column):
    folder = changed_data(countdown_data, tmp_path / "data", "train", lambda table: table.drop_columns([column]))
    expect(call(name, of_script(name, flags) | {"data": folder}),
           f"flag --data {folder}: train.parquet has no column {column};")


@pytest.mark.parametrize(("name", "column", "empty"), [
    ("uft", "hint", [""]), ("stage", "hint", []), ("r3", "hint", [""]),
    *((name, "answer", "") for name in ("sft", *DEMONSTRATED)),
])
def test_rows_without_what_the_script_learns_from(call, flags, countdown_data, tmp_path, name, column, empty):
    def clear(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for index in (3, 7):
            rows[index][column] = empty
        return pa.Table.from_pylist(rows, schema=table.schema)

    folder = changed_data(countdown_data, tmp_path / "data", "train", clear)
    expect(call(name, of_script(name, flags) | {"data": folder}),
           f"flag --data {folder}: train.parquet: 2 of 200 rows have an empty {column}", "the first is row 3")
    assert call("rft", flags | {"data": folder, "check": True})[0] == 0  # reinforcement alone needs neither


@pytest.mark.parametrize("name", DEMONSTRATED)
def test_demonstrations_beside_samples_have_a_length(call, flags, name):
    flags = of_script(name, flags)
    samples = 3 if name == "luffy" else 4
    expect(call(name, flags | {"max_demonstration_length": 1000}),
           "flag --max_demonstration_length 1000: with --max_prompt_length 64 exceeds the 192 positions of")
    expect(call(name, flags | {"max_demonstration_length": 5}),
           "flag --max_demonstration_length 5: no demonstration is as short, the shortest has ")
    tokens = 64 + (samples + 1) * 48
    expect(call(name, flags | {"max_tokens_per_micro_batch": tokens - 1}),
           f"must hold --max_prompt_length + {samples} responses of --max_response_length + "
           f"--max_demonstration_length = {tokens} tokens")
    status, plan, _ = call(name, flags | {"max_tokens_per_micro_batch": tokens, "check": True})
    assert status == 0 and f"16 prompts x {samples} responses" in plan
    assert "left out, demonstration too long 0" in plan and "judges 100.0% of 200 references right" in plan


def test_demonstrations_that_are_too_long_are_counted(call, flags, countdown_data, tmp_path):
    def lengthen(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for index in (3, 7):
            rows[index]["answer"] = "1" * 64
        rows[5]["answer"] = "<answer> 1 </answer>"
        return pa.Table.from_pylist(rows, schema=table.schema)

    folder = changed_data(countdown_data, tmp_path / "data", "train", lengthen)
    status, plan, _ = call("hpt", of_script("hpt", flags) | {"data": folder, "check": True})
    assert status == 0 and "left out, demonstration too long 2" in plan
    assert "warning: the verifier judges 99.5% of 198 references right; 1 are not (wrong numbers 1)" in plan


def test_test_rows_need_no_solution(call, flags, countdown_data, tmp_path):
    folder = changed_data(countdown_data, tmp_path / "data", "test",
                          lambda table: table.drop_columns(["hint", "answer"]))
    for name in SCRIPTS:
        assert call(name, of_script(name, flags) | {"data": folder, "check": True})[0] == 0


def test_data_source_without_a_verifier(call, flags, countdown_data, tmp_path):
    def rename(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[5]["data_source"] = "chess"
        return pa.Table.from_pylist(rows, schema=table.schema)

    folder = changed_data(countdown_data, tmp_path / "data", "train", rename)
    expect(call("uft", flags | {"data": folder}), "train.parquet row 5: data_source 'chess' has no verifier; known: ")


def test_benchmarks_are_for_evaluation(call, flags, countdown_data, monkeypatch, tmp_path):
    """A built-in name without a train split."""
    monkeypatch.setitem(data.BUILT_IN, "only_test", lambda folder: shutil.copytree(
        countdown_data, folder, ignore=shutil.ignore_patterns("train.parquet")))
    monkeypatch.setattr(data, "BUILT_IN_FOLDER", tmp_path / "built in")
    assert call("eval", of_script("eval", flags) | {"data": "only_test", "check": True})[0] == 0
    expect(call("uft", flags | {"data": "only_test"}), "flag --data only_test: train.parquet is missing")


@pytest.mark.parametrize(("name", "split"), [("uft", "test"), ("uft", "train"), ("sft", "train"), ("eval", "test")])
def test_empty_or_missing_or_broken_file(call, flags, countdown_data, tmp_path, name, split):
    folder = changed_data(countdown_data, tmp_path / "data", split, lambda table: table.slice(0, 0))
    flags = of_script(name, flags) | {"data": folder}
    expect(call(name, flags), f"flag --data {folder}: {split}.parquet has no rows")
    (folder / f"{split}.parquet").write_bytes(b"not a parquet file")
    expect(call(name, flags), f"flag --data {folder}: {split}.parquet cannot be read as parquet")
    (folder / f"{split}.parquet").unlink()
    expect(call(name, flags), f"flag --data {folder}: {split}.parquet is missing")


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_long_prompt_is_an_error_or_left_out_by_request(call, flags, countdown_data, tmp_path, split):
    def lengthen(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["prompt"][0]["content"] = "1" * 80 + rows[3]["prompt"][0]["content"]
        return pa.Table.from_pylist(rows, schema=table.schema)

    flags["data"] = changed_data(countdown_data, tmp_path / "data", split, lengthen)
    number = {"train": 200, "test": 32}[split]
    expect(call("uft", flags), f"flag --max_prompt_length 64: 1 of {number} {split} prompts are longer")
    status, plan, _ = call("uft", flags | {"skip_long_prompts": True, "check": True})
    assert status == 0
    [line] = re.findall(f"{'training' if split == 'train' else 'test'} problems {number - 1} \\(.*?\\)", plan)
    assert "1 left out: longer than --max_prompt_length" in line


# ----- --data of one's own -----


@pytest.fixture
def own_flags(flags, tmp_path, forget_verifiers):
    """Those with which the scripts run on a file of sums, which a file of its own judges."""
    rows = [{"question": f"{n} + 1?", "solution": f"Take {n}.\nIt is {n + 1}.", "answer": n + 1} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_verifier.py").write_text(
        "from rewards.answer import CORRECT, WRONG_RESULT, last_answer\n\n\ndef verify(completion, ground_truth):\n"
        "    return CORRECT if (last_answer(completion) or '').strip() == ground_truth['target'] else WRONG_RESULT\n")
    return flags | {"data": tmp_path / "sums.jsonl", "verifier": tmp_path / "my_verifier.py", "max_prompt_length": 112}


@pytest.mark.parametrize("name", SCRIPTS)
def test_own_data_are_checked_and_shown_by_every_script(call, own_flags, name):
    longer = {"max_length": 176} if name == "sft" else {}
    status, plan, stderr = call(name, of_script(name, own_flags) | longer | {"check": True})
    assert status == 0, stderr
    assert "test problems 4 (" in plan
    assert f"are right by {own_flags['verifier']}" in plan and "held out: 10% of the prompts" in plan
    assert len(re.findall(r"problem \d+ '\d+ \+ 1\?', answer '\d+', 2 chunks of a solution: \['Take \d+\.", plan)) == 3


@pytest.mark.parametrize(("changes", "rule"), [
    ({"prompt_column": "text"}, "flag --prompt_column text: "),
    ({"solution_column": "text"}, "has no such column; there are: question, solution, answer"),
    ({"verifier": "magic"}, "flag --verifier magic: must be one of competition_math, numeric, countdown, "),
    ({"verifier": "no_such.py"}, "flag --verifier no_such.py: no such file"),
    ({"data": "no_such.jsonl"}, "flag --data no_such.jsonl: no such file"),
    ({"data": "own/nothing"}, "as a name of the Hugging Face hub it cannot be loaded ("),
    ({"test_data": "no_such.csv"}, "flag --test_data no_such.csv: no such file"),
])
def test_bad_flag_of_own_data(call, own_flags, changes, rule):
    for name in ("uft", "eval"):
        expect(call(name, of_script(name, own_flags) | changes), rule)


def test_a_verifier_file_without_the_function(call, own_flags):
    own_flags["verifier"].write_text("def judge(): ...\n")
    expect(call("uft", own_flags), "my_verifier.py: it has no function verify(completion, ground_truth)")


def test_rows_without_the_solution_that_a_script_shows(call, own_flags):
    own_flags["data"].write_text("".join(f'{{"question": "{n}?", "answer": {n}}}\n' for n in range(40)))
    expect(call("uft", own_flags), "sums.jsonl: train: 36 of 36 rows have an empty hint, which this script needs")
    assert call("rft", own_flags | {"check": True})[0] == 0


def test_eval_tests_several_data_sets_each_on_its_own_problems(call, own_flags, countdown_data):
    flags = of_script("eval", own_flags | {"test_data": own_flags["data"]})
    expect(call("eval", flags, "--data", str(own_flags["data"]), str(countdown_data)),
           f"flag --test_data {own_flags['data']}: needs a single --data")


# ----- --model -----


def test_model_folder_without_tokenizer_or_config(call, flags, base_model, tmp_path):
    for name, rule in (("tokenizer.json", "has no tokenizer"), ("config.json", "has no config.json")):
        folder = tmp_path / f"without {name}"
        shutil.copytree(base_model, folder)
        (folder / name).unlink()
        expect(call("uft", flags | {"model": folder}), f"flag --model {folder}: the folder {rule}")
        expect(call("uft", flags | {"model": folder, "check": True}), rule)


def test_vocabulary_that_does_not_fit_the_tokenizer(call, flags, base_model, tmp_path):
    shutil.copytree(base_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    size = config["vocab_size"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": size - 1}))
    for name in SCRIPTS:
        expect(call(name, of_script(name, flags) | {"model": tmp_path / "model"}), f"flag --model {tmp_path / 'model'}",
               f"its tokenizer has ids up to {size - 1}, its embeddings end at {size - 2}")


def test_broken_config(call, flags, base_model, tmp_path):
    shutil.copytree(base_model, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "no such architecture"}')
    expect(call("uft", flags | {"model": tmp_path / "model"}), f"flag --model {tmp_path / 'model'}: config")


# ----- --chat_template -----


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("words", "rule"), [
    ("--chat_template model", "flag --chat_template model: the tokenizer of --model has no chat template"),
    ("--chat_template no/such.jinja", "flag --chat_template no/such.jinja: must be none, model or a jinja file"),
    ("--chat_template BROKEN", "flag --chat_template BROKEN: the template fails (TemplateSyntaxError: "),
    ("--chat_template NO_SYSTEM --system_prompt x", "flag --system_prompt 'x': the chat template refuses a system"),
    ("--system_prompt x", "flag --system_prompt 'x': needs a chat template: --chat_template model, or a jinja file"),
    ("--no_think", "flag --no_think: needs a chat template"),
    ("--chat_template CHATML --no_think", "flag --no_think: the chat template knows no enable_thinking"),
    ("--chat_template CHATML --max_prompt_length 60", "flag --max_prompt_length 60: "),
])
def test_chat_template_that_does_not_fit(call, flags, tmp_path, name, words, rule):
    for mark, text in (("BROKEN", "{% for %}"), ("NO_SYSTEM", chat.NO_SYSTEM), ("CHATML", chat.CHATML)):
        (tmp_path / mark).write_text(text)
        words, rule = words.replace(mark, str(tmp_path / mark)), rule.replace(mark, str(tmp_path / mark))
    expect(call(name, of_script(name, flags), *words.split()), rule)


@pytest.mark.parametrize("name", SCRIPTS)
def test_check_shows_the_turns_that_the_model_gets(call, flags, countdown_data, tmp_path, name):
    (tmp_path / "mine.jinja").write_text(chat.HYBRID)
    words = ("--chat_template", str(tmp_path / "mine.jinja"), "--system_prompt", "Be brief.", "--no_think")
    flags = of_script(name, flags | {"max_prompt_length": 140, "max_response_length": 8,
                                     "max_tokens_per_micro_batch": 512, "check": True})
    status, plan, stderr = call(name, flags | ({"max_length": 190} if name == "sft" else {}), *words)
    assert status == 0, stderr
    first = load_problems(str(countdown_data), "test" if name == "eval" else "train")[0].prompt
    turns = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + first.removesuffix("\n<think> ")
             + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<think> ")
    assert f"first prompt {' '.join(repr(turns).split())} " in plan


# ----- --output_dir, --resume, --overwrite -----


@pytest.mark.parametrize("name", SCRIPTS)
def test_folder_in_use(call, flags, name):
    flags = of_script(name, flags)
    flags["output_dir"].mkdir()
    (flags["output_dir"] / "notes.txt").write_text("mine")
    expect(call(name, flags), f"flag --output_dir {flags['output_dir']}: is not empty", "--overwrite")
    assert (flags["output_dir"] / "notes.txt").read_text() == "mine"


def test_output_dir_is_a_file(call, flags):
    flags["output_dir"].write_text("")
    expect(call("uft", flags), f"flag --output_dir {flags['output_dir']}: is a file")


def test_resume_without_checkpoint(call, flags):
    expect(call("uft", flags | {"resume": True}), f"flag --resume {flags['output_dir']}: there is no checkpoint")
    (flags["output_dir"] / "checkpoints").mkdir(parents=True)
    expect(call("uft", flags | {"resume": True}), f"flag --resume {flags['output_dir']}: there is no checkpoint")


def test_resume_with_overwrite(call, flags):
    expect(call("uft", flags | {"resume": True, "overwrite": True}), "--resume", "cannot be combined with --overwrite")


def test_resume_that_has_nothing_left_to_do(call, flags):
    checkpoints = flags["output_dir"] / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest").write_text("step_4\n")
    expect(call("uft", flags | {"resume": True, "total_steps": 3}), "flag --total_steps 3: ", "step 4")


def test_resume_with_another_setting(call, flags, countdown_data):
    fingerprints = {split: data.fingerprint(load_problems(str(countdown_data), split)) for split in ("train", "test")}
    args = uft.Args(**flags | {name: str(flags[name]) for name in ("model", "data", "output_dir")}, eval_problems=0)
    checkpoints.write(flags["output_dir"], 4, checkpoint.describe_run(vars(args), fingerprints))
    resume = flags | {"resume": True, "eval_problems": 0}
    expect(call("uft", resume | {"lr": 1e-4}), "--lr was 1e-06 and is 0.0001", "--allow_changes")
    assert call("uft", resume | {"check": True})[0] == 0


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    for resume_step in (None, 2):  # a resumed run leaves more files
        with Logger(tmp_path, {}, True, 4, resume_step):
            pass
    (tmp_path / "curves.png").write_bytes(b"")
    (tmp_path / "checkpoints" / "step_2" / "hf").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "my checkpoints").mkdir()
    checkpoint.clear(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my checkpoints", "notes.txt"]
    checkpoint.clear(str(tmp_path / "no such folder"))


# ----- --check -----


@pytest.mark.parametrize("name", SCRIPTS)
def test_check_prints_the_plan_and_writes_nothing(call, flags, countdown_data, name):
    status, plan, _ = call(name, of_script(name, flags) | {"check": True})
    assert status == 0
    first = load_problems(str(countdown_data), "test" if name == "eval" else "train")[0]
    assert " ".join(repr(first.prompt).split()) in plan
    assert f"{name}: all checks passed" in plan
    assert not flags["output_dir"].exists()


def test_check_shows_the_bos_that_the_model_gets(call, flags, base_model, countdown_data, tmp_path):
    model = shutil.copytree(base_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"bos_token": tokenizer.eos_token})
    tokenizer.save_pretrained(model)
    first = load_problems(str(countdown_data), "train")[0].prompt
    num_tokens = len(tokenizer(first, add_special_tokens=False)["input_ids"])
    for bos in (True, False):
        status, plan, stderr = call("uft", flags | {"model": model, "check": True}, *(() if bos else ("--no_bos",)))
        assert status == 0, stderr
        assert f"first prompt {' '.join(repr(tokenizer.eos_token * bos + first).split())} " in plan
        assert f"first prompt, tokens {num_tokens + bos}" in plan


def test_check_of_eval_prints_a_plan_for_every_pair(call, flags, base_model, countdown_data, tmp_path):
    flags = of_script("eval", flags) | {"check": True, "num_samples": 4}
    other = changed_data(countdown_data, tmp_path / "data", "test", lambda table: table.slice(5, 9))
    status, plan, _ = call("eval", flags, "--model", str(base_model), "nobody/unreachable-3b",
                           "--data", str(countdown_data), str(other))
    assert status == 0 and plan.count("all checks passed") == 4
    assert plan.count("responses 4 per problem, sampled at temperature 1.0 with seed 0") == 4
    assert plan.count("test problems 32 ") == plan.count("test problems 9 ") == 2
    assert plan.count(f"model {base_model} data ") == plan.count("model nobody/unreachable-3b data ") == 2
    assert plan.count("memory per GPU about 0.") == 2 and plan.count("memory no estimate: it needs the config") == 2


def test_check_tells_the_cut_of_the_batch(call, flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, plan, _ = call("uft", flags | {"check": True})
    for fact in ("16 prompts x 4 responses", "updates per step 2, of 32 rollouts each", "processes 2"):
        assert fact in plan


def test_check_finds_bad_input(call, flags):
    expect(call("uft", flags | {"check": True, "mini_batch_prompts": 7}), "flag --mini_batch_prompts 7 must divide")


def test_check_without_the_models_files(call, flags):
    status, plan, _ = call("uft", flags | {"check": True, "model": "nobody/unreachable-3b"})
    assert status == 0 and "cannot be reached" in plan and "Numbers: " in plan


# ----- the whole way, from the shell -----


@pytest.mark.slow
def test_check_from_the_shell_writes_nothing_and_imports_nothing_that_draws(flags):
    result = succeed(start("training/uft.py", flags | {"check": True}, PYTHONPROFILEIMPORTTIME="1"))
    assert "all checks passed" in result.stdout and not flags["output_dir"].exists()
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "torch" in imported and "matplotlib" not in imported


@pytest.mark.slow
def test_launch_of_two_processes_ends_with_the_message_and_leaves_none_behind(flags):
    result = launch("training/uft.py", flags | {"mini_batch_prompts": 1}, num_processes=2)
    assert result.returncode != 0 and "Traceback" not in result.stderr and survivors(result) == []
    assert "error: flag --mini_batch_prompts 1: must be a multiple of the number of processes, 2" in result.stderr


@pytest.mark.slow
def test_a_flag_that_there_is_not_ends_the_script_with_its_name(flags):
    result = start("training/uft.py", flags | {"learning_rate": 1})
    assert result.returncode == 2 and "--learning_rate" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_launch_that_fails_late_leaves_no_process_behind(flags, base_model, tmp_path):
    """Weights that are no weights: the one kind of bad input that only the loading finds."""
    shutil.copytree(base_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    result = launch("training/uft.py", flags | {"model": tmp_path / "model"}, num_processes=2)
    assert result.returncode != 0
    assert survivors(result) == []
