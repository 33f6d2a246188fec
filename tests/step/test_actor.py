"""Two real DeepSpeed processes against plain PyTorch: loss, gradient norm and weights at every ZeRO stage, the
reference, and the engine that generates with the actor's weights; see zero_worker.py.

What must equal plain PyTorch is computed in a launch whose float32 is float64 (helpers/in_float64); a second launch has
the types of runs.
"""

import json
import math

import pytest
import torch

from tests.helpers.float64 import CLOSE, IN_FLOAT64
from tests.helpers.launching import launch_words, succeed
from tests.workers import zero_worker

pytestmark = [pytest.mark.slow, pytest.mark.numerics]
EXACT = [case for case in zero_worker.CASES if case.dtype == torch.float32]
ROUNDED = [case for case in zero_worker.CASES if case.dtype == torch.bfloat16 or case.offload]
TOLERANCE = CLOSE["rtol"]
# Relative. float32 rounds to 6e-8, and some 900 additions follow one another (32 to 61 terms in each product of two
# layers and the head, forwards and backwards, then tokens): as a random walk 30 times that, 2e-6, and five times for
# safety. bfloat16 rounds to 2e-3, after a product, of which some 30 follow one another: as a random walk 1e-2, and
# three to five times. Adam divides gradients by their size, also those that are little more than rounding.
ROUNDING = {torch.float32: {"norms": 1e-5, "losses": 1e-5, "change": 1e-2},
            torch.bfloat16: {"norms": 0.03, "losses": 0.05, "change": 0.05}}


def measured_by_worker(folder, cases, **variables):
    """With one thread for each process: two of two on two cores wait for one another."""
    words = [str(folder), *(case.name for case in cases)]
    succeed(launch_words("tests/workers/zero_worker.py", words, num_processes=2, OMP_NUM_THREADS="1", **variables))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case name -> what the worker measured in float64."""
    return measured_by_worker(tmp_path_factory.mktemp("zero"), EXACT, **IN_FLOAT64)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """case name -> what the worker measured in the case's type; "adam"."""
    return measured_by_worker(tmp_path_factory.mktemp("rounded"), ROUNDED)


@pytest.fixture(scope="module")
def either(results, rounded):
    """case name -> what the worker measured, in float64 where it did."""
    return rounded | results


def of(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def close(values, relative=TOLERANCE):
    return pytest.approx(values, rel=relative, abs=0)


@of(EXACT)
def test_loss_over_micro_batches_and_ranks_equals_plain_pytorch(results, case):
    assert results[case.name]["losses"] == pytest.approx(results[case.name]["plain_losses"], rel=0, abs=TOLERANCE)


@of(EXACT)
def test_norm_before_clipping_equals_plain_pytorch(results, case):
    norms = results[case.name]["norms"]
    assert norms == close(results[case.name]["plain_norms"])
    assert norms[0] > 2 * zero_worker.MAX_GRAD_NORM and norms[1] < zero_worker.MAX_GRAD_NORM / 2  # both ways are run


@of(EXACT)
def test_norms_by_kind_of_token_equal_those_of_each_loss_alone(results, case):
    """The gradients of the hints' loss, and of the responses', with respect to the states that enter the LM head, in
    plain PyTorch one after the other: whatever is shared, packed and divided."""
    for kind, norms in results[case.name]["plain_of_states"].items():
        assert results[case.name]["of_states"][kind] == close(norms) and min(norms) > 0


@of(EXACT)
def test_weights_after_two_updates_equal_plain_pytorch(results, case):
    result = results[case.name]
    assert result["weight_difference"] < TOLERANCE
    assert result["weight_change"] > 100 * TOLERANCE  # else there was nothing to compare


@of(zero_worker.CASES)
def test_ranks_differ_in_micro_batches_and_parts_of_the_vocabulary(either, case):
    """What makes the cases above hard: a filler on one rank only, several parts of the vocabulary, not as many on the
    other rank."""
    result = either[case.name]
    assert sorted(result["num_fillers"]) == [0, 1] and result["num_micro_batches"] > 2
    first, second = result["num_parts"]
    assert first != second and max(first) > 2 and max(second) > 2


@of(zero_worker.CASES)
def test_whole_weights_gives_every_parameter_once(either, case):
    result = either[case.name]
    assert result["shapes"] == result["plain_shapes"]
    assert result["num_gathered"] == len(result["plain_shapes"])
    assert ("lm_head.weight" in result["shapes"]) == (not case.tied)
    assert result["num_buckets"] > 2


@of(EXACT)
def test_reference_is_the_initial_model_and_stays_it(results, case):
    assert results[case.name]["reference_difference"] < TOLERANCE
    assert results[case.name]["reference_change"] == 0


@of(EXACT)
def test_engine_and_actor_agree_on_sampled_tokens_after_sync(results, case):
    result = results[case.name]
    assert result["num_sampled"] > 100
    assert result["mismatch_before"] < TOLERANCE
    assert result["mismatch_after"] < TOLERANCE
    if case.stage == 3:  # a replica: without the second sync it would have gone on with the old weights
        assert result["mismatch_stale"] > 1000 * TOLERANCE


@of(EXACT)
def test_a_replica_that_was_freed_is_whole_again_after_a_sync(results, case):
    result = results[case.name]
    assert (result["replica_bytes_asleep"] == 0) == (case.stage == 3)  # below, it is the actor itself
    assert result["mismatch_woken"] < TOLERANCE


@of(EXACT)
def test_deepspeeds_own_rollout_agrees_with_the_actor_and_the_torch_engine(results, case):
    """Greedy token for token; its samples are others."""
    result = results[case.name]
    assert result["num_sampled_deepspeed"] > 100
    assert result["mismatch_deepspeed"] < TOLERANCE
    for ours, theirs in result["greedy"]:
        assert ours == theirs and len({len(ids) for ids in ours}) > 0


@of(zero_worker.CASES)
def test_gradient_checkpointing_computes_layers_twice(either, case):
    assert either[case.name]["layer_calls_per_micro_batch"] == (2 if case.gradient_checkpointing else 1)


@of(ROUNDED)
def test_updates_are_those_of_plain_pytorch_to_the_rounding_of_their_type(rounded, case):
    result, rounding = rounded[case.name], ROUNDING[case.dtype]
    assert all(math.isfinite(norm) for norm in result["norms"])
    assert result["norms"] == close(result["plain_norms"], rounding["norms"])
    assert result["losses"] == close(result["plain_losses"], rounding["losses"])
    assert result["change_over_plain"] == pytest.approx(1, abs=rounding["change"])


def test_deepspeeds_adam_on_a_cpu_is_pytorchs(rounded):
    """With the same gradients. Two updates round a weight four times, by half of eps."""
    difference, largest = rounded["adam"]
    assert difference <= 2 * torch.finfo(torch.float32).eps * largest
