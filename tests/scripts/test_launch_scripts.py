"""What the launch scripts start: the paper's recipe, in flags that the training scripts accept."""

import os
import sys
from pathlib import Path

import pytest

from tests.helpers import shells
from tests.helpers.launching import ROOT
from tests.helpers.shells import make_environment
from training import eval as eval_script
from training import r3, rft, sft, stage, uft
from utils.run import processes
from utils.run.cli import run_script
from utils.tasks import countdown

SCRIPTS = {"rft": rft, "sft": sft, "stage": stage, "r3": r3, "uft": uft, "eval": eval_script}
QWEN3B = "Qwen/Qwen2.5-3B"

# The authors' defaults, flag -> value.
COMMON = {"max_prompt_length": 256, "max_response_length": 1024, "prompts_per_step": 256, "weight_decay": 0.01,
          "max_grad_norm": 1, "eval_every": 25, "save_every": 100, "beta1": 0.9}
GRPO = COMMON | {"total_steps": 500, "group_size": 4, "mini_batch_prompts": 64, "temperature": 1, "clip_eps": 0.2,
                 "kl_coef": 0.001, "entropy_coef": 0.001, "lr": 1e-6, "beta2": 0.999}
STAGED = {"hint_steps": 300, "hint_slices_max": 5, "sft_coef": 0.001}
UFT = GRPO | STAGED | {"p_high": 0.95, "p_low": 0.05}
SFT = COMMON | {"total_steps": 200, "mini_batch_prompts": 256, "lr": 1e-5, "warmup": 0.1, "beta2": 0.95,
                "max_length": 1024}
EVAL = {"max_prompt_length": 1024, "max_response_length": 1024}
AS_THE_MACHINE_NEEDS = {"zero_stage", "dtype", "gradient_checkpointing", "max_tokens_per_micro_batch", "kv_cache_gb",
                        "engine", "seed", "model", "data", "output_dir"}

# script -> (training script, processes, model, recipe) of each command it starts, under --check
EXPECTED = {
    "rft_qwen3b": [("rft", 4, QWEN3B, GRPO)],
    "sft_qwen3b": [("sft", 4, QWEN3B, SFT)],
    "sft_rft_qwen3b": [("sft", 4, QWEN3B, SFT), ("rft", 4, QWEN3B, GRPO)],
    "stage_qwen3b": [("stage", 4, QWEN3B, GRPO | STAGED)],
    "r3_qwen3b": [("r3", 4, QWEN3B, GRPO | {"hint_slices_max": 5})],
    "uft_qwen3b": [("uft", 4, QWEN3B, UFT)],
    "eval_qwen3b": [("eval", 1, QWEN3B, EVAL)],
    "uft_qwen0.5b": [("uft", 2, "Qwen/Qwen2.5-0.5B", UFT)],
    "uft_qwen0.5b_1gpu": [("uft", 1, "Qwen/Qwen2.5-0.5B", UFT | {"group_size": 2})],
    "uft_qwen1.5b": [("uft", 2, "Qwen/Qwen2.5-1.5B", UFT)],
    "uft_llama1b": [("uft", 2, "meta-llama/Llama-3.2-1B", UFT)],
    "uft_llama3b": [("uft", 4, "meta-llama/Llama-3.2-3B", UFT)],
}
PARAMETERS = {QWEN3B: "3,085,938,688", "Qwen/Qwen2.5-0.5B": "494,032,768", "Qwen/Qwen2.5-1.5B": "1,543,714,304",
              "meta-llama/Llama-3.2-1B": "1,235,814,400", "meta-llama/Llama-3.2-3B": "3,212,749,824"}
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" END >>"$RECORD"
exit "${STATUS:-0}"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that setup.sh finds complete, and whose `deepspeed` only writes down its words."""
    folder = tmp_path_factory.mktemp("environment")
    make_environment(folder, STUB)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Just enough problems for a step."""
    folder = tmp_path_factory.mktemp("data") / "countdown"
    countdown.build(folder, train_problems=256, test_problems=16)
    return folder


@pytest.fixture
def bash(environment, tmp_path):
    """bash(script, *words, **variables) -> (status, the words of each `deepspeed` it started)."""

    def start(script: str, *words: str, **variables: str) -> tuple[int, list[list[str]]]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        own = {"VENV": str(environment), "RECORD": str(record), "OUTPUT_DIR": str(tmp_path / "run")}
        command = [str(ROOT / "launch_scripts" / f"{script}.sh"), *words]
        result = shells.bash(command, tmp_path, **(own | variables))
        assert "[setup]" not in result.stdout + result.stderr, "setup.sh takes the environment for incomplete"
        started = record.read_text().split("END\n")[:-1] if record.exists() else []
        return result.returncode, [one.splitlines() for one in started]

    return start


def parts(words: list[str]) -> tuple[int, str, dict[str, str]]:
    """(processes, training script, {flag: value}) of a `deepspeed` command; a flag without value has "", one with
    several has them joined by spaces."""
    assert words[:2] == ["--quiet", "--num_gpus"] and words[3].startswith("training/")
    flags, name = {}, ""
    for word in words[4:]:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = ""
        else:
            flags[name] = f"{flags[name]} {word}".strip()
    return int(words[2]), Path(words[3]).stem, flags


def plan_of(words: list[str], monkeypatch, capsys) -> str:
    """The plan that the training script prints for these words, in this process; spaces are single."""

    def too_late(*_arguments, **_settings):
        raise AssertionError("--check is over before processes meet")

    num_processes, script, _ = parts(words)
    monkeypatch.setattr(processes, "join", too_late)
    monkeypatch.setattr(os, "_exit", sys.exit)  # how a script ends
    monkeypatch.setattr(sys, "argv", [words[3], "--local_rank=0", *words[4:]])
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    with pytest.raises(SystemExit) as end:
        run_script(SCRIPTS[script].main, SCRIPTS[script].Args)
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    return " ".join(output.out.split())


def test_every_script_that_trains_or_evaluates_a_model_of_the_paper_is_held_to_the_recipe():
    paths = [*(ROOT / "launch_scripts").glob("*_qwen*.sh"), *(ROOT / "launch_scripts").glob("*_llama*.sh")]
    assert {path.stem for path in paths} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_script_states_the_recipe_and_its_plan_is_the_recipes(bash, data, monkeypatch, capsys, name):
    status, commands = bash(name, "--check")
    assert status == 0 and len(commands) == len(EXPECTED[name])
    for words, (script, num_processes, model, recipe) in zip(commands, EXPECTED[name], strict=True):
        found_processes, found_script, flags = parts(words)
        assert (found_processes, found_script) == (num_processes, script)
        assert flags.pop("check") == "" and (flags["data"], flags["model"], flags["seed"]) == ("countdown", model, "0")
        stated = {flag: float(value) for flag, value in flags.items() if flag not in AS_THE_MACHINE_NEEDS}
        assert stated == recipe

        words[words.index("--data") + 1] = str(data)  # smaller than the real one, which takes long to make
        plan = plan_of(words, monkeypatch, capsys)
        assert f"{script}: all checks passed" in plan and f"processes {num_processes} " in plan
        if script == "eval":
            continue
        assert f"parameters {PARAMETERS[model]} memory per GPU about " in plan
        assert "tokens per micro-batch at most 16384 on each process" in plan
        gib = float(plan.split("memory per GPU about ")[1].split()[0])
        assert 10 < gib < 72, "it is meant for 80 GB, of which some are the context's and the allocator's"
        group = recipe.get("group_size")
        if group:
            assert f"256 prompts x {group} responses = {256 * group} updates per step 4, of {64 * group}" in plan
        else:
            assert "demonstrations per step 256" in plan and "updates per step 1, of 256" in plan


@pytest.mark.parametrize("name", EXPECTED)
def test_script_takes_model_data_folder_and_seed_from_the_environment(bash, name):
    variables = {"MODEL": "m", "DATA": "d", "OUTPUT_DIR": "/nowhere/o", "SEED": "7"}
    status, commands = bash(name, "--kv_cache_gb", "3", "--check", **variables)
    assert status == 0
    for words in commands:
        _, script, flags = parts(words)
        assert (flags["model"], flags["data"], flags["seed"]) == ("m", "d", "7")
        assert flags["output_dir"] == "/nowhere/o" + (f"/{script}" if len(commands) > 1 else "")
        assert flags["kv_cache_gb"] == "3"  # what is appended comes last, so it counts


@pytest.mark.parametrize("name", EXPECTED)
def test_status_of_the_training_is_the_scripts(bash, name):
    status, commands = bash(name, STATUS="3")
    assert status == 3 and len(commands) == 1


def test_evaluation_takes_several_models_and_data_sets(bash):
    _, [words] = bash("eval_qwen3b", MODEL="a b", DATA="countdown math", GPUS="4")
    processes, _, flags = parts(words)
    assert (processes, flags["model"], flags["data"]) == (4, "a b", "countdown math")


def half(folder: Path, checkpoint: str = "") -> None:
    """A run that was cut off; with a checkpoint, that is its latest."""
    folder.mkdir(parents=True)
    (folder / "args.json").write_text("{}")
    if checkpoint:
        (folder / "checkpoints" / checkpoint / "hf").mkdir(parents=True)
        (folder / "checkpoints" / checkpoint / "hf" / "config.json").write_text("{}")
        (folder / "checkpoints" / "latest").write_text(f"{checkpoint}\n")


HALVES = [  # what there is -> what is started: (script, how)
    ([], [("sft", ""), ("rft", "")]),
    ([("sft", "")], [("sft", "overwrite"), ("rft", "")]),
    ([("sft", "step_100")], [("sft", "resume"), ("rft", "")]),
    ([("sft", "step_200")], [("rft", "")]),
    ([("sft", "step_200"), ("rft", "")], [("rft", "overwrite")]),
    ([("sft", "step_200"), ("rft", "step_300")], [("rft", "resume")]),
]


@pytest.mark.parametrize(("there", "started"), HALVES)
def test_two_halves_go_on_where_they_were_cut_off(bash, tmp_path, there, started):
    for script, checkpoint in there:
        half(tmp_path / "run" / script, checkpoint)
    _, commands = bash("sft_rft_qwen3b")
    found = [parts(words) for words in commands]
    assert [(script, " ".join({"resume", "overwrite"} & set(flags))) for _, script, flags in found] == started
    models = {"sft": QWEN3B, "rft": str(tmp_path / "run" / "sft" / "checkpoints" / "step_200" / "hf")}
    assert all(flags["model"] == models[script] for _, script, flags in found)


def test_the_second_half_uses_the_number_of_steps_of_the_first(bash, tmp_path):
    _, [first, second] = bash("sft_rft_qwen3b", SFT_STEPS="88")
    assert parts(first)[2]["total_steps"] == "88" and parts(second)[2]["total_steps"] == "500"
    assert parts(second)[2]["model"].endswith("/sft/checkpoints/step_88/hf")


def test_check_looks_at_both_halves_whatever_is_there(bash, tmp_path):
    half(tmp_path / "run" / "sft", "step_200")
    _, [first, second] = bash("sft_rft_qwen3b", "--check")
    assert parts(first)[2]["model"] == QWEN3B and parts(second)[2]["model"].endswith("/sft/checkpoints/step_200/hf")


def test_overwrite_begins_both_halves_anew(bash, tmp_path):
    half(tmp_path / "run" / "sft", "step_200")
    half(tmp_path / "run" / "rft", "step_300")
    _, commands = bash("sft_rft_qwen3b", "--overwrite")
    assert [parts(words)[1] for words in commands] == ["sft", "rft"]
    assert all("--resume" not in words and "--overwrite" in words for words in commands)


WORDS = ["--total_steps 10", "--total-steps 10", "--total_steps=10", "--total_steps 3 --total_steps 10"]


@pytest.mark.parametrize("words", WORDS)
def test_the_second_half_begins_where_the_overruled_first_one_ends(bash, words):
    _, [first, second] = bash("sft_rft_qwen3b", *words.split())
    assert first[-len(words.split()) :] == second[-len(words.split()) :] == words.split()
    assert parts(second)[2]["model"].endswith("/sft/checkpoints/step_10/hf")


@pytest.mark.parametrize("word", ["--model", "--output_dir", "--output-dir=o"])
def test_a_flag_that_the_halves_cannot_share_is_refused(bash, word):
    assert bash("sft_rft_qwen3b", word, "o") == (2, [])


@pytest.mark.parametrize("name", ["sft_qwen3b", "sft_rft_qwen3b"])
def test_five_epochs_of_math_are_five(name):
    assert "for math about 109" in (ROOT / "launch_scripts" / f"{name}.sh").read_text()
