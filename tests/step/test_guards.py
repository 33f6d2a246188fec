"""Losses and gradients that are not finite: no update at any ZeRO stage, a count, and an end with the batch saved."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.launching import launch, launch_words, succeed, survivors, training_lines
from tests.workers import skip_worker
from utils.guards import UpdateGuard, load_batch
from utils.metrics import LossSums
from utils.packing import filler
from utils.run.errors import RunStopped

CPU = torch.device("cpu")


NAMES = {2: [case.name for case in skip_worker.CASES], 1: ["stage0", "stage3", "bfloat16-stage2"]}
EACH = pytest.mark.parametrize(("processes", "name"), [(number, name) for number in NAMES for name in NAMES[number]])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(number of processes, case name) -> what the worker measured."""
    measured = {}
    for number, names in NAMES.items():
        folder = tmp_path_factory.mktemp("skip")
        succeed(launch_words("tests/workers/skip_worker.py", [str(folder), *names], num_processes=number))
        measured |= {(number, path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}
    return measured


@pytest.mark.slow
@EACH
def test_what_one_rank_cannot_compute_no_rank_applies(results, processes, name):
    """Weights, master copies, optimiser states and their counters are bit for bit what they were, gradients gone."""
    assert results[processes, name]["skipping"] == {
        poison: {"norms": ["inf"] * processes, "is_unchanged": True, "gradients": 0} for poison in skip_worker.POISONS}


@EACH
@pytest.mark.slow
def test_the_next_good_update_is_that_of_a_run_that_never_saw_the_bad_ones(results, processes, name):
    result = results[processes, name]
    assert result["is_that_of_the_clean_run"] and result["norms"][0] == result["norms"][1]
    assert result["is_unchanged_by_probe"]  # which the clean run has not had
    assert result["has_moved"] and result["num_states"] > 20  # else there was nothing to compare


# ----- the count -----


def losses_of(**parts: float) -> LossSums:
    losses = LossSums()
    losses.add(**{name: torch.tensor(part) for name, part in parts.items()})
    return losses


def test_a_good_update_starts_the_count_anew_also_over_steps(tmp_path, capsys):
    guard, good, bad = UpdateGuard(tmp_path, 3), losses_of(loss=1.0), losses_of(loss=math.nan, kl_loss=math.inf)
    for step, norms in enumerate([(math.inf, math.inf), (2.0, math.inf), (math.inf, 4.0), (1.0, 3.0)], start=1):
        for norm in norms:
            guard.check(step, norm, good if norm < math.inf else bad, [filler(CPU)])
        metrics = guard.metrics()
        assert metrics["skipped_updates"] == norms.count(math.inf)
        happened = [norm for norm in norms if norm < math.inf] or [math.nan]
        assert metrics["grad_norm"] == pytest.approx(sum(happened) / len(happened), nan_ok=True)
    assert list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in a row")[0][-1] for line in lines] == ["1", "2", "1", "2"]
    assert lines[0].startswith("step 1, update 1: not finite: the gradient and kl_loss, loss; the update is skipped")


def test_too_many_in_a_row_end_the_run_with_the_batch(tmp_path):
    guard, batch = UpdateGuard(tmp_path, 2), [filler(CPU), filler(CPU)]
    guard.check(6, math.inf, losses_of(loss=1.0), [])
    with pytest.raises(RunStopped, match="^step 7, update 2: not finite: the gradient, and no loss; 2 updates in a row "
                                         r"were skipped \(--max_skipped_updates 2\)"):
        guard.check(7, math.inf, losses_of(loss=1.0), batch)
    loaded = load_batch(tmp_path / "bad_batch_step_7_rank_0.safetensors", CPU)
    assert len(loaded) == 2
    for name, tensor in vars(batch[1]).items():
        assert tensor is vars(loaded[1])[name] is None or torch.equal(tensor, vars(loaded[1])[name])


def test_a_batch_that_cannot_be_saved_does_not_hide_the_reason(tmp_path):
    with pytest.raises(RunStopped, match="not finite: .* the mini-batch could not be saved"):
        UpdateGuard(tmp_path / "missing", 1).check(1, math.inf, losses_of(loss=1.0), [filler(CPU)])


# ----- a run -----


@pytest.mark.slow
def test_a_run_stops_and_its_last_checkpoint_stays(tmp_path, base_model, countdown_data):
    """entropy_coef is more than a float32 holds: every loss is infinite."""
    output_dir = tmp_path / "run"
    result = launch("training/uft.py", {
        "model": base_model, "data": countdown_data, "output_dir": output_dir, "total_steps": 4, "eval_problems": 2,
        "save_every": 1, "prompts_per_step": 8, "group_size": 2, "mini_batch_prompts": 4, "max_prompt_length": 64,
        "max_response_length": 16, "max_tokens_per_micro_batch": 192, "lr": 1e-3, "entropy_coef": 1e39,
    }, num_processes=2)
    assert result.returncode == 1 and survivors(result) == []
    message = result.stderr.splitlines()[-1]
    assert message.startswith("stopped: ") and result.stderr.count("stopped: ") == 1
    assert "Traceback" not in result.stderr
    for part in ("step 2, update 1", "not finite: the gradient and", "loss", "3 updates in a row were skipped",
                 "--max_skipped_updates 3", f"{output_dir}/bad_batch_step_2_rank_*.safetensors"):
        assert part in message
    assert result.stdout.count("the update is skipped") == 2
    [line] = training_lines(output_dir)
    assert (line["skipped_updates"], line["grad_norm"], line["loss"]) == (2, None, None) and line["reward"] is not None
    for rank in (0, 1):
        batch = load_batch(output_dir / f"bad_batch_step_2_rank_{rank}.safetensors", CPU)
        assert sum(int(one.response_mask.sum()) for one in batch) > 0 and batch[0].ref_logprobs is not None
    checkpoints = output_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_1"]
    before = AutoModelForCausalLM.from_pretrained(base_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(checkpoints / "step_1" / "hf").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
