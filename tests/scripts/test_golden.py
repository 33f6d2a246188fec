"""Golden trajectories: 20 steps of each algorithm give the numbers they gave before.

A change of them must be meant, and explained in LOG.md. Then: GOLDEN=write pytest tests/scripts/test_golden.py
The base model and the runs are computed in float64 (tests/helpers/in_float64), so the numbers hold on any processor.
"""

import json
import os
from pathlib import Path

import pytest

from tests.helpers.float64 import IN_FLOAT64
from tests.helpers.launching import evaluation_lines, start_in_turn, succeed, training_lines

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = ("reward", "loss", "pg_loss", "kl_loss", "entropy", "sft_loss", "grad_norm", "hint_slices", "response_tokens")
# Processors round in other ways, by 1e-16. Training the base makes 2e-14 of that in the weights, 40 updates of a run
# make 1e-12 in the numbers, 3e-10 where terms cancel: the largest difference between AVX-512, AVX2 and no vectors.
# A changed line of the algorithm, or another token that is sampled, shows as 1e-6 and more.
TOLERANCE = {"rel": 1e-7, "abs": 1e-10}
STEPS = 20
pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def runs(tmp_path_factory, exact_base_model, countdown_data):
    """{name: folder of its run}, one after another in one process."""
    flags = {
        "model": exact_base_model, "data": countdown_data, "seed": 3,
        "total_steps": STEPS, "eval_every": 10, "eval_problems": 32, "save_every": 99, "prompts_per_step": 8,
        "mini_batch_prompts": 4, "max_prompt_length": 64, "max_response_length": 40,
        "max_tokens_per_micro_batch": 400, "lr": 3e-4, "zero_stage": 0,
    }
    rl = {"group_size": 4, "kl_coef": 0.1, "entropy_coef": 0.01}
    hinted = {"hint_steps": 12, "sft_coef": 0.1}
    own = {"uft": rl | hinted, "rft": rl, "r3": rl, "stage": rl | hinted, "sft": {"max_length": 96}}
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in own}
    runs = [(f"training/{name}.py", flags | own[name] | {"output_dir": folders[name]}) for name in own]
    succeed(start_in_turn(runs, OMP_NUM_THREADS="1", **IN_FLOAT64))
    return folders


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("name", ["uft", "rft", "r3", "stage", "sft"])
def test_twenty_steps_give_the_golden_numbers(runs, name):
    lines = training_lines(runs[name])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        terms = line["pg_loss"] + 0.1 * line["kl_loss"] - 0.01 * line["entropy"] + 0.1 * line["sft_loss"]
        assert line["loss"] == pytest.approx(line["sft_loss"] if name == "sft" else terms, abs=1e-12)
    found = {
        "eval/accuracy": [line["eval/accuracy"] for line in evaluation_lines(runs[name])],
        **{field: [line[field] for line in lines] for field in NAMES},
    }
    path = FOLDER / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        entries = (f'"{field}": {json.dumps(value)}' for field, value in found.items())  # a field a line
        path.write_text("{\n" + ",\n".join(entries) + "\n}\n")
    golden = json.loads(path.read_text())
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
