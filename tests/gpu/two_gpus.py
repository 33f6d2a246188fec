"""What takes two GPUs: the same update on one and on two, vLLM in two processes, two runs beside each other."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.checks import Box, Figure, at_least, at_most, check, equal, note
from tests.gpu.pytest_gpu import Seen
from tests.gpu.runs import deepspeed, launch, make_base, start, wait
from tests.helpers.launching import to_words, training_lines
from tests.helpers.shells import make_environment
from utils import ROOT

NEAR = 1e-4  # relative, in float32
OTHER_CARD_GIB = 0.3  # that a run on one card may take of another


@check(13, "two_parity", seconds=60, needs=("two_gpus", "deepspeed"), cpu="named")
def two_parity(box: Box) -> Iterator[Figure]:
    """Two updates at stage 3 in float32 on one process and on two, with overlap_comm and without."""
    found = {}
    for processes, overlap in ((1, "no_overlap"), (2, "no_overlap"), (2, "overlap")):
        name = f"{processes} {overlap}"
        file, log = box.folder / f"{name}.json", box.folder / f"{name}.txt"
        status = wait(launch("tests/gpu/parity_worker.py", [str(file), overlap], log, processes), log)
        yield equal(f"{name}: status", status, 0)
        found[name] = json.loads(file.read_text())
    one, *others = found.values()
    for name, other in list(found.items())[1:]:
        assert (one["processes"], other["processes"]) == (1, 2)
        for what in ("losses", "norms"):
            yield at_most(f"{name}: {what} against one process", max(
                abs(a - b) / abs(a) for a, b in zip(one[what], other[what], strict=True)), NEAR)
        yield at_most(f"{name}: weights against one process", abs(one["weights"] / other["weights"] - 1), NEAR)


@check(14, "two_vllm", seconds=180, needs=("two_gpus", "vllm", "deepspeed"))
def two_vllm(box: Box) -> Iterator[Figure]:
    """tests/inference/test_vllm_engine.py: an engine in each of two processes, and one for both (tensor parallel)."""
    os.environ["SHOW_GPUS"] = "1"  # to these tests: others hide them
    seen = Seen()
    os.environ["SHOW_GPUS"] = "1"  # tests/conftest.py hides them
    status = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests/inference/test_vllm_engine.py")],
                         plugins=[seen])
    yield at_least("tests", len(seen.collected), 1)
    yield equal("pytest's exit status", int(status), 0)
    yield equal("tests that failed", ", ".join(seen.failed), "")


@check(15, "two_runs", seconds=60, needs=("two_gpus", "deepspeed"), cpu="named")
def two_runs(box: Box) -> Iterator[Figure]:
    """CUDA_VISIBLE_DEVICES=1 and two runs of a launch script at once: both end well, and card 0 stays free."""
    base, data = make_base(box.folder, steps=100)
    environment = box.folder / "environment"
    make_environment(environment, f'#!/usr/bin/env bash\nexec {shlex.join(deepspeed())} "$@"\n')
    (environment / "bin" / "python").unlink()  # a link to a virtual environment's python would be another one
    (environment / "bin" / "python").write_text(f'#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    words = ["bash", "launch_scripts/uft_qwen0.5b_1gpu.sh", *to_words({
        "total_steps": 5, "prompts_per_step": 16, "mini_batch_prompts": 8, "max_prompt_length": 64,
        "max_response_length": 48, "max_tokens_per_micro_batch": 640, "eval_problems": 8, "kv_cache_gb": 1})]
    before, taken = free_gib(box), [0.0]
    runs = {}
    for number in range(2):
        folder = box.folder / f"run{number}"
        runs[folder] = start(words, folder.with_suffix(".txt"), MODEL=str(base), DATA=str(data), OUTPUT_DIR=str(folder),
                             VENV=str(environment), **box.pick({"CUDA_VISIBLE_DEVICES": "1"}, {}))
    while any(run.poll() is None for run in runs.values()):
        taken.append(before - free_gib(box))
        time.sleep(0.2)
    for folder, run in runs.items():
        yield equal(f"{folder.name}: status", wait(run, folder.with_suffix(".txt")), 0)
        yield equal(f"{folder.name}: steps", len(training_lines(folder)), 5)
    yield note("looks at card 0", len(taken) - 1)
    yield at_most("taken of card 0, GiB", max(taken), OTHER_CARD_GIB)


def free_gib(box: Box) -> float:
    """Of the first card."""
    return torch.cuda.mem_get_info(0)[0] / 2**30 if box.has_gpu else 0.0
