"""The scripts as users start them, on a tiny model: what a run writes, and what its numbers must not depend on."""

import fcntl
import gzip
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import (
    evaluation_lines,
    launch,
    launch_in_turn,
    start,
    start_in_turn,
    succeed,
    survivors,
    training_lines,
    wait_for,
    without_times,
)
from tests.helpers.models import own_loss
from training import r3, stage, uft
from utils import cpu_linear
from utils.data import load_problems, problems_of_step
from utils.manifest import damage, files_in
from utils.prompts import encode
from utils.run import logger, processes
from utils.run.launcher import stat

pytestmark = pytest.mark.slow

TRAINING_FIELDS = {
    "step", "reward", "accuracy", "format", "loss", "pg_loss", "kl_loss", "entropy", "sft_loss", "grad_norm",
    "skipped_updates", "lr", "hint_slices", "hint_tokens", "response_tokens", "truncated", "flat_groups",
    "logprob_mismatch", "tokens_per_second",
    "seconds/sync", "seconds/rollout", "seconds/reward", "seconds/logprobs", "seconds/update",
}
COUNTED = ("reward", "accuracy", "format", "hint_slices", "hint_tokens", "response_tokens", "truncated", "flat_groups")
TOLERANCE = {"rel": CLOSE["rtol"], "abs": CLOSE["atol"]}
STEPS, HINT_STEPS, PROMPTS, RESPONSE_LENGTH = 4, 2, 16, 48
SLOW_STEP = "tests/workers/slow_step.py"
EXACT = ("uft", "sft", "stage", "r3", "rft")
HINTED = {"stage": {"hint_steps": 6, "sft_coef": 0.1}, "r3": {}}  # stage, two chunks: three stages of two steps


@pytest.fixture(scope="module")
def flags(base_model, countdown_data):
    """Of every run here, sft apart: four steps of two updates, hints in the first two."""
    return {
        "model": base_model, "data": countdown_data, "seed": 1, "total_steps": STEPS, "eval_every": 2,
        "eval_problems": 20, "save_every": 2, "prompts_per_step": PROMPTS, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": RESPONSE_LENGTH, "max_tokens_per_micro_batch": 320, "lr": 1e-3,
        "kl_coef": 0.1, "entropy_coef": 0.01,
    }


@pytest.fixture(scope="module")
def uft_flags(flags):
    return flags | {"hint_steps": HINT_STEPS, "p_high": 0.9, "p_low": 0.7, "sft_coef": 0.1}


@pytest.fixture(scope="module")
def uft_launch(tmp_path_factory, uft_flags):
    """UFT on two processes under ZeRO-3, with a dry run and a profile, which change no number: its folder, and what it
    printed."""
    output_dir = tmp_path_factory.mktemp("uft") / "run"
    more = {"zero_stage": 3, "probe_memory": "always", "dump_batch": True, "output_dir": output_dir,
            "profile_steps": "2:3"}
    return output_dir, succeed(launch("training/uft.py", uft_flags | more, num_processes=2)).stdout


@pytest.fixture(scope="module")
def uft_run(uft_launch):
    return uft_launch[0]


@pytest.fixture(scope="module")
def few_data(tmp_path_factory, countdown_data):
    """As many demonstrations as a step takes."""
    folder = tmp_path_factory.mktemp("few") / "data"
    shutil.copytree(countdown_data, folder)
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, PROMPTS), folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def exact_flags(flags, uft_flags, exact_base_model, few_data):
    """{name of a script: flags} of the runs in float64."""
    of_sft = {"data": few_data, "total_steps": 4, "lr": 1e-3, "warmup": 0.25, "eval_every": 4, "eval_problems": 4,
              "prompts_per_step": PROMPTS, "max_prompt_length": 64, "mini_batch_prompts": PROMPTS,
              "max_response_length": 8, "max_length": 64, "max_tokens_per_micro_batch": 200, "zero_stage": 2}
    own = {"uft": uft_flags | {"zero_stage": 3}, "sft": of_sft,
           **{name: flags | more | {"zero_stage": 3, "eval_every": 4} for name, more in HINTED.items()},
           "rft": flags | {"zero_stage": 1, "eval_every": 4}}
    return {name: of_script | {"model": exact_base_model} for name, of_script in own.items()}


@pytest.fixture(scope="module")
def exact_runs(tmp_path_factory, exact_flags, countdown_data):
    """{name: folder} of runs in float64 on two processes, one after another: uft as above, sft, stage, r3, rft, and an
    evaluation of what uft has made."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in (*exact_flags, "eval")}
    own = exact_flags | {"sft": exact_flags["sft"] | {"profile_steps": 4}}
    runs = [(f"training/{name}.py", own[name] | {"output_dir": folders[name]}) for name in own]
    runs.append(("training/eval.py", eval_flags(folders["uft"], folders["eval"], countdown_data)))
    succeed(launch_in_turn(runs, 2, **IN_FLOAT64))
    return folders


@pytest.fixture(scope="module")
def exact_run(exact_runs):
    return exact_runs["uft"]


@pytest.fixture(scope="module")
def exact_alone_runs(tmp_path_factory, exact_flags):
    """The same cut in another way, on one process."""
    folders = {name: tmp_path_factory.mktemp(name) / "alone" for name in exact_flags}
    other = {"zero_stage": 0, "max_tokens_per_micro_batch": 900}
    runs = [(f"training/{name}.py", of_script | other | ({} if name == "sft" else {"share_prefix": False})
             | {"output_dir": folders[name]}) for name, of_script in exact_flags.items()]
    succeed(start_in_turn(runs, **IN_FLOAT64))
    return folders


@pytest.fixture(scope="module")
def exact_alone(exact_alone_runs):
    return exact_alone_runs["uft"]


def eval_flags(run, output_dir, data):
    return {"model": run / "checkpoints" / "step_4" / "hf", "data": data, "eval_problems": 20,
            "output_dir": output_dir, "max_prompt_length": 64, "max_response_length": RESPONSE_LENGTH}


# ----- what a run writes -----


def test_training_lines_have_every_field_of_the_contract(uft_run):
    lines = training_lines(uft_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert set(line) >= TRAINING_FIELDS
        told = {re.sub(r"slices_\d+$", "slices_N", name) for name in line}
        assert told <= {"step", *logger.TRAINING_FIELDS, *logger.MORE_FIELDS}  # every name is explained
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in line.values())
        assert line["lr"] == 1e-3 and line["grad_norm"] > 0 and line["entropy"] > 0 and line["tokens_per_second"] > 0
        assert line["state_grad_norm/response"] > 0 and (line["state_grad_norm/hint"] > 0) == (line["hint_tokens"] > 0)
        assert line["groups_all_right"] + line["groups_all_wrong"] < 1 and (line["hint_share"] > 0) == (
            line["hint_tokens"] > 0)
        assert sum(value for name, value in line.items() if name.startswith("rollouts/slices_")) == 4 * PROMPTS
        assert line["kl_loss"] > 0  # the second update of a step is off the reference
        assert line["flat_groups"] < 1 and 0 < line["accuracy"] < line["format"]  # else these runs would show little


def test_evaluation_lines_stand_before_during_and_after(uft_run):
    lines = evaluation_lines(uft_run)
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all({"eval/accuracy", "eval/format", "eval/response_tokens"} <= set(line) for line in lines)
    assert all(line["eval/n"] == 20 for line in lines)
    assert len({line["eval/response_tokens"] for line in lines}) > 1  # the engine followed the actor


def test_run_folder_has_the_files_of_the_contract(uft_run, uft_flags):
    args = json.loads((uft_run / "args.json").read_text())
    assert {name: args[name] for name in uft_flags if name not in ("model", "data")} == {
        name: value for name, value in uft_flags.items() if name not in ("model", "data")}
    environment = json.loads((uft_run / "environment.json").read_text())
    assert environment["world_size"] == 2 and environment["versions"]["torch"] == torch.__version__
    assert {"commit", "diff"} <= set(environment["git"]) and environment["hardware"]["cores"]
    samples = [json.loads(line) for line in (uft_run / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples if one["kind"] == "evaluation"] == [0] * 8 + [2] * 8 + [4] * 8
    assert [(one["step"], one["sample"]) for one in samples if one["kind"] == "training"] == [
        (step, sample) for step in (2, 4) for sample in range(4)]  # a group each
    assert all(one["hint"] == "" for one in samples if one["kind"] == "evaluation")
    assert any(one["hint"] for one in samples if one["kind"] == "training")
    assert Image.open(uft_run / "curves.png").size > (500, 300)
    checkpoints = uft_run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_2", "step_4"]
    assert (checkpoints / "latest").read_text().strip() == "step_4"
    for name in ("step_2", "step_4"):
        assert (checkpoints / name / "hf" / "model.safetensors").is_file()
        assert any((checkpoints / name / "state").iterdir())
        files = json.loads((checkpoints / name / "manifest.json").read_text())["files"]
        assert list(files) == sorted(str(path.relative_to(checkpoints / name)) for path in files_in(checkpoints / name))
        assert damage(checkpoints / name, with_hashes=True) is None


def test_hints_are_those_of_the_schedule_and_end_with_it(uft_run, uft_flags, base_model, countdown_data):
    problems, tokenizer = load_problems(str(countdown_data), "train"), AutoTokenizer.from_pretrained(base_model)
    args = uft.Args(**uft_flags, output_dir="")
    for line in training_lines(uft_run):
        chosen = problems_of_step(problems, line["step"], PROMPTS, args.seed)
        hints = [uft.draw_hint(problem, line["step"], args) for problem in chosen]
        assert line["hint_slices"] == pytest.approx(sum(map(len, hints)) / PROMPTS)
        assert line["hint_tokens"] == pytest.approx(
            sum(len(encode("".join(hint), tokenizer)) for hint in hints) / PROMPTS)
        shown = line["step"] <= HINT_STEPS
        assert (line["hint_slices"] > 0) == (line["sft_loss"] > 0) == (line["hint_tokens"] > 0) == shown


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("name", HINTED)
def test_stage_and_r3_train_with_the_hints_of_their_schedules(exact_runs, flags, countdown_data, name):
    script, hint_of = {"stage": (stage, stage.stage_hint), "r3": (r3, r3.draw_hint)}[name]
    args = script.Args(**flags | HINTED[name], output_dir="")
    problems, lines = load_problems(str(countdown_data), "train"), training_lines(exact_runs[name])
    shown = [[len(hint_of(problem, line["step"], args))
              for problem in problems_of_step(problems, line["step"], PROMPTS, args.seed)] for line in lines]
    assert [line["hint_slices"] for line in lines] == pytest.approx([sum(of_step) / PROMPTS for of_step in shown])
    if name == "stage":
        assert [line["hint_slices"] for line in lines] == [2, 1, 1, 0]
    else:
        assert all(set(of_step) == {0, 1, 2} for of_step in shown)
    for line in lines:
        assert set(line) >= TRAINING_FIELDS and line["grad_norm"] > 0 and line["logprob_mismatch"] < CLOSE["atol"]
        assert (line["sft_loss"] > 0) == (name == "stage" and line["hint_slices"] > 0)
    assert [line["step"] for line in evaluation_lines(exact_runs[name])] == [0, 4]


@pytest.mark.slow
@pytest.mark.numerics
def test_loss_is_the_formula_over_its_terms(exact_run, uft_flags):
    for line in training_lines(exact_run):
        terms = (line["pg_loss"] + uft_flags["kl_coef"] * line["kl_loss"] - uft_flags["entropy_coef"] * line["entropy"]
                 + uft_flags["sft_coef"] * line["sft_loss"])
        assert line["loss"] == pytest.approx(terms, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.numerics
def test_engine_samples_from_the_actor(uft_run, exact_run, exact_alone):
    """In float32 too: it rounds to 6e-8, some 900 additions follow one another, as a random walk 30 times that, of
    log-probabilities of up to 5 nats."""
    for run in (exact_run, exact_alone):
        assert all(line["logprob_mismatch_max"] < CLOSE["atol"] for line in training_lines(run))
    assert all(line["logprob_mismatch"] < 1e-5 for line in training_lines(uft_run))


def table_of(profile, name):
    """{phase: the words of its row} of a profile."""
    rows = (profile / name).read_text().splitlines()
    start = next(number for number, row in enumerate(rows) if row.startswith("phase"))
    return {row.split()[0]: row.split()[1:] for row in rows[start + 1 : -1]}


def test_the_first_process_traces_the_steps_that_are_asked_for(uft_launch):
    profile = uft_launch[0] / "profile"
    assert sorted(path.name for path in profile.iterdir()) == ["steps_2_to_3.json.gz", "steps_2_to_3.txt"]
    with gzip.open(profile / "steps_2_to_3.json.gz") as file:
        events = json.load(file)["traceEvents"]
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for phase in ("sync", "rollout", "reward", "logprobs", "update"):
        assert marks.count(phase) == 2
    products = "mkldnn" if cpu_linear.TAKES_ONEDNN else "aten::mm"
    assert sum(products in event["name"] for event in events) > 100
    assert "rank 0 of 2" in uft_launch[1] and "rank 1 of 2" not in uft_launch[1]


def test_the_table_of_a_profile_has_seconds_and_flops_by_phase(uft_launch):
    run, table = uft_launch[0], table_of(uft_launch[0] / "profile", "steps_2_to_3.txt")
    assert list(table) == ["sync", "rollout", "reward", "logprobs", "update", "step"]
    profiled = [line for line in training_lines(run) if line["step"] in (2, 3)]
    for phase in ("rollout", "logprobs", "update"):
        seconds, _, work, rate, share = (float(word.rstrip("%")) for word in table[phase])
        assert seconds == pytest.approx(sum(line[f"seconds/{phase}"] for line in profiled) / 2, rel=0.1, abs=0.01)
        assert rate == pytest.approx(work / seconds, rel=0.2) and 0 < share < 100
    # The update's forward pass and twice that; old and reference log-probabilities, and a few tokens more.
    rollout, logprobs, update = (float(table[phase][2]) for phase in ("rollout", "logprobs", "update"))
    assert update == pytest.approx(3 * rollout, abs=0.02) and 2 * rollout - 0.02 < logprobs < 3.1 * rollout
    assert table["sync"][2:] == table["reward"][2:] == ["-"] * 3


def test_sft_has_a_profile_too(exact_runs):
    assert list(table_of(exact_runs["sft"] / "profile", "steps_4_to_4.txt")) == ["batch", "update", "step"]


# ----- what numbers must not depend on -----


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("name", EXACT)
def test_processes_zero_stage_and_packing_leave_every_number_as_it_is(exact_runs, exact_alone_runs, name):
    lines, others = training_lines(exact_runs[name]), training_lines(exact_alone_runs[name])
    assert len(lines) == len(others) == STEPS
    for line, other in zip(lines, others, strict=True):
        line, other = without_times(line), without_times(other)
        for counted in () if name == "sft" else COUNTED:
            assert line[counted] == pytest.approx(other[counted], rel=1e-12)  # sums in another order
        for mismatch in ("logprob_mismatch", "logprob_mismatch_max"):
            line.pop(mismatch, None), other.pop(mismatch, None)
        assert line == pytest.approx(other, **TOLERANCE)
    for line, other in zip(*map(evaluation_lines, (exact_runs[name], exact_alone_runs[name])), strict=True):
        assert line == pytest.approx(other, **TOLERANCE)


def test_uft_without_hints_and_rft_are_the_same_run(tmp_path, flags):
    """Also: without kl_coef there is no reference to diverge from, and an overwritten run leaves no trace."""
    short = flags | {"total_steps": 2, "kl_coef": 0, "zero_stage": 0}
    (tmp_path / "rft" / "checkpoints" / "step_7").mkdir(parents=True)
    (tmp_path / "rft" / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    (tmp_path / "rft" / "notes.txt").write_text("mine")
    succeed(start_in_turn([
        ("training/rft.py", short | {"output_dir": tmp_path / "rft", "overwrite": True}),
        ("training/uft.py", short | {"p_low": 0, "p_high": 0, "output_dir": tmp_path / "uft"}),
    ]))
    assert (tmp_path / "rft" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "rft" / "checkpoints").iterdir()) == ["latest", "step_2"]
    lines = training_lines(tmp_path / "rft")
    assert [without_times(line) for line in lines] == [without_times(line) for line in training_lines(tmp_path / "uft")]
    assert evaluation_lines(tmp_path / "rft") == evaluation_lines(tmp_path / "uft")
    assert len(lines) == 2
    assert all(line["kl_loss"] == line["sft_loss"] == line["hint_slices"] == 0 for line in lines)
    assert all(line["flat_groups"] < 1 and line["grad_norm"] > 0 for line in lines)


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, uft_run):
    """Killed while step 4 was written: step 3 is logged, step 4 torn, its checkpoint half there; that of step 2 has no
    model, as after a kill between the two."""
    killed = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(uft_run, killed)
    checkpoints = killed / "checkpoints"
    (checkpoints / "step_4").rename(checkpoints / ".step_4.partial")
    (checkpoints / ".step_3.partial").mkdir()  # of an earlier attempt
    shutil.rmtree(checkpoints / ".step_4.partial" / "hf")
    manifest = json.loads((checkpoints / "step_2" / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if not name.startswith("hf/")}
    (checkpoints / "step_2" / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(checkpoints / "step_2" / "hf")
    (checkpoints / "latest").write_text("step_2\n")
    lines = (uft_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    numbers = [json.loads(line)["step"] for line in lines]
    (killed / "metrics.jsonl").write_text("".join(lines[: numbers.index(4)]) + lines[numbers.index(4)][:30])
    return killed


@pytest.fixture(scope="module")
def stopped_flags(tmp_path_factory, uft_flags):
    """Of a run that keeps one checkpoint, and whose launcher got SIGTERM in the rollout of step 2, which takes longer
    than the 30 seconds that the launcher gives to a process."""
    output_dir = tmp_path_factory.mktemp("stopped") / "run"
    flags = uft_flags | {"zero_stage": 3, "save_every": 9, "keep_last": 1, "output_dir": output_dir}
    result = launch(SLOW_STEP, flags | slow(2, "rollout"), 2, fault=lambda: stop(output_dir, 2, "rollout", to_launcher))
    assert "SIGTERM: step 2 is given up" in result.stderr and "2 steps at most would be lost" in result.stderr
    assert "interrupted after step 1, saved; go on with --resume" in result.stdout and survivors(result) == []
    [saved] = (output_dir / "checkpoints").glob("step_*")
    assert saved.name == "step_1" and damage(saved, with_hashes=True) is None and (saved / "hf").is_dir()
    return flags


def slow(step: int, phase: str) -> dict:
    return {"script": "training/uft.py", "slow": f"{step} {phase} 2.5"}


def stop(output_dir: Path, step: int, phase: str, ask: Callable[[Path, int], None]) -> None:
    """`ask` the run to stop, as soon as its second process is in that phase: with its number."""
    heartbeat = output_dir / ".heartbeat" / "rank_1"
    wait_for(heartbeat, f'"step": {step}, "phase": "{phase}"')
    ask(output_dir, json.loads(heartbeat.read_text().rstrip())["process"])


def to_launcher(_output_dir: Path, process: int) -> None:
    os.kill(int(stat(Path("/proc", str(process)))[1]), signal.SIGTERM)


def to_rank(_output_dir: Path, process: int) -> None:
    os.kill(process, signal.SIGINT)


def by_file(output_dir: Path, _process: int) -> None:
    (output_dir / "stop").touch()


@pytest.fixture(scope="module")
def resumed_runs(killed_run, uft_flags, stopped_flags):
    """What they print that go on, one after the other: the killed one; and the stopped one, which is stopped again in
    every other phase, and then goes on to the end."""
    stops = [(3, "logprobs", to_rank), (4, "update", by_file), (4, "evaluation", to_rank)]
    runs = [("training/uft.py", uft_flags | {"zero_stage": 3, "output_dir": killed_run})]
    runs += [(SLOW_STEP, stopped_flags | slow(step, phase)) for step, phase, _ in stops]
    runs.append(("training/uft.py", stopped_flags | {"probe_memory": "always"}))

    def stop_all() -> None:
        for step, phase, ask in stops:
            stop(stopped_flags["output_dir"], step, phase, ask)
            wait_for(stopped_flags["output_dir"] / "checkpoints" / "latest", f"step_{step - (phase != 'evaluation')}")

    runs = [(script, flags | {"resume": True}) for script, flags in runs]
    return succeed(launch_in_turn(runs, 2, fault=stop_all)).stdout


def test_killed_and_resumed_run_goes_on_exactly(killed_run, resumed_runs, uft_run):
    checkpoints = killed_run / "checkpoints"
    assert f"resumed from {checkpoints / 'step_2'}: " in resumed_runs
    assert list(map(without_times, training_lines(killed_run))) == list(map(without_times, training_lines(uft_run)))
    assert evaluation_lines(killed_run) == evaluation_lines(uft_run)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_2", "step_4"]
    for name in ("step_2", "step_4"):
        assert damage(checkpoints / name, with_hashes=True) is None
        one, other = (AutoModelForCausalLM.from_pretrained(run / "checkpoints" / name / "hf").state_dict()
                      for run in (uft_run, killed_run))
        assert all(torch.equal(one[key], other[key]) for key in one)
    samples = [(one["step"], one["kind"], one["index"], one["sample"])
               for one in map(json.loads, (killed_run / "samples.jsonl").open())]
    assert len(samples) == len(set(samples))


def test_a_run_is_stopped_in_any_phase_of_a_long_step_and_goes_on_exactly(stopped_flags, resumed_runs, uft_run):
    folder = stopped_flags["output_dir"]
    assert all(f"interrupted after step {step}, saved" in resumed_runs for step in (2, 3, 4))
    assert all(f"resumed from {folder}/checkpoints/step_{step}:" in resumed_runs for step in (1, 2, 3, 4))
    resumed = [without_times(line) for line in training_lines(folder)]
    assert resumed == [without_times(line) for line in training_lines(uft_run)]
    assert evaluation_lines(folder) == evaluation_lines(uft_run)
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == ["step_4"]


def test_what_a_killed_process_left_locked_does_not_keep_the_next_from_starting(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "some_op" / "lock"
    lock.parent.mkdir(parents=True)
    port = tmp_path / ".port_here_17_4711"
    lock.touch()
    port.touch()
    with (tmp_path / ".in_use").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        processes._forget_abandoned_locks()
        assert lock.exists() and port.exists()  # the other may be building, or waiting for it
    processes._in_use.pop().close()
    processes._forget_abandoned_locks()
    assert not lock.exists() and not port.exists()


# ----- checkpoints and eval.py -----


def test_checkpoint_is_a_hugging_face_folder_of_the_trained_weights(uft_run, base_model):
    base = AutoModelForCausalLM.from_pretrained(base_model)
    folders = [uft_run / "checkpoints" / name / "hf" for name in ("step_2", "step_4")]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    assert models[0].dtype == torch.float32 and models[0].config.tie_word_embeddings
    assert models[0].generation_config.eos_token_id == base.generation_config.eos_token_id
    for name, weight in base.state_dict().items():
        weights = [weight, *(model.state_dict()[name] for model in models)]
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2]), name
    text = "Numbers: 3, 4 </think>\n<answer>"
    assert AutoTokenizer.from_pretrained(folders[1])(text) == AutoTokenizer.from_pretrained(base_model)(text)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("num_processes", [1, 2])
def test_eval_gives_the_number_that_training_logged(tmp_path, exact_runs, countdown_data, num_processes):
    folder = exact_runs["eval"] if num_processes == 2 else tmp_path / "eval"
    if num_processes == 1:
        flags = eval_flags(exact_runs["uft"], folder, countdown_data)
        shown = succeed(start("training/eval.py", flags, **IN_FLOAT64)).stdout
        assert "countdown" in shown and "95 % interval" in shown
    logged = evaluation_lines(exact_runs["uft"])[-1]
    results = json.loads((folder / "results.json").read_text())["results"]
    assert list(results) == ["countdown"]
    numbers = results["countdown"]
    assert numbers["n"] == sum(numbers["reasons"].values()) == 20
    for name in ("accuracy", "format", "response_tokens"):
        assert numbers[name] == logged[f"eval/{name}"]
    assert 0 <= numbers["accuracy_low"] <= numbers["accuracy"] <= numbers["accuracy_high"] <= 1
    responses = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    problems = load_problems(str(countdown_data), "test")[:20]
    assert [one["prompt"] for one in responses] == [problem.prompt for problem in problems]
    assert sum(one["correct"] for one in responses) / 20 == numbers["accuracy"]
    assert {one["reason"] for one in responses} == set(numbers["reasons"])


# ----- sft, --dump_batch -----


@pytest.mark.float64
@pytest.mark.slow
@pytest.mark.numerics
def test_sft_starts_at_the_models_loss_and_lowers_it(exact_runs, exact_base_model, few_data):
    """Every step sees the same 16 demonstrations."""
    lines = training_lines(exact_runs["sft"])
    losses = [line["sft_loss"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]
    assert all(set(line) >= TRAINING_FIELDS and line["loss"] == line["sft_loss"] for line in lines)

    model = AutoModelForCausalLM.from_pretrained(exact_base_model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(exact_base_model)
    assert losses[0] == pytest.approx(own_loss(model, tokenizer, load_problems(str(few_data), "train")), **TOLERANCE)


def test_dump_batch_tells_prompt_hint_and_responses_apart(uft_launch, countdown_data):
    printed = uft_launch[1]
    assert printed.count("tokens, no loss): ") == printed.count("tokens, sft_loss, ") == 1  # one process prints
    assert printed.count("tokens, pg_loss with advantage ") == 4
    prompt = printed.split("tokens, no loss): ")[1].split("\nhint (")[0]
    [problem] = [one for one in load_problems(str(countdown_data), "train") if one.prompt == prompt]
    hint = printed.split("tokens, sft_loss, advantage +0.000): ")[1].split("\nresponse (")[0].replace("|", "")
    assert hint and "".join(problem.solution).startswith(hint)
