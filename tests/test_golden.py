"""Golden trajectories: 20 steps of each algorithm give the numbers they gave before.

A change of them must be meant, and explained in LOG.md. Then: GOLDEN=write python -m pytest tests/test_golden.py
Elsewhere than on the kind of processor that wrote them, the base model comes out a little different after its 400
steps of training, and so does all that follows: there the runs are only compared with the formula of their losses.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from tests.launching import evaluation_lines, start, succeed, training_lines

FOLDER = Path(__file__).parent / "golden"
NAMES = ("reward", "loss", "pg_loss", "kl_loss", "entropy", "sft_loss", "grad_norm", "hint_slices", "response_tokens")
TOLERANCE = {"rel": 2e-4, "abs": 2e-6}
STEPS = 20


def processor() -> str:
    """What decides how this machine rounds."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vendor = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("vendor_id")), "")
    return f"{platform.machine()} {vendor} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


@pytest.mark.parametrize("name", ["uft", "rft", "r3", "stage", "sft"])
def test_twenty_steps_give_the_golden_numbers(tmp_path, base_model, countdown_data, name):
    flags = {
        "model": base_model, "data": countdown_data, "output_dir": tmp_path / "run", "seed": 3, "total_steps": STEPS,
        "eval_every": 10, "eval_problems": 32, "save_every": 99, "prompts_per_step": 8, "mini_batch_prompts": 4,
        "max_prompt_length": 64, "max_response_length": 40, "max_tokens_per_micro_batch": 400, "lr": 1e-3,
        "zero_stage": 0,
    }  # fmt: skip
    own = {"max_length": 96} if name == "sft" else {"group_size": 4, "kl_coef": 0.1, "entropy_coef": 0.01}
    if name in ("uft", "stage"):
        own |= {"hint_steps": 12, "sft_coef": 0.1}
    succeed(start(f"training/{name}.py", flags | own, OMP_NUM_THREADS="1"))
    lines = training_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        terms = line["pg_loss"] + 0.1 * line["kl_loss"] - 0.01 * line["entropy"] + 0.1 * line["sft_loss"]
        assert line["loss"] == pytest.approx(line["sft_loss"] if name == "sft" else terms, abs=1e-6)
    found = {
        "processor": processor(),
        "eval/accuracy": [line["eval/accuracy"] for line in evaluation_lines(tmp_path / "run")],
        **{field: [line[field] for line in lines] for field in NAMES},
    }
    path = FOLDER / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        entries = (f'"{field}": {json.dumps(value)}' for field, value in found.items())  # a field a line
        path.write_text("{\n" + ",\n".join(entries) + "\n}\n")
    golden = json.loads(path.read_text())
    if golden.pop("processor") != found.pop("processor"):
        pytest.skip(f"the golden numbers were written on another kind of processor than {processor()}")
    for field, values in golden.items():
        assert found[field] == pytest.approx(values, **TOLERANCE), field


def test_golden_runs_learn_and_show_hints():
    """What the numbers hold, so that they are worth comparing."""
    golden = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert sorted(golden) == ["r3", "rft", "sft", "stage", "uft"]
    for name, numbers in golden.items():
        assert all(len(numbers[field]) == STEPS for field in NAMES)
        assert (sum(numbers["hint_slices"]) > 0) == (name in ("uft", "stage", "r3"))
        assert (sum(numbers["sft_loss"]) > 0) == (name in ("uft", "stage", "sft"))
        assert (len({*numbers["reward"]}) > 5) == (name != "sft")
        assert all(norm > 0 for norm in numbers["grad_norm"])
    assert golden["uft"]["hint_slices"][:12] != golden["stage"]["hint_slices"][:12]
    assert max(golden["uft"]["hint_slices"][12:]) == 0
