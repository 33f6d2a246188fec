import json
from dataclasses import dataclass

import pytest
import torch

from utils.run.logger import TRAINING_FIELDS, Logger
from utils.run.output_dir import read_jsonl

CONTRACT_3 = [
    *("reward", "accuracy", "format", "loss", "pg_loss", "kl_loss", "entropy", "sft_loss", "grad_norm"),
    *("skipped_updates", "lr", "hint_slices", "hint_tokens", "response_tokens", "truncated", "flat_groups"),
    *("logprob_mismatch", "tokens_per_second"),
    *("seconds/sync", "seconds/rollout", "seconds/reward", "seconds/logprobs", "seconds/update"),
]
FOR_THE_DOCTOR = {"whole_hints", "repeated", "groups_all_right", "groups_all_wrong", "common_answer", "slowest_rank",
                  "seconds/slowest_rank", "seconds/mean_rank", "memory_gib"}


@dataclass
class Args:
    lr: float = 1e-3
    model: str = "tiny"


def start(output_dir, **options) -> Logger:
    return Logger(output_dir, Args(), **({"is_main": True, "total_steps": 100} | options))


def test_a_training_line_has_every_contract_field_and_what_else_is_given(tmp_path):
    assert set(TRAINING_FIELDS) == {*CONTRACT_3, *FOR_THE_DOCTOR}
    with start(tmp_path) as log:
        log.log_training(7, {"loss": torch.tensor(0.1, dtype=torch.float64), "clip_fraction": 0.123456789012})
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert 0.05 < line.pop("memory_gib") < 50
    others = dict.fromkeys(TRAINING_FIELDS.keys() - {"memory_gib"}, 0.0)
    assert line == {"step": 7, **others, "loss": 0.1, "clip_fraction": 0.123456789012}


def test_lines_are_valid_json_and_on_disk_at_once(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    log = start(tmp_path)
    log.log_training(1, {"loss": float("nan"), "pg_loss": torch.tensor(float("inf")), "kl_loss": -float("inf")})
    log.log_evaluation(1, {"eval/accuracy": 0.5, "eval/reasons": {"correct": 1, "nan": float("nan")}})
    log.log_sample(1, "p", "h", "lone surrogate \udc80, é", 1.0, "correct", "training")
    training, evaluation = [
        json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert training["loss"] is training["pg_loss"] is training["kl_loss"] is None
    assert evaluation == {"step": 1, "eval/accuracy": 0.5, "eval/reasons": {"correct": 1, "nan": None}}
    assert read_jsonl(tmp_path / "samples.jsonl") == [
        {"step": 1, "kind": "training", "prompt": "p", "hint": "h", "response": "lone surrogate \udc80, é"}
        | {"reward": 1.0, "reason": "correct"}
    ]
    log.close()


def test_other_ranks_write_and_print_nothing(tmp_path, capfd):
    with start(tmp_path / "run", is_main=False) as log:
        log.log_training(1, {"flat_groups": 1.0})
        log.log_evaluation(1, {"eval/accuracy": 0.5})
        log.log_sample(1, "p", "h", "r", 1.0, "correct", "training")
        log.print("hello")
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_resume_cuts_later_lines_and_a_torn_one_and_appends(tmp_path):
    with start(tmp_path) as log:
        for step in range(6):
            log.log_training(step, {"loss": step / 3})
            log.log_sample(step, "p", "", f"r{step}", 0.0, "no answer", "evaluation")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.')  # killed here
    with start(tmp_path, resume_step=3) as log:
        log.log_training(4, {"loss": 9.0})
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 9)]
    assert [line["response"] for line in read_jsonl(tmp_path / "samples.jsonl")] == ["r0", "r1", "r2", "r3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "args.json", "args.resumed_at_3.json", "environment.json", "environment.resumed_at_3.json", "metrics.jsonl",
        "samples.jsonl",
    ]


def test_a_line_after_a_whole_last_line_without_newline_stands_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with start(tmp_path, resume_step=2) as log:
        log.log_evaluation(3, {})
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resume_at_step_0_keeps_the_base_evaluation_and_a_new_run_nothing(tmp_path):
    with start(tmp_path) as log:
        log.log_evaluation(0, {"eval/accuracy": 0.1})
        log.log_training(1, {})
    start(tmp_path, resume_step=0).close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "eval/accuracy": 0.1}]
    start(tmp_path).close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        read_jsonl(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"text": "\xc3')  # torn within a character
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_the_doctor_is_asked_and_told_what_a_resumed_run_was_told(tmp_path, capsys):
    flat = {"flat_groups": 0.95, "accuracy": 0.5, "format": 1.0}
    with start(tmp_path) as log:
        for step in range(1, 6):
            log.log_training(step, flat)
    assert "\nstep 3: 95% of the groups have equal rewards" in capsys.readouterr().out
    with start(tmp_path, resume_step=4) as log:
        for step in range(5, 40):
            log.log_training(step, flat)
    assert "equal rewards" not in capsys.readouterr().out
