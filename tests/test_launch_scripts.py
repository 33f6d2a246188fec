"""What the launch scripts and run.py start: the paper's recipe, in flags that the training scripts accept."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch_scripts import run
from tests.launching import ROOT
from training import eval as eval_script
from training import r3, rft, sft, stage, uft
from utils import distributed
from utils.checks import launch
from utils.tasks import countdown

SCRIPTS = {"rft": rft, "sft": sft, "stage": stage, "r3": r3, "uft": uft, "eval": eval_script}
QWEN3B = "Qwen/Qwen2.5-3B"

# The authors' defaults, flag -> value.
COMMON = {"max_prompt_length": 256, "max_response_length": 1024, "prompts_per_step": 256, "weight_decay": 0.01,
          "max_grad_norm": 1, "eval_every": 25, "save_every": 100, "beta1": 0.9}  # fmt: skip
GRPO = COMMON | {"total_steps": 500, "group_size": 4, "mini_batch_prompts": 64, "temperature": 1, "clip_eps": 0.2,
                 "kl_coef": 0.001, "entropy_coef": 0.001, "lr": 1e-6, "beta2": 0.999}  # fmt: skip
STAGED = {"hint_steps": 300, "hint_slices_max": 5, "sft_coef": 0.001}
UFT = GRPO | STAGED | {"p_high": 0.95, "p_low": 0.05}
SFT = COMMON | {"total_steps": 200, "mini_batch_prompts": 256, "lr": 1e-5, "warmup": 0.1, "beta2": 0.95,
                "max_length": 1024}  # fmt: skip
EVAL = {"max_prompt_length": 1024, "max_response_length": 1024}
AS_THE_MACHINE_NEEDS = {"zero_stage", "dtype", "gradient_checkpointing", "max_tokens_per_micro_batch", "kv_cache_gb",
                        "engine", "seed", "model", "data", "output_dir"}  # fmt: skip

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
              "meta-llama/Llama-3.2-1B": "1,235,814,400", "meta-llama/Llama-3.2-3B": "3,212,749,824"}  # fmt: skip
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" END >>"$RECORD"
exit "${STATUS:-0}"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that setup.sh finds complete, and whose `deepspeed` only writes down its words."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "deepspeed").write_text(STUB)
    (folder / "bin" / "deepspeed").chmod(0o755)
    for name in ("requirements.txt", "requirements-cpu.txt"):  # with a GPU, and without
        with (ROOT / name).open() as file:
            stamp = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout
        (folder / f".installed-{name}").write_text(stamp)
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
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        command = ["bash", str(ROOT / "launch_scripts" / f"{script}.sh"), *words]
        result = subprocess.run(command, cwd=tmp_path, env=inherited | own | variables, capture_output=True, text=True)
        assert "[setup]" not in result.stdout + result.stderr, "setup.sh takes the environment for incomplete"
        started = record.read_text().split("END\n")[:-1] if record.exists() else []
        return result.returncode, [one.splitlines() for one in started]

    return start


def parts(words: list[str]) -> tuple[int, str, dict[str, str]]:
    """(processes, training script, {flag: value}) of a `deepspeed` command; a flag without value has "", one with
    several has them joined by spaces."""
    assert words[0] == "--num_gpus" and words[2].startswith("training/")
    flags, name = {}, ""
    for word in words[3:]:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = ""
        else:
            flags[name] = f"{flags[name]} {word}".strip()
    return int(words[1]), Path(words[2]).stem, flags


def plan_of(words: list[str], monkeypatch, capsys) -> str:
    """The plan that the training script prints for these words, in this process; spaces are single."""

    def too_late(*_arguments, **_settings):
        raise AssertionError("--check is over before processes meet")

    processes, script, _ = parts(words)
    monkeypatch.setattr(distributed, "init", too_late)
    monkeypatch.setattr(os, "_exit", sys.exit)  # how a script ends
    monkeypatch.setattr(sys, "argv", [words[2], "--local_rank=0", *words[3:]])
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(SystemExit) as end:
        launch(SCRIPTS[script].main, SCRIPTS[script].Args)
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    return " ".join(output.out.split())


# ----- the scripts -----


def test_every_script_that_trains_or_evaluates_a_model_of_the_paper_is_held_to_the_recipe():
    paths = [*(ROOT / "launch_scripts").glob("*_qwen*.sh"), *(ROOT / "launch_scripts").glob("*_llama*.sh")]
    assert {path.stem for path in paths} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_script_states_the_recipe_and_its_plan_is_the_recipes(bash, data, monkeypatch, capsys, name):
    status, commands = bash(name, "--check")
    assert status == 0 and len(commands) == len(EXPECTED[name])
    for words, (script, processes, model, recipe) in zip(commands, EXPECTED[name], strict=True):
        found_processes, found_script, flags = parts(words)
        assert (found_processes, found_script) == (processes, script)
        assert flags.pop("check") == "" and (flags["data"], flags["model"], flags["seed"]) == ("countdown", model, "0")
        stated = {flag: float(value) for flag, value in flags.items() if flag not in AS_THE_MACHINE_NEEDS}
        assert stated == recipe

        words[words.index("--data") + 1] = str(data)  # smaller than the real one, which takes long to make
        plan = plan_of(words, monkeypatch, capsys)
        assert f"{script}: all checks passed" in plan and f"processes {processes} " in plan
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


def test_check_looks_at_both_halves_whatever_is_there(bash, run_py, tmp_path):
    half(tmp_path / "run" / "sft", "step_200")
    _, [first, second] = bash("sft_rft_qwen3b", "--check")
    assert parts(first)[2]["model"] == QWEN3B and parts(second)[2]["model"].endswith("/sft/checkpoints/step_200/hf")
    half(tmp_path / "runs" / "sft_rft_m_countdown_0" / "sft", "step_200")
    _, [first, second], _, _ = run_py("--algo sft_rft --data countdown --model m -- --check")
    assert "--model m " in first and "--model runs/sft_rft_m_countdown_0/sft/checkpoints/step_200/hf " in second


def test_overwrite_begins_both_halves_anew(bash, tmp_path):
    half(tmp_path / "run" / "sft", "step_200")
    half(tmp_path / "run" / "rft", "step_300")
    _, commands = bash("sft_rft_qwen3b", "--overwrite")
    assert [parts(words)[1] for words in commands] == ["sft", "rft"]
    assert all("--resume" not in words and "--overwrite" in words for words in commands)


# ----- run.py -----


@pytest.fixture
def run_py(tmp_path, monkeypatch, capsys):
    """run_py(line, statuses) -> (status, printed lines, started commands, stderr); runs are looked for in tmp_path."""

    def start(line: str, statuses: tuple[int, ...] = (0, 0)):
        started, left = [], list(statuses)

        def record(words, cwd, env):
            assert cwd == tmp_path and env["PATH"].startswith(f"{Path(sys.executable).parent}{os.pathsep}")
            started.append(shlex.join(words))
            return SimpleNamespace(returncode=left.pop(0))

        monkeypatch.setattr(run, "ROOT", tmp_path)
        monkeypatch.setattr(run.subprocess, "run", record)
        try:
            status = run.main(shlex.split(line))
        except SystemExit as end:
            status = end.code
        output = capsys.readouterr()
        return status, output.out.splitlines(), started, output.err

    return start


REST = ("--n_gpu 2 --visible-devices 0,1 --T 500 --T_hint 300 --tp_size 1 --sft_loss_coef 0.002 "
        "--model Qwen/Qwen2.5-0.5B")
LENGTHS = "--max_prompt_length 256 --max_response_length 1024 --kv_cache_gb 24"
RL = f"{LENGTHS} --total_steps 500 --group_size 4"


def words_of(script: str, run_name: str, flags: str, data: str = "countdown") -> str:
    return (f"deepspeed --include localhost:0,1 training/{script}.py --model Qwen/Qwen2.5-0.5B --data {data} "
            f"--output_dir runs/{run_name}_Qwen2.5-0.5B_{data}_3 --seed 3 {flags} --gradient_checkpointing")


GOLDEN = {
    "rft": words_of("rft", "rft", RL),
    "r3": words_of("r3", "r3", RL),
    "stage": words_of("stage", "stage", f"{RL} --hint_steps 300 --sft_coef 0.002"),
    "uft": words_of("uft", "uft", f"{RL} --hint_steps 300 --sft_coef 0.002"),
    "rft_cosine": words_of("uft", "rft_cosine", f"{RL} --hint_steps 300 --sft_coef 0"),
    "sft": words_of("sft", "sft", f"{LENGTHS} --total_steps 200"),
}


@pytest.mark.parametrize("algo", GOLDEN)
def test_the_authors_flags_stand_for_this_command(run_py, algo):
    status, printed, started, _ = run_py(f"--algo {algo} --data countdown {REST} --idx 3 --n_rollouts 4")
    assert (status, printed, started) == (0, [GOLDEN[algo]], [GOLDEN[algo]])


def test_both_halves_are_run_and_a_dry_run_only_prints(run_py):
    line = f"--algo sft_rft --data countdown {REST} --idx 3"
    status, printed, started, _ = run_py(line)
    assert status == 0 and printed == started and len(printed) == 2
    assert "/sft_rft_Qwen2.5-0.5B_countdown_3/sft --seed" in printed[0] and "--total_steps 200" in printed[0]
    model = "--model runs/sft_rft_Qwen2.5-0.5B_countdown_3/sft/checkpoints/step_200/hf"
    assert model in printed[1] and "training/rft.py" in printed[1]
    assert run_py(f"{line} --dry_run")[1:3] == (printed, [])
    checked = run_py(f"{line} -- --check")[1]
    assert [word.endswith("--check") for word in checked] == [True, True] and model not in checked[1]


@pytest.mark.parametrize(("there", "started"), HALVES)
def test_run_py_goes_on_with_two_halves_as_the_script_does(run_py, tmp_path, there, started):
    for script, checkpoint in there:
        half(tmp_path / "runs" / "sft_rft_m_countdown_0" / script, checkpoint)
    _, printed, _, _ = run_py("--algo sft_rft --data countdown --model m")
    assert [(line.split("training/")[1].split(".py")[0], next((how for how in ("resume", "overwrite")
             if line.endswith(f"--{how}")), "")) for line in printed] == started  # fmt: skip


def test_status_is_the_first_failing_commands(run_py):
    status, _, started, _ = run_py("--algo sft_rft --data countdown --model m", statuses=(2, 0))
    assert status == 2 and len(started) == 1
    assert run_py("--algo sft_rft --data countdown --model m", statuses=(0, 5))[0] == 5
    assert run_py("--algo uft --data countdown --model m", statuses=(-9,))[0] == 137  # killed


def test_other_data_has_long_prompts_and_five_epochs(run_py, tmp_path, data):
    _, [line], _, _ = run_py("--algo sft --data logic --model m --n_rollout 8")
    assert "--data kk_logic" in line and "--max_prompt_length 1024" in line and "--total_steps 88" in line
    (tmp_path / "mine").symlink_to(data)  # 256 rows
    _, [line], _, _ = run_py("--algo sft --data mine --model m")
    assert "runs/sft_m_mine_0 " in line and "--max_prompt_length 1024" in line and "--total_steps 5 " in line
    assert "--num_gpus 2" in line
    assert "--group_size 8" in run_py("--algo uft --data math --model m --n_rollout 8")[1][0]


def test_gpus_that_share_an_engine_take_vllm(run_py):
    _, [line], _, _ = run_py("--algo uft --data countdown --model m --n_gpu 4 --tp_size 2")
    assert "--engine vllm --tp_size 2" in line and "--num_gpus 4" in line


@pytest.mark.parametrize("algo", ["sft", "uft", "sft_rft"])
def test_eval_evaluates_the_latest_checkpoint_or_the_model_and_tells_which(run_py, tmp_path, algo):
    line = f"--algo {algo} --data countdown --model m --eval"
    _, [command], _, told = run_py(line)
    assert command == (f"deepspeed --num_gpus 2 training/eval.py --model m --data countdown --output_dir "
                       f"runs/{algo}_m_countdown_0_eval_base --seed 0 {LENGTHS}")
    assert told.startswith("evaluating --model m: there is no checkpoint in runs/")
    run_folder = f"runs/{algo}_m_countdown_0{'/rft' if algo == 'sft_rft' else ''}"
    half(tmp_path / run_folder, "step_25")
    _, [command], _, told = run_py(f"{line} -- --overwrite")
    assert f"--model {run_folder}/checkpoints/step_25/hf " in command and command.endswith(" --overwrite")
    assert f"runs/{algo}_m_countdown_0_eval_step_25 " in command and told == (
        f"evaluating {run_folder}/checkpoints/step_25/hf\n")


@pytest.mark.parametrize(("changes", "rule"), [
    ("--tp_size 3", "flag --tp_size 3: must divide --n_gpu 2"),
    ("--tp_size 0", "flag --tp_size 0: must divide --n_gpu 2"),
    ("--visible-devices 0,1,2", "flag --visible-devices 0,1,2: must name --n_gpu 2 devices"),
    ("--n_gpu 0", "flag --n_gpu 0: must be at least 1"),
    ("--data nowhere", "flag --data nowhere: must be countdown, math, logic, or a folder"),
    ("--algo ppo", "--algo: invalid choice: 'ppo'"),
    ("--total_steps 3", "unrecognized arguments: --total_steps 3"),  # belongs after --
    ("--T many", "--T: invalid int value: 'many'"),
])  # fmt: skip
def test_refused_input_of_run_py(run_py, changes, rule):
    status, printed, started, error = run_py(f"--algo uft --data countdown --model m {changes}")
    assert status == 2 and not printed and not started and rule in error


def test_words_after_the_dashes_are_the_training_scripts(run_py, data, tmp_path, monkeypatch, capsys):
    _, [line], _, _ = run_py(f"--algo uft --data countdown --model {QWEN3B} --n_gpu 4 -- --check --total_steps 9")
    assert line.endswith("--check --total_steps 9")
    words = line.replace("--data countdown", f"--data {data}").replace(
        "--output_dir runs", f"--output_dir {tmp_path}").split()[1:]
    assert "steps 9 rollouts per step 256 prompts x 4 responses = 1024" in plan_of(words, monkeypatch, capsys)
