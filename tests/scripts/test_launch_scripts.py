"""What the launch scripts start: the paper's recipe, in flags that the training scripts accept."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference import hybrid_engine
from tests.helpers import shells
from tests.helpers.launching import ROOT
from tests.helpers.shells import make_environment
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
from utils.run import processes
from utils.run.cli import run_script
from utils.setup.cards import CARDS, FILLED, best, flags_of
from utils.setup.duration import TABLE, hours
from utils.setup.memory import evaluation_parts, peak
from utils.setup.memory_terms import GIB, Generation, Run
from utils.setup.shapes import SHAPES
from utils.tasks import countdown

SCRIPTS = {"rft": rft, "sft": sft, "stage": stage, "r3": r3, "uft": uft, "luffy": luffy, "chord": chord, "hpt": hpt,
           "srft": srft, "adaback": adaback, "ghpo": ghpo, "prefix_rft": prefix_rft, "uft_adaptive": uft_adaptive,
           "dapo": dapo, "relift": relift, "self_distillation": self_distillation, "eval": eval_script}
QWEN3B = "Qwen/Qwen2.5-3B"

# The authors' defaults, flag -> value.
COMMON = {"max_prompt_length": 256, "max_response_length": 1024, "prompts_per_step": 256, "weight_decay": 0.01,
          "max_grad_norm": 1, "eval_every": 25, "save_every": 100, "beta1": 0.9}
GRPO = COMMON | {"total_steps": 500, "group_size": 4, "mini_batch_prompts": 64, "temperature": 1, "clip_eps": 0.2,
                 "kl_coef": 0.001, "entropy_coef": 0.001, "lr": 1e-6, "beta2": 0.999}
STAGED = {"hint_steps": 300, "hint_slices_max": 5, "sft_coef": 0.001}
UFT = GRPO | STAGED | {"p_high": 0.95, "p_low": 0.05}
DEMONSTRATED = GRPO | {"kl_coef": 0, "max_demonstration_length": 1024}
WITHOUT_RATIO = {name: value for name, value in DEMONSTRATED.items() if name != "clip_eps"} | {"entropy_coef": 0}
SFT = COMMON | {"total_steps": 200, "mini_batch_prompts": 256, "lr": 1e-5, "warmup": 0.1, "beta2": 0.95,
                "max_length": 1024}
EVAL = {"max_prompt_length": 1024, "max_response_length": 1024}
AS_THE_MACHINE_NEEDS = {"zero_stage", "dtype", "gradient_checkpointing", "offload", "max_tokens_per_micro_batch",
                        "kv_cache_gb", "engine_memory_fraction", "free_replica", "sleep_level", "engine", "seed",
                        "model", "data", "output_dir"}
OF_WORDS = {"prefix_loss": "top"}  # of recipes

# script -> (training script, processes, model, recipe) of each command it starts, under --check
EXPECTED = {
    "rft_qwen3b": [("rft", 4, QWEN3B, GRPO)],
    "sft_qwen3b": [("sft", 4, QWEN3B, SFT)],
    "sft_rft_qwen3b": [("sft", 4, QWEN3B, SFT), ("rft", 4, QWEN3B, GRPO)],
    "stage_qwen3b": [("stage", 4, QWEN3B, GRPO | STAGED)],
    "r3_qwen3b": [("r3", 4, QWEN3B, GRPO | {"hint_slices_max": 5})],
    "uft_qwen3b": [("uft", 4, QWEN3B, UFT)],
    "luffy_qwen3b": [("luffy", 4, QWEN3B, DEMONSTRATED | {"shaping": 0.1})],
    "chord_qwen3b": [("chord", 4, QWEN3B, DEMONSTRATED | {"phi": 1, "mu_peak": 0.1, "mu_valley": 0.1})],
    "hpt_qwen3b": [("hpt", 4, QWEN3B, DEMONSTRATED | {"gate": 0, "sft_coef": 1})],
    "srft_qwen3b": [("srft", 4, QWEN3B, WITHOUT_RATIO | {"sft_coef": 0.5, "right_coef": 0.1, "shaping": 0.1})],
    "adaback_qwen3b": [("adaback", 4, QWEN3B, GRPO | {
        "kl_coef": 0, "entropy_coef": 0, "hint_slices_max": 0, "hint_free": 0.1, "solved": 0.5, "mean_rate": 0.1})],
    "ghpo_qwen3b": [("ghpo", 4, QWEN3B, GRPO | {"kl_coef": 0, "hint_rounds": 3})],
    "prefix_rft_qwen3b": [("prefix_rft", 4, QWEN3B, GRPO | {
        "kl_coef": 0, "p_high": 0.95, "p_low": 0.05, "prefix_top": 0.2})],
    "dapo_qwen3b": [("dapo", 4, QWEN3B, GRPO | {
        "kl_coef": 0, "entropy_coef": 0, "clip_eps_high": 0.28, "max_refills": 3, "overlong": 0.2})],
    "relift_qwen3b": [("relift", 4, QWEN3B, DEMONSTRATED | {"buffer_size": 128, "sft_lr": 1e-6})],
    "uft_adaptive_qwen3b": [("uft_adaptive", 4, QWEN3B, GRPO | {
        "hint_slices_max": 5, "p_high": 0.95, "hint_rate": 0.5, "target_accuracy": 0.5, "mean_rate": 0.1,
        "sft_coef": 0.001})],
    "self_distillation_qwen3b": [("self_distillation", 4, QWEN3B, GRPO | {"group_size": 1, "kl_coef": 0})],
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
    """bash(script, *words, **variables) -> (status, the words of each `deepspeed` it started); `bash.errors`: what was
    written to stderr, by call."""

    def start(script: str, *words: str, **variables: str) -> tuple[int, list[list[str]]]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        own = {"VENV": str(environment), "RECORD": str(record), "OUTPUT_DIR": str(tmp_path / "run")}
        command = [str(ROOT / "launch_scripts" / f"{script}.sh"), *words]
        result = shells.bash(command, tmp_path, **(own | variables))
        assert "[setup]" not in result.stdout + result.stderr, "setup.sh takes the environment for incomplete"
        started = record.read_text().split("END\n")[:-1] if record.exists() else []
        start.errors.append(result.stderr)
        return result.returncode, [one.splitlines() for one in started]

    start.errors = []
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
    assert {path.stem for path in paths} == set(EXPECTED) | {"uft_qwen3b_2nodes"}  # which calls uft_qwen3b.sh


@pytest.mark.parametrize("name", EXPECTED)
def test_script_states_the_recipe_and_its_plan_is_the_recipes(bash, data, monkeypatch, capsys, name):
    status, commands = bash(name, "--check")
    assert status == 0 and len(commands) == len(EXPECTED[name])
    for words, (script, num_processes, model, recipe) in zip(commands, EXPECTED[name], strict=True):
        found_processes, found_script, flags = parts(words)
        assert (found_processes, found_script) == (num_processes, script)
        assert flags.pop("check") == "" and (flags["data"], flags["model"], flags["seed"]) == ("countdown", model, "0")
        assert all(flags.pop(flag, word) == word for flag, word in OF_WORDS.items())
        stated = {flag: float(value or 1) for flag, value in flags.items() if flag not in AS_THE_MACHINE_NEEDS}
        assert stated == recipe

        words[words.index("--data") + 1] = str(data)  # smaller than the real one, which takes long to make
        plan = plan_of(words, monkeypatch, capsys)
        assert f"{script}: all checks passed" in plan and f"processes {num_processes} " in plan
        if script == "eval":
            continue
        assert f"parameters {PARAMETERS[model]} memory per GPU about " in plan
        assert f"tokens per micro-batch at most {flags['max_tokens_per_micro_batch']} on each process" in plan
        assert float(plan.split("on GPUs of 80 GB these flags ")[1].split()[0]) <= FILLED * CARDS[80]
        assert all(f"on {num_processes} x {card} " in plan for card in TABLE)
        group = samples_of(script, recipe)
        if "max_demonstration_length" in recipe:
            assert "demonstrations per step 256 left out, demonstration too long 0" in plan
        if group:
            assert f"256 prompts x {group} responses = {256 * group} updates per step 4, of {64 * group}" in plan
        else:
            assert "demonstrations per step 256" in plan and "updates per step 1, of 256" in plan


def test_a_plan_made_on_a_gpu_is_for_that_gpu(bash, data, monkeypatch, capsys):
    """Its memory with a context and large chunks of logits; the time of it alone."""
    [words] = bash("uft_qwen3b", "--check")[1]
    words[words.index("--data") + 1] = str(data)
    for name, given in (("is_available", True), ("current_device", 0), ("device_count", 4),
                        ("get_device_capability", (8, 0)), ("get_device_name", "NVIDIA A100-SXM4-80GB"),
                        ("get_device_properties", SimpleNamespace(total_memory=79 * GIB))):
        monkeypatch.setattr(torch.cuda, name, lambda *_, given=given: given)
    monkeypatch.setattr(hybrid_engine, "find_spec", lambda _: None)
    plan = plan_of(words, monkeypatch, capsys)
    expected = peak(SHAPES[QWEN3B], replace(run_of("uft", parts(words)[2], 4, 80, "torch"), test_problems=16))
    assert f"memory per GPU about {expected / GIB:.2f} GiB" in plan and "context, NCCL, gaps 3.00 GiB" in plan
    assert "on 4 x A100-80 " in plan and "H100" not in plan and "engine torch (no vLLM here)" in plan


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


# ----- how a script fills GPUs -----


def samples_of(script: str, flags: Mapping[str, Any]) -> int:
    """Responses that are sampled for a prompt."""
    return int(flags.get("group_size", 0)) - (script == "luffy")  # of whose groups one member is the demonstration


def run_of(script: str, flags: dict[str, str], num_processes: int, gigabytes: int, engine: str) -> Run:
    """The run of these flags on such GPUs."""
    group_size, (prompt, response, demonstration) = samples_of(script, flags), (int(flags.get(name, 0)) for name in (
        "max_prompt_length", "max_response_length", "max_demonstration_length"))
    in_row = group_size - (script == "prefix_rft")  # one response has a prompt of its own
    return Run(
        weight_bytes=2, gpu_bytes=CARDS[gigabytes] * GIB, processes=num_processes, engine=engine, group_size=group_size,
        row_length=prompt + in_row * response + demonstration if group_size else int(flags["max_length"]),
        rows_per_prompt=1 + group_size - in_row, max_demonstration_length=demonstration,
        has_reference=float(flags.get("kl_coef", 0)) > 0 or script == "self_distillation",
        test_problems=1_024, max_prompt_length=prompt,
        max_response_length=response, offload="offload" in flags, free_replica="free_replica" in flags,
        gradient_checkpointing="gradient_checkpointing" in flags,
        kv_cache_gb=float(flags["kv_cache_gb"]), engine_memory_fraction=float(flags["engine_memory_fraction"]),
        **{name: int(flags[name]) for name in ("zero_stage", "prompts_per_step", "mini_batch_prompts",
                                               "max_tokens_per_micro_batch", "sleep_level")},
    )


def memory_lines(name: str, gigabytes: int) -> list[tuple[str, int]]:
    """(words, GiB in the comment) for each command of a script, by its `case` over MEMORY."""
    lines, case = [], 0
    for line in (ROOT / "launch_scripts" / f"{name}.sh").read_text().splitlines():
        if found := re.match(r" +(80|40|24)\)", line):
            case = int(found[1])
        if (found := re.search(r"memory=\((.*)\).* # (\d+) GiB$", line)) and case == gigabytes:
            lines.append((found[1], int(found[2])))
    return lines


@pytest.mark.parametrize("gigabytes", CARDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_fits_the_gpus_it_is_told_and_says_how_well(bash, name, gigabytes):
    """With either engine; and its flags are those that the plan would advise."""
    status, commands = bash(name, MEMORY=str(gigabytes))
    lines = memory_lines(name, gigabytes)
    assert status == 0 and len(lines) == len(commands) == len(EXPECTED[name])
    for words, (_, _, model, _), (memory, told) in zip(commands, EXPECTED[name], lines, strict=True):
        num_processes, script, flags = parts(words)
        shape, most = SHAPES[model], FILLED * CARDS[gigabytes] * GIB
        assert f" {memory} " in f" {' '.join(words)} "
        if script == "eval":
            run = Generation(
                weight_bytes=2, gpu_bytes=CARDS[gigabytes] * GIB, max_prompt_length=1_024, max_response_length=1_024,
                kv_cache_gb=float(flags["kv_cache_gb"]), engine="torch",
                engine_memory_fraction=float(flags["engine_memory_fraction"]))
            takes = [sum(evaluation_parts(shape, replace(run, engine=engine), 1_024, 1).values())
                     for engine in ("torch", "vllm")]
        else:
            assert flags["engine"] == "auto"
            runs = [run_of(script, flags, num_processes, gigabytes, engine) for engine in ("torch", "vllm")]
            takes = [peak(shape, run) for run in runs]
            for run in runs:
                assert flags_of(best(shape, run)) == flags_of(run)
        assert max(takes) <= most and max(takes) / GIB == pytest.approx(told, abs=1)


GPUS = [("81559\n", "80"), ("40536\n81559\n", "40"), ("46068\n", "40"), ("24564\n", "24"), ("23034\n", "24")]


@pytest.mark.parametrize(("mebibytes", "memory"), GPUS)
def test_auto_takes_the_smallest_gpu(bash, tmp_path, mebibytes, memory):
    (tmp_path / "nvidia-smi").write_text(f"#!/usr/bin/env bash\nprintf '{mebibytes}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert bash("uft_qwen3b", MEMORY="auto", PATH=path) == bash("uft_qwen3b", MEMORY=memory, PATH=path)
    assert bash("uft_qwen3b", MEMORY=memory)[1] != []


@pytest.mark.parametrize(("name", "memory", "mebibytes", "message"), [
    ("uft_qwen3b", "12", "81559", "MEMORY=12: must be 80, 40 or 24 (GB of a GPU), or auto"),
    ("uft_qwen3b", "auto", "", "MEMORY=auto: nvidia-smi names no GPU; give MEMORY=80, 40 or 24"),
    ("uft_qwen3b", "auto", "NVIDIA-SMI has failed", "MEMORY=auto: nvidia-smi names no GPU"),
    *((name, "auto", "16384", "MEMORY=auto: a GPU here has 16384 MiB, and with less than 24 GB this script's run does "
       "not fit") for name in EXPECTED),
])
def test_where_no_setting_fits_nothing_starts(bash, tmp_path, name, memory, mebibytes, message):
    (tmp_path / "nvidia-smi").write_text(f"#!/usr/bin/env bash\necho '{mebibytes}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert bash(name, MEMORY=memory, PATH=path) == (1, [])
    assert f"error: {message}" in bash.errors[-1]


HOURS = [("vllm", "H100"), ("vllm", "A100-80"), ("torch", "H100"), ("torch", "A100-80"), ("vllm", "A100-40"),
         ("vllm", "RTX 4090")]  # as the head of a script names them


def told_hours(name: str) -> list[str]:
    text = " ".join((ROOT / "launch_scripts" / f"{name}.sh").read_text().replace("#", " ").split())
    number = r"([\d.]+)"
    return list(re.search(
        f"Hours: {number} on H100, {number} on A100 .with our engine {number} and {number}., {number} on A100 with "
        f"40 GB, {number} on RTX 4090: estimated, never run", text).groups())


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"eval_qwen3b"}))
def test_the_hours_of_a_script_are_those_of_the_plan(bash, name):
    for (engine, card), told in zip(HOURS, told_hours(name), strict=True):
        gigabytes, total = TABLE[card].gigabytes, 0.0
        for words, (_, _, model, _) in zip(bash(name, MEMORY=str(gigabytes))[1], EXPECTED[name], strict=True):
            num_processes, script, flags = parts(words)
            run = run_of(script, flags, num_processes, gigabytes, engine)
            total += hours(SHAPES[model], run, TABLE[card], int(flags["total_steps"]), 25)[1]
        assert total == pytest.approx(float(told), abs=0.051)


def test_the_readmes_table_says_what_the_scripts_say():
    text = (ROOT / "launch_scripts" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if ".sh` | " in line]
    told = {}
    for scripts, *cells in rows:
        for word in re.findall("`([^`]*)`", scripts):
            told[word.removesuffix(".sh") if word.endswith(".sh") else f"{word}_qwen3b"] = cells
    assert set(told) == set(EXPECTED) - {"eval_qwen3b"}
    for name, (gpus, *cells) in told.items():
        assert int(gpus) == EXPECTED[name][0][1]
        for gigabytes, cell in zip(CARDS, cells[:3], strict=True):
            lines = memory_lines(name, gigabytes)
            letter = " (o)" if "--offload" in lines[-1][0] else " (r)" if "--grad" in lines[-1][0] else ""
            assert cell == f"{max(gib for _, gib in lines)}{letter}"
        assert cells[3:] == [hours for (engine, _), hours in zip(HOURS, told_hours(name), strict=True)
                             if engine == "vllm"]


# ----- two halves -----


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
