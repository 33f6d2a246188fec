"""UFT on a file of one's own with a verifier of one's own, by the real launcher."""

import json

import pytest

from tests.helpers.launching import launch_in_turn, start, succeed, training_lines
from tests.helpers.verifiers import VERIFIER


@pytest.mark.slow
def test_uft_learns_from_a_jsonl_with_a_verifier_file_and_resumes_only_with_the_same(base_model, tmp_path):
    data, verifier, output = tmp_path / "sums.jsonl", tmp_path / "judge.py", tmp_path / "run"
    twin = tmp_path / "twin"  # the same run, that goes on
    rows = [{"question": f"{n} + 1?", "solution": f"Take {n}.\nIt is {n + 1}.", "answer": n + 1} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    verifier.write_text(VERIFIER)
    flags = {"model": base_model, "data": data, "verifier": verifier, "output_dir": output, "total_steps": 2,
             "prompts_per_step": 8, "mini_batch_prompts": 8, "group_size": 2, "max_prompt_length": 140,
             "max_response_length": 24, "max_tokens_per_micro_batch": 512, "zero_stage": 0, "save_every": 1,
             "engine": "torch", "p_low": 0.95}
    resumed = flags | {"resume": True, "resume_step": 1}
    result = succeed(launch_in_turn([("training/uft.py", flags), ("training/uft.py", flags | {"output_dir": twin}),
                                     ("training/uft.py", resumed)], 2))
    assert "test problems held out: 10% of the prompts" in result.stdout
    lines = training_lines(twin)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["hint_slices"] > 0 and line["verifier_timeouts"] == 0 for line in lines)
    assert {json.loads(line)["reason"] for line in (output / "samples.jsonl").read_text().splitlines()} <= {
        "correct", "wrong result", "no answer"}

    again, names = training_lines(output), ("reward", "loss", "grad_norm")
    assert [[line[name] for name in names] for line in again] == [[line[name] for name in names] for line in lines]
    verifier.write_text(VERIFIER + "# another\n")
    refused = start("training/uft.py", resumed | {"check": True}, WORLD_SIZE="2")
    assert refused.returncode == 2 and "train problems (fingerprint) was " in refused.stderr
