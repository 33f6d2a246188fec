"""vLLM in the processes of the training, for real: two DeepSpeed processes, each with an engine of its own, on the CPU
build of vLLM or on GPUs. `bash launch_scripts/test_vllm.sh` makes an environment for it and runs this file."""

import json
from importlib.util import find_spec
from itertools import chain

import pytest

from tests.helpers.launching import evaluation_lines, launch, launch_words, succeed, training_lines
from tests.workers import vllm_worker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]
CASES = pytest.mark.parametrize("case", vllm_worker.CASES, ids=lambda case: case.name)
TOLERANCE = 1e-4  # of float32 log-probabilities, in nats
STEPS = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case name -> what the worker measured."""
    folder = tmp_path_factory.mktemp("vllm")
    succeed(launch_words("tests/workers/vllm_worker.py", [str(folder)], num_processes=2))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


# ----- weights -----


@CASES
def test_the_actors_weights_arrive_and_follow_its_updates(results, case):
    result = results[case.name]
    assert result["num_sampled"] > 100
    assert result["mismatch_before"] < TOLERANCE
    assert result["mismatch_stale"] > 1000 * TOLERANCE  # the update in between would be seen
    assert result["mismatch_after"] < TOLERANCE


@CASES
def test_logprobs_are_those_of_transformers_at_the_temperature_of_sampling(results, case):
    assert results[case.name]["plain_mismatch"] < TOLERANCE


@CASES
def test_greedy_is_the_torch_engines_token_for_token_before_and_after_an_update(results, case):
    pairs = [pair for of_rank in results[case.name]["greedy"] for pair in of_rank]
    assert all(theirs == ours for theirs, ours in pairs)
    assert len({json.dumps(ours) for _, ours in pairs}) == 4  # two ranks, before and after: all different


# ----- samples -----


@CASES
def test_a_sample_is_a_function_of_seed_step_problem_and_sample(results, case):
    samples = results[case.name]["samples"]
    together = samples["together"]
    assert samples["again"] == samples["backwards"] == together
    assert samples["fewer"] == [group[:2] for group in together]
    assert samples["last_ones"] == [group[1:] for group in together]  # by a second call
    assert samples["last_one"] == [group[-1:] for group in together]
    assert samples["of_one_rank"] == together  # the other had no prompts
    assert all(len({tuple(ids) for ids in group}) > 1 for group in together)  # samples of a group differ
    assert samples["other_seed"] != together and samples["other_step"] != together


@CASES
def test_sampling_is_from_the_full_distribution(results, case):
    """The model's generation config says top_k 2."""
    assert results[case.name]["distinct_first_tokens"] > 0.9 * vllm_worker.VOCABULARY


def test_a_response_ends_at_any_end_of_sequence_id_and_keeps_it(results):
    ends, seen = {vllm_worker.EOS, vllm_worker.OTHER_EOS}, set()
    for result in results.values():
        for finish, ids in chain(*result["finishes"]):
            assert not ends & set(ids[:-1])
            assert finish == ("stop" if ids[-1] in ends else "length")
            assert finish == "stop" or len(ids) == vllm_worker.LIMIT
            seen.add(ids[-1] if finish == "stop" else finish)
    assert seen == {*ends, "length"}


# ----- the scripts -----


@pytest.fixture(scope="module")
def flags(base_model, countdown_data):
    return {
        "model": base_model, "data": countdown_data, "seed": 1, "total_steps": STEPS, "eval_every": 2,
        "eval_problems": 20, "save_every": STEPS, "prompts_per_step": 16, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": 48, "max_tokens_per_micro_batch": 320, "lr": 3e-4,
        "kv_cache_gb": 0.1, "zero_stage": 3,
    }


@pytest.fixture(scope="module")
def uft_run(tmp_path_factory, flags):
    """UFT with vLLM, two processes, ZeRO-3."""
    output_dir = tmp_path_factory.mktemp("uft") / "run"
    own = {"engine": "vllm", "hint_steps": 2, "output_dir": output_dir}
    succeed(launch("training/uft.py", flags | own, num_processes=2))
    return output_dir


def test_training_with_vllm_samples_from_the_actor_at_every_step(uft_run):
    lines = training_lines(uft_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["logprob_mismatch_max"] < TOLERANCE for line in lines)
    assert all(line["seconds/sync"] > 0 and line["grad_norm"] > 0 and 0 < line["accuracy"] < 1 for line in lines)
    assert lines[0]["hint_tokens"] > 0 == lines[-1]["hint_tokens"]


def test_evaluation_with_either_engine_gives_the_number_that_training_logged(tmp_path, uft_run, flags, base_model):
    trained = uft_run / "checkpoints" / f"step_{STEPS}" / "hf"
    logged = [evaluation_lines(uft_run)[i]["eval/accuracy"] for i in (-1, 0)]
    words = ["--model", str(trained), str(base_model), "--data", str(flags["data"]), "--eval_problems", "20",
             "--max_prompt_length", "64", "--max_response_length", "48", "--kv_cache_gb", "0.1"]
    for engine, num_processes in (("vllm", 2), ("torch", 1)):
        output_dir = tmp_path / engine
        succeed(launch_words("training/eval.py", [*words, "--engine", engine, "--output_dir", str(output_dir)],
                             num_processes))
        runs = json.loads((output_dir / "results.json").read_text())["runs"]
        assert [run["results"]["countdown"]["accuracy"] for run in runs] == logged


def test_engine_logprobs_spare_the_recomputation(tmp_path, flags):
    own = {"engine": "vllm", "old_logprobs": "engine", "output_dir": tmp_path / "run", "total_steps": 2}
    succeed(launch("training/rft.py", flags | own, num_processes=2))
    for line in training_lines(tmp_path / "run"):
        assert 0.9 < line["engine_ratio"] < 1.1 < line["engine_ratio_max"]  # the second update is off the policy


def test_a_sync_that_is_left_out_stops_the_run(tmp_path, flags):
    own = {"engine": "vllm", "max_logprob_mismatch": 1e-3, "output_dir": tmp_path / "run"}
    result = launch("tests/workers/stale_sync.py", flags | own, num_processes=2)
    assert result.returncode != 0
    assert "stopped: the engine's log-probabilities differ" in result.stderr and "stale weights" in result.stderr
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1]
