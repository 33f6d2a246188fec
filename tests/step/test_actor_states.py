"""Two real DeepSpeed processes: Adam's states as the memory probe holds them, gradients added up in float32, what a
checkpoint restores, and reductions that overlap, at every ZeRO stage; see state_worker.py."""

import json

import pytest
import torch

from tests.helpers.launching import launch_words, succeed
from tests.workers import state_worker

pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("case", state_worker.CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case name -> what the worker measured."""
    folder = tmp_path_factory.mktemp("state")
    words = [str(folder), *(case.name for case in state_worker.CASES)]
    succeed(launch_words("tests/workers/state_worker.py", words, num_processes=2, OMP_NUM_THREADS="1"))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@EACH
def test_the_memory_probe_holds_what_adam_takes_at_its_first_step(results, case):
    result = results[case.name]
    assert result["held"] == result["taken"]
    has_states = case.stage == 0 and case.dtype == torch.bfloat16  # DeepSpeed has made them
    assert (result["taken"] == 0) == has_states
    share = result["num_parameters"] / (2 if case.stage else 1)
    assert 2 * 4 * share <= result["there"] < 2 * 4 * (share + 100)  # two moments in float32, padded


@pytest.mark.parametrize("case", [case for case in state_worker.CASES if case.dtype == torch.bfloat16],
                         ids=lambda case: case.name)
def test_gradients_of_bfloat16_are_added_up_in_float32_where_deepspeed_can(results, case):
    """16 micro-batches in bfloat16: each addition rounds by up to 2**-9. At stage 1 the sum is rounded once, for its
    reduction over the ranks."""
    error, error_in_type = results[case.name]["gradient_errors"]
    if case.stage == 0 or case.offload and case.stage < 3:
        assert error == error_in_type > 0.003
    else:
        assert error < (2**-8 if case.stage == 1 else 1e-6) and error_in_type > 0.003


@EACH
def test_a_checkpoint_restores_an_actor_bit_for_bit(results, case):
    result = results[case.name]
    assert result["is_restored"] and result["is_same_after"]
    assert result["norms_after"][0] == result["norms_after"][1] > 0


@EACH
def test_reductions_that_overlap_give_the_same_norm(results, case):
    norm, norm_overlapping = results[case.name]["norms"]
    assert norm == pytest.approx(norm_overlapping, rel=1e-7) and norm > 0
