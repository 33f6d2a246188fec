"""Runs that learn adapters (utils/adapters.py), as users start them. Gradients at every ZeRO stage, and engines: see
tests/step/test_actor.py; what a checkpoint restores: test_actor_states.py."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers.launching import (
    evaluation_lines,
    launch_in_turn,
    start,
    start_in_turn,
    succeed,
    training_lines,
    without_times,
)
from utils.setup.inputs import read_object

pytestmark = pytest.mark.slow
TARGETS = "q_proj,v_proj,down_proj"


@pytest.fixture(scope="module")
def flags(base_model, countdown_data):
    """Of UFT with adapters, four steps of two updates."""
    return {
        "model": base_model, "data": countdown_data, "seed": 1, "total_steps": 4, "eval_every": 2,
        "eval_problems": 8, "save_every": 2, "prompts_per_step": 8, "group_size": 4, "mini_batch_prompts": 4,
        "max_prompt_length": 64, "max_response_length": 24, "max_tokens_per_micro_batch": 320, "lr": 1e-2,
        "kl_coef": 0.1, "hint_steps": 2, "sft_coef": 0.1, "lora_rank": 3, "lora_alpha": 12, "lora_targets": TARGETS,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flags, countdown_data):
    """{name: folder} of runs: on two processes under ZeRO-3, resumed from its middle, and an evaluation of what it has
    made; on one process at stage 0; and SFT."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in ("sharded", "resumed", "eval", "alone", "sft")}
    sharded = flags | {"zero_stage": 3}
    evaluation = {"model": folders["sharded"] / "checkpoints" / "step_4" / "hf", "data": countdown_data,
                  "eval_problems": 8, "output_dir": folders["eval"], "max_prompt_length": 64, "max_response_length": 24}
    succeed(launch_in_turn([("training/uft.py", sharded | {"output_dir": folders["sharded"]}),
                            ("training/eval.py", evaluation)], 2))
    shutil.copytree(folders["sharded"], folders["resumed"])
    succeed(launch_in_turn([("training/uft.py", sharded | {"output_dir": folders["resumed"], "resume": True,
                                                           "resume_step": 2})], 2))
    sft = {name: value for name, value in flags.items()
           if name not in ("group_size", "kl_coef", "hint_steps", "sft_coef")}
    succeed(start_in_turn([
        ("training/uft.py", flags | {"zero_stage": 0, "output_dir": folders["alone"]}),
        ("training/sft.py", sft | {"zero_stage": 0, "output_dir": folders["sft"], "max_length": 96}),
    ]))
    return folders


def checkpoint(run, step=4):
    return run / "checkpoints" / f"step_{step}"


def test_they_learn_and_the_reference_is_the_base(runs):
    lines = training_lines(runs["sharded"])
    assert lines[0]["kl_loss"] < lines[-1]["kl_loss"] and lines[-1]["kl_loss"] > 1e-4
    assert all(line["grad_norm"] > 0 and line["logprob_mismatch"] < 1e-5 for line in lines)


def test_a_resumed_run_goes_on_bit_for_bit(runs):
    for lines in (training_lines, evaluation_lines):
        resumed, unbroken = (list(map(without_times, lines(runs[name]))) for name in ("resumed", "sharded"))
        assert resumed == unbroken
    names = (name.relative_to(runs["sharded"]) for name in checkpoint(runs["sharded"]).rglob("*.safetensors"))
    for name in names:
        theirs = load_file(runs["resumed"] / name)
        assert all(torch.equal(value, theirs[key]) for key, value in load_file(runs["sharded"] / name).items())


@pytest.mark.parametrize("name", ["sharded", "alone", "sft"])
def test_the_adapter_beside_the_base_is_the_merged_model(runs, flags, name):
    """As a user of peft and one of transformers load them."""
    folder, ids = checkpoint(runs[name]), torch.arange(40)[None]
    base = AutoModelForCausalLM.from_pretrained(flags["model"], dtype=torch.float64)
    merged = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float64)
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, folder / "adapter", autocast_adapter_dtype=False).double()
    assert (merged(ids).logits - adapted(ids).logits).abs().max() < 1e-4
    assert (merged(ids).logits - before).abs().max() > 1e-2
    weights, of_base = merged.state_dict(), AutoModelForCausalLM.from_pretrained(flags["model"]).double().state_dict()
    changed = {key.split(".")[-2] for key, value in weights.items() if not torch.equal(value, of_base[key])}
    assert changed == set(TARGETS.split(","))


def test_a_checkpoint_holds_no_frozen_weights_but_the_merged(runs):
    """Adapters, their master copies and two moments; their names take more than these here."""
    folder = checkpoint(runs["alone"])
    state = sum(path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file())
    assert state < (folder / "hf" / "model.safetensors").stat().st_size
    assert "adapter/adapter_model.safetensors" in read_object(folder / "manifest.json")["files"]


def test_an_evaluation_of_the_merged_model_gives_the_runs_own_numbers(runs):
    [result] = json.loads((runs["eval"] / "results.json").read_text())["results"].values()
    assert result["accuracy"] == evaluation_lines(runs["sharded"])[-1]["eval/accuracy"]


def test_another_base_is_refused_on_resume(runs, flags, tmp_path):
    """Which is nowhere in a checkpoint."""
    other, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(runs["alone"], run)
    shutil.copytree(flags["model"], other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.get_input_embeddings().weight.data[3, 3] += 1e-3
    model.save_pretrained(other)
    done = start("training/uft.py", flags | {"zero_stage": 0, "output_dir": run, "resume": True, "resume_step": 2,
                                             "model": other, "allow_changes": True})
    assert done.returncode != 0 and "than those that the adapters" in done.stdout + done.stderr


@pytest.mark.parametrize(("own", "message"), [
    ({"lora_targets": "no_proj"}, "peft says: Target modules"),
    ({"lora_targets": "embed_tokens"}, "must name linear layers other than the head, such as down_proj, gate_proj"),
    ({"lora_rank": -1}, "must not be negative"),
    ({"lora_alpha": 0}, "must be greater than 0"),
])
def test_bad_flags_are_refused_before_a_model_loads(flags, tmp_path, own, message):
    done = start("training/uft.py", flags | own | {"output_dir": tmp_path / "run"})
    assert done.returncode != 0 and message in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_what_learns(flags, tmp_path):
    plan = succeed(start("training/uft.py", flags | {"output_dir": tmp_path / "run", "check": True})).stdout
    model = AutoModelForCausalLM.from_pretrained(flags["model"])
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in TARGETS.split(",")]
    count = sum(3 * (layer.in_features + layer.out_features) for layer in layers)
    assert f"beside which {count:,} of adapters learn" in plan
    [reference] = [line for line in plan.splitlines() if line.strip().startswith("reference ")]
    assert reference.endswith(" 0.00 GiB")
