"""The probe of the worst micro-batch, and runs whose memory is taken away: the system refuses what goes over a limit
that is set on one living process. tests/scripts/test_training.py compares runs with a probe and without."""

import os
import resource
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import launch, survivors, training_lines, wait_for
from utils.run import out_of_memory
from utils.run.out_of_memory import describe
from utils.setup.memory_probe import worst_shapes

MIB = 2**20


def limit_memory(output_dir: Path, text: str, rank: int, room: int) -> None:
    """As soon as metrics.jsonl has the text: process `rank` of the run gets no more than `room` bytes on top."""
    wait_for(output_dir / "metrics.jsonl", text)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            if str(output_dir) in words and f"--local_rank={rank}" in words:
                pages = int((folder / "statm").read_text().split()[0])
                limit = pages * os.sysconf("SC_PAGE_SIZE") + room
                resource.prlimit(int(folder.name), resource.RLIMIT_AS, (limit, limit))
        except OSError:  # ended meanwhile
            continue


@pytest.fixture
def flags(base_model, countdown_data, tmp_path):
    """Groups of 64: rows of up to 7,744 tokens."""
    return {
        "model": base_model, "data": countdown_data, "output_dir": tmp_path / "run", "total_steps": 2,
        "eval_problems": 2, "prompts_per_step": 16, "group_size": 64, "mini_batch_prompts": 16, "temperature": 3.0,
        "max_prompt_length": 64, "max_response_length": 120, "max_tokens_per_micro_batch": 40_000, "engine": "torch",
    }


def launch_limited(flags, text: str, rank: int, room: int, num_processes: int):
    """The result, its last line on stderr, and seconds since the limit."""
    since = []

    def limit() -> None:
        limit_memory(flags["output_dir"], text, rank, room)
        since.append(time.monotonic())

    thread = threading.Thread(target=limit)
    thread.start()
    result = launch("training/uft.py", flags, num_processes)
    thread.join()
    assert result.returncode == 1 and survivors(result) == []
    assert "Traceback" not in result.stderr and result.stderr.count("stopped: ") == 1
    return result.stderr.splitlines()[-1], time.monotonic() - since[0]


@pytest.mark.slow
def test_the_memory_probe_says_on_whichever_rank_what_to_lower_and_ends_all(flags):
    own = {"probe_memory": "always", "zero_stage": 3}
    line, seconds = launch_limited(flags | own, "", 1, 50 * MIB, num_processes=2)
    assert seconds < 60
    assert " more were asked for" in line or "oneDNN does not say how much was asked for" in line
    for part in ("stopped: out of memory in memory probe, process 1; ",
                 "micro-batches of 5 x 7744 tokens and of 6 x 6666 tokens",
                 "lower --max_tokens_per_micro_batch 40000",
                 "give --gradient_checkpointing"):
        assert part in line
    assert "--zero_stage" not in line and training_lines(flags["output_dir"]) == []


@pytest.mark.slow
def test_memory_that_is_gone_later_ends_the_run_alike(flags):
    """From the first evaluation on there is hardly any: step 1 does not fit."""
    line, seconds = launch_limited(flags | {"zero_stage": 0}, "eval/accuracy", 0, 50 * MIB, num_processes=1)
    assert line.startswith("stopped: out of memory in ") and "What helps: lower --" in line and seconds < 60
    assert training_lines(flags["output_dir"]) == []


# ----- the parts -----


def test_worst_shapes_are_the_longest_rows_and_what_uses_all_tokens():
    assert worst_shapes(100, rows=50, max_tokens=400) == [(4, 100)]
    assert worst_shapes(100, rows=50, max_tokens=390) == [(3, 100), (4, 97)]
    assert worst_shapes(100, rows=3, max_tokens=390) == [(3, 100)]  # a mini-batch has no more
    assert worst_shapes(100, rows=8, max_tokens=100) == [(1, 100)]
    assert worst_shapes(100, rows=8, max_tokens=199) == [(1, 100), (2, 99)]


def caught(function, *arguments) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as info:
        function(*arguments)
    return info.value


def test_what_the_allocator_says_is_understood():
    """Really said: no machine has a pebibyte."""
    settings = {"max_tokens_per_micro_batch": 9, "gradient_checkpointing": True}
    line = describe(caught(lambda: torch.empty(2**50)), "update", settings)
    assert line == ("out of memory in update, process 0; 4194304.00 GiB more were asked for. What helps: lower "
                    "--max_tokens_per_micro_batch 9 (it must hold the longest group: then --max_response_length or "
                    "--group_size too)")
    bare = describe(MemoryError(), "update", {})
    assert "what was asked" not in bare and "a smaller model" in bare
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79 GiB")
    assert "20.00 GiB more were asked for" in describe(error, "update", {})
    assert describe(RuntimeError("could not create a primitive"), "update", {}).startswith(
        "out of memory in update, process 0; oneDNN does not say how much was asked for. ")
    for other in ("shape '[3]' is invalid for input of size 4",
                  "[..gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:5"):
        assert describe(RuntimeError(other), "update", {}) is None


@pytest.mark.parametrize(("phase", "flag"), [
    ("rollout", "--kv_cache_gb"), ("evaluation", "--kv_cache_gb"), ("checkpoint", "--zero_stage"),
    ("loading a checkpoint", "--zero_stage"),
    ("logprobs", "--max_tokens_per_micro_batch"), ("memory probe", "--max_tokens_per_micro_batch"),
])
def test_the_phase_is_told_and_says_what_helps(monkeypatch, phase, flag):
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = {"max_tokens_per_micro_batch": 5, "zero_stage": 0, "kv_cache_gb": 8.0, "engine": "torch"}
    line = describe(MemoryError(), phase, settings)
    assert line.startswith(f"out of memory in {phase}, process 0") and flag in line


def test_advice_names_what_is_not_done_yet(monkeypatch):
    settings = {"max_tokens_per_micro_batch": 5, "gradient_checkpointing": False, "offload": False, "zero_stage": 0,
                "engine": "auto", "engine_memory_fraction": 0.3, "kv_cache_gb": 8.0}
    every = tuple(out_of_memory.UPDATE + out_of_memory.GENERATION)
    assert [one.split(" ")[1] for one in out_of_memory.advice(every, settings)] == [
        "--max_tokens_per_micro_batch", "--gradient_checkpointing", "--kv_cache_gb"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = " ".join(out_of_memory.advice(every, settings))
    for flag in ("--offload", "--zero_stage 3 (is 0)", "--engine_memory_fraction 0.3"):
        assert flag in named
    assert "--offload" not in " ".join(out_of_memory.advice(every, settings | {"offload": True}))
