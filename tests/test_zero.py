"""Two real DeepSpeed processes against plain PyTorch: loss, gradient norm and weights at every ZeRO stage, the
reference, and the engine that generates with the actor's weights. All cases share one launch; see zero_worker.py."""

import json
import math

import pytest

from tests import zero_worker
from tests.launching import launch_words, succeed

FLOAT32 = [case for case in zero_worker.CASES if "bfloat16" not in case.name]
BFLOAT16 = [case for case in zero_worker.CASES if "bfloat16" in case.name]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case name -> what the worker measured."""
    folder = tmp_path_factory.mktemp("zero")
    succeed(launch_words("tests/zero_worker.py", [str(folder)], num_processes=2))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def of(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def close(values, relative=TOLERANCE):
    return pytest.approx(values, rel=relative, abs=0)


@of(FLOAT32)
def test_loss_over_micro_batches_and_ranks_equals_plain_pytorch(results, case):
    assert results[case.name]["losses"] == pytest.approx(results[case.name]["plain_losses"], rel=0, abs=TOLERANCE)


@of(FLOAT32)
def test_norm_before_clipping_equals_plain_pytorch(results, case):
    norms = results[case.name]["norms"]
    assert norms == close(results[case.name]["plain_norms"])
    assert norms[0] > 2 * zero_worker.MAX_GRAD_NORM and norms[1] < zero_worker.MAX_GRAD_NORM / 2  # both ways are run


@of(FLOAT32)
def test_weights_after_two_updates_equal_plain_pytorch(results, case):
    result = results[case.name]
    assert result["weight_difference"] < TOLERANCE
    assert result["weight_change"] > 100 * TOLERANCE  # else there was nothing to compare


@of(zero_worker.CASES)
def test_ranks_differ_in_micro_batches_and_head_chunks(results, case):
    """What makes the cases above hard: a filler on one rank only, several chunks, not as many on the other rank."""
    result = results[case.name]
    assert sorted(result["num_fillers"]) == [0, 1] and result["num_micro_batches"] > 2
    first, second = result["num_chunks"]
    assert first != second and max(first) > 2 and max(second) > 2


@of(zero_worker.CASES)
def test_whole_weights_gives_every_parameter_once(results, case):
    result = results[case.name]
    assert result["shapes"] == result["plain_shapes"]
    assert result["num_gathered"] == len(result["plain_shapes"])
    assert ("lm_head.weight" in result["shapes"]) == (not case.tied)
    assert (result["num_buckets"] > 2) == (case.stage == 3)


@of(FLOAT32)
def test_reference_is_the_initial_model_and_stays_it(results, case):
    assert results[case.name]["reference_difference"] < TOLERANCE
    assert results[case.name]["reference_change"] == 0


@of(FLOAT32)
def test_engine_and_actor_agree_on_sampled_tokens_after_sync(results, case):
    result = results[case.name]
    assert result["num_sampled"] > 100
    assert result["mismatch_before"] < TOLERANCE
    assert result["mismatch_after"] < TOLERANCE
    if case.stage == 3:  # a replica: without the second sync it would have gone on with the old weights
        assert result["mismatch_stale"] > 1000 * TOLERANCE


@of(FLOAT32)
def test_a_replica_that_was_freed_is_whole_again_after_a_sync(results, case):
    result = results[case.name]
    assert (result["replica_bytes_asleep"] == 0) == (case.stage == 3)  # below, it is the actor itself
    assert result["mismatch_woken"] < TOLERANCE


@of(FLOAT32)
def test_deepspeeds_own_rollout_agrees_with_the_actor_and_the_torch_engine(results, case):
    """Greedy token for token; its samples are others."""
    result = results[case.name]
    assert result["num_sampled_deepspeed"] > 100
    assert result["mismatch_deepspeed"] < TOLERANCE
    for ours, theirs in result["greedy"]:
        assert ours == theirs and len({len(ids) for ids in ours}) > 0


@of(zero_worker.CASES)
def test_gradient_checkpointing_computes_layers_twice(results, case):
    assert results[case.name]["layer_calls_per_micro_batch"] == (2 if case.gradient_checkpointing else 1)


@of(BFLOAT16)
def test_bfloat16_steps_as_float32_does_to_rounding(results, case):
    result = results[case.name]
    assert all(math.isfinite(norm) for norm in result["norms"])
    assert result["norms"] == close(result["plain_norms"], relative=0.03)
    assert result["losses"] == close(result["plain_losses"], relative=0.05)
    assert result["change_over_plain"] == pytest.approx(1, abs=0.05)
