"""What run.py, the authors' command line, starts."""

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch_scripts import run
from tests.scripts.test_launch_scripts import HALVES, QWEN3B, WORDS, half, plan_of
from utils.tasks import countdown
from utils.tasks.registry import BUILT_IN


@pytest.fixture
def run_py(tmp_path, monkeypatch, capsys):
    """run_py(line, statuses) -> (status, printed commands, started commands, stderr); runs are looked for in tmp_path.
    `run_py.first` is the first line of the last call, which says what was chosen; `run_py.environment` what its last
    command got."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "MASTER_PORT", "LAUNCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run.shutil, "which", lambda _name: None)  # nvidia-smi

    def start(line: str, statuses: tuple[int, ...] = (0, 0)):
        started, left = [], list(statuses)

        def record(words, cwd, env):
            assert cwd == tmp_path and env["PATH"].startswith(f"{Path(sys.executable).parent}{os.pathsep}")
            started.append(shlex.join(words))
            start.environment = env
            return SimpleNamespace(returncode=left.pop(0))

        monkeypatch.setattr(run, "ROOT", tmp_path)
        monkeypatch.setattr(run.subprocess, "run", record)
        try:
            status = run.main(shlex.split(line))
        except SystemExit as end:
            status = end.code
        output = capsys.readouterr()
        start.first, *commands = output.out.splitlines() or [""]
        assert not output.out or start.first.startswith("# ")
        return status, commands, started, output.err

    return start


REST = ("--n_gpu 2 --visible-devices 0,1 --T 500 --T_hint 300 --tp_size 1 --sft_loss_coef 0.002 "
        "--model Qwen/Qwen2.5-0.5B")
LENGTHS = "--max_prompt_length 256 --max_response_length 1024 --kv_cache_gb 24"
RL = f"{LENGTHS} --total_steps 500 --group_size 4"


def words_of(script: str, run_name: str, flags: str, data: str = "countdown") -> str:
    return (f"deepspeed --quiet --include localhost:0,1 training/{script}.py --model Qwen/Qwen2.5-0.5B --data {data} "
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


def test_check_looks_at_both_halves_whatever_is_there(run_py, tmp_path):
    half(tmp_path / "runs" / "sft_rft_m_countdown_0" / "sft", "step_200")
    _, [first, second], _, _ = run_py("--algo sft_rft --data countdown --model m -- --check")
    assert "--model m " in first and "--model runs/sft_rft_m_countdown_0/sft/checkpoints/step_200/hf " in second


@pytest.mark.parametrize(("there", "started"), HALVES)
def test_run_py_goes_on_with_two_halves_as_the_script_does(run_py, tmp_path, there, started):
    for script, checkpoint in there:
        half(tmp_path / "runs" / "sft_rft_m_countdown_0" / script, checkpoint)
    _, printed, _, _ = run_py("--algo sft_rft --data countdown --model m")
    assert [(line.split("training/")[1].split(".py")[0], next((how for how in ("resume", "overwrite")
             if line.endswith(f"--{how}")), "")) for line in printed] == started


def test_status_is_the_first_failing_commands(run_py):
    status, _, started, _ = run_py("--algo sft_rft --data countdown --model m", statuses=(2, 0))
    assert status == 2 and len(started) == 1
    assert run_py("--algo sft_rft --data countdown --model m", statuses=(0, 5))[0] == 5
    assert run_py("--algo uft --data countdown --model m", statuses=(-9,))[0] == 137  # killed


def test_other_data_has_long_prompts_and_five_epochs(run_py, tmp_path):
    _, [line], _, _ = run_py("--algo sft --data logic --model m --n_rollout 8")
    assert "--data kk_logic" in line and "--max_prompt_length 1024" in line and "--total_steps 88" in line
    countdown.build(tmp_path / "mine", train_problems=256, test_problems=16)
    _, [line], _, _ = run_py("--algo sft --data mine --model m")
    assert "runs/sft_m_mine_0 " in line and "--max_prompt_length 1024" in line and "--total_steps 5 " in line
    assert "--num_gpus 1 " in line
    assert "--group_size 8" in run_py("--algo uft --data math --model m --n_rollout 8")[1][0]


def test_gpus_that_share_an_engine_take_vllm(run_py):
    _, [line], _, _ = run_py("--algo uft --data countdown --model m --n_gpu 4 --tp_size 2")
    assert "--engine vllm --tp_size 2" in line and "--num_gpus 4" in line


@pytest.mark.parametrize("algo", ["sft", "uft", "sft_rft"])
def test_eval_evaluates_the_latest_checkpoint_or_the_model_and_tells_which(run_py, tmp_path, algo):
    line = f"--algo {algo} --data countdown --model m --eval"
    _, [command], _, _ = run_py(line)
    assert command == (f"deepspeed --quiet --num_gpus 1 training/eval.py --model m --data countdown --output_dir "
                       f"runs/{algo}_m_countdown_0_eval_base --seed 0 {LENGTHS}")
    assert run_py.first.startswith(f"# evaluation of m (there is no checkpoint in runs/{algo}_m_countdown_0) on ")
    run_folder = f"runs/{algo}_m_countdown_0{'/rft' if algo == 'sft_rft' else ''}"
    half(tmp_path / run_folder, "step_25")
    _, [command], _, _ = run_py(f"{line} -- --overwrite")
    assert f"--model {run_folder}/checkpoints/step_25/hf " in command and command.endswith(" --overwrite")
    assert f"runs/{algo}_m_countdown_0_eval_step_25 " in command
    assert "--max_prompt_length 0 --max_response_length 0 " in command  # those of the run
    assert run_py.first.startswith(f"# evaluation of {run_folder}/checkpoints/step_25/hf on countdown: ")


@pytest.mark.parametrize(("changes", "rule"), [
    ("--n_gpu 2 --tp_size 3", "flag --tp_size 3: must divide --n_gpu 2"),
    ("--n_gpu 2 --tp_size 0", "flag --tp_size 0: must divide --n_gpu 2"),
    ("--tp_size 2", "flag --tp_size 2: must divide --n_gpu 1"),
    ("--n_gpu 2 --visible-devices 0,1,2", "flag --visible-devices 0,1,2: must name --n_gpu 2 devices"),
    ("--visible-devices 1,1", "flag --visible-devices 1,1: must name --n_gpu 2 devices"),
    ("--visible-devices 0:1", "flag --visible-devices 0:1: must be numbers of GPUs, as 0,1"),
    ("--n_gpu 0", "flag --n_gpu 0: must be at least 1"),
    ("--data nowhere", "flag --data nowhere: must be countdown, math, kk_logic (or logic), or a folder"),
    ("--data others", "flag --data others: is for --eval only, there is nothing to train on"),
    ("--data gsm8k", "flag --data gsm8k: is for --eval only, there is nothing to train on"),
    ("--algo sft_rft -- --model other", "flag --model other: sft_rft has two of them, one for each half"),
    ("--algo sft_rft -- --output-dir=o", "flag --output_dir o: sft_rft has two of them, one for each half"),
    ("--algo ppo", "--algo: invalid choice: 'ppo'"),
    ("--total_steps 3", "unrecognized arguments: --total_steps 3"),  # belongs after --
    ("--T many", "--T: invalid int value: 'many'"),
])
def test_refused_input_of_run_py(run_py, changes, rule):
    status, printed, started, error = run_py(f"--algo uft --data countdown --model m {changes}")
    assert status == 2 and not printed and not started and rule in error


README_TRAINING = "--model Qwen/Qwen2.5-1.5B --data countdown"  # of the authors' README, word for word


def test_the_authors_example_trains_uft_on_one_gpu_and_the_first_line_says_so(run_py):
    training = ("deepspeed --quiet --num_gpus 1 training/uft.py --model Qwen/Qwen2.5-1.5B --data countdown "
                f"--output_dir runs/uft_Qwen2.5-1.5B_countdown_0 --seed 0 {RL} --hint_steps 300 --sft_coef 0.001 "
                "--gradient_checkpointing")
    assert run_py(README_TRAINING)[:3] == (0, [training], [training])
    assert run_py.first == ("# uft on countdown with Qwen/Qwen2.5-1.5B: 1 GPU, 500 steps of 256 prompts x 4 responses, "
                            "hints until step 300, seed 0, into runs/uft_Qwen2.5-1.5B_countdown_0")
    assert run_py("")[1] == [training]
    assert run_py(f"{README_TRAINING} --n_rollout 2")[1] == [training.replace("--group_size 4", "--group_size 2")]


def test_the_authors_example_of_evaluation_evaluates(run_py):
    _, [command], _, _ = run_py(f"{README_TRAINING} --eval")
    assert command == ("deepspeed --quiet --num_gpus 1 training/eval.py --model Qwen/Qwen2.5-1.5B --data countdown "
                       f"--output_dir runs/uft_Qwen2.5-1.5B_countdown_0_eval_base --seed 0 {LENGTHS}")


def test_others_are_the_eight_test_sets_in_one_call(run_py):
    _, [command], _, _ = run_py("--model Qwen/Qwen2.5-1.5B --data others --eval")
    words = shlex.split(command)
    names = words[words.index("--data") + 1 : words.index("--output_dir")]
    assert names == ["countdown", "math", "gsm8k", "aime24", "amc", "math500", "minerva", "olympiad_bench"]
    assert set(names) <= set(BUILT_IN)
    assert "--max_prompt_length 1024" in command and "/uft_Qwen2.5-1.5B_others_0_eval_base " in command
    assert "--data gsm8k --output_dir" in run_py("--data gsm8k --eval")[1][0]


def test_logic_has_two_names_and_help_tells_both(run_py, capsys):
    assert run_py("--data kk_logic")[1] == run_py("--data logic")[1]
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert "kk_logic (or logic)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("given", "taken"), [
    ("Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"), ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"), ("gpt2", "gpt2"),
    ("./Qwen2.5-1.5B", "./Qwen2.5-1.5B"), ("mine/Qwen2.5-1.5B", "mine/Qwen2.5-1.5B"),
])
def test_models_of_the_paper_do_without_their_organisation(run_py, given, taken):
    assert f" --model {taken} " in run_py(f"--model {given}")[1][0]


def test_a_local_folder_of_that_name_is_the_model(run_py, tmp_path):
    (tmp_path / "Qwen2.5-1.5B").mkdir()
    assert " --model Qwen2.5-1.5B " in run_py("--model Qwen2.5-1.5B")[1][0]


def test_evaluations_of_several_checkpoints_have_folders_of_their_own(run_py):
    _, [command], _, _ = run_py("--model runs/mine/checkpoints/step_500/hf --data others --eval")
    assert " --output_dir runs/uft_mine_step_500_others_0_eval_base " in command


def test_devices_that_are_named_are_counted(run_py):
    assert "deepspeed --quiet --include localhost:2,3 " in run_py("--visible-devices 2,3")[1][0]
    assert ": 2 GPUs (2,3), " in run_py.first


def test_devices_of_the_environment_are_used_and_not_the_machines_first(run_py, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert "--include localhost:5 " in run_py("")[1][0]
    assert "--include localhost:5,6 " in run_py("--n_gpu 2")[1][0]
    assert "--include localhost:0,1 " in run_py("--visible-devices 0,1")[1][0]
    assert "flag --n_gpu 4: CUDA_VISIBLE_DEVICES=5,6,7 names fewer" in run_py("--n_gpu 4")[3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert "DeepSpeed knows GPUs by number" in run_py("")[3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "--num_gpus 1 " in run_py("")[1][0]


def test_port_and_words_for_the_launcher_are_those_of_the_environment(run_py, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "31000")
    assert "deepspeed --quiet --master_port 31000 --num_gpus 1 training/" in run_py("")[1][0]
    monkeypatch.setenv("LAUNCH", "--hostfile hosts  --num_nodes 2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert "deepspeed --quiet --master_port 31000 --hostfile hosts --num_nodes 2 training/" in run_py("")[1][0]
    assert ": --hostfile hosts --num_nodes 2, 500 steps of " in run_py.first
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert " --num_nodes 2 training/" in run_py("--n_gpu 4")[1][0]


@pytest.mark.parametrize(("build", "path", "visible", "accelerator"), [
    ("2.13.0", None, "", "cpu"), ("2.13.0", None, "-1", "cpu"), ("2.13.0", None, "0", None),
    ("2.13.0+cpu", None, "0", "cpu"), ("2.13.0+cpu", "/bin/nvidia-smi", "0", None),
])
def test_the_cpu_is_taken_where_no_gpu_shall_be_visible(run_py, monkeypatch, build, path, visible, accelerator):
    monkeypatch.setattr(run.importlib.metadata, "version", lambda name: {"torch": build}[name])
    monkeypatch.setattr(run.shutil, "which", {"nvidia-smi": path}.get)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run_py("")
    assert run_py.environment.get("DS_ACCELERATOR") == accelerator


@pytest.mark.parametrize(("build", "accelerator"), [("2.13.0+cpu", "cpu"), ("2.13.0", None)])
def test_verbose_lets_the_launcher_speak(run_py, monkeypatch, build, accelerator):
    monkeypatch.setattr(run.importlib.metadata, "version", lambda name: {"torch": build}[name])
    quiet = run_py("")[1][0]
    assert "--quiet" in quiet and run_py.environment.get("DS_ACCELERATOR") == accelerator
    assert run_py("--verbose")[1] == [quiet.replace(" --quiet", "")] and "DS_ACCELERATOR" not in run_py.environment
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    run_py("")
    assert run_py.environment["DS_ACCELERATOR"] == "cuda"


@pytest.mark.parametrize("words", WORDS)
def test_the_second_half_begins_where_the_overruled_first_one_ends(run_py, words):
    _, [first, second], _, _ = run_py(f"--algo sft_rft --data countdown --model m -- {words}")
    assert first.endswith(words) and second.endswith(words)
    assert "--model runs/sft_rft_m_countdown_0/sft/checkpoints/step_10/hf " in second
    assert run_py.first.endswith(f"; but as these flags say: {words}")


def test_five_epochs_of_math_are_five(run_py):
    assert "--total_steps 109 " in run_py("--algo sft --data math")[1][0]
    assert "109 steps of 256 solutions (5 epochs)" in run_py.first


def test_words_after_the_dashes_are_the_training_scripts(run_py, tmp_path, monkeypatch, capsys):
    countdown.build(tmp_path / "mine", train_problems=256, test_problems=16)
    _, [line], _, _ = run_py(f"--algo uft --data countdown --model {QWEN3B} --n_gpu 4 -- --check --total_steps 9")
    assert line.endswith("--check --total_steps 9")
    words = line.replace("--data countdown", f"--data {tmp_path}/mine").replace(
        "--output_dir runs", f"--output_dir {tmp_path}").split()[1:]
    assert "steps 9 rollouts per step 256 prompts x 4 responses = 1024" in plan_of(words, monkeypatch, capsys)
