"""uft.py as it is, in bfloat16: that it learns without skipped updates, and goes on after a SIGTERM."""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.checks import Box, Figure, at_most, check, equal, note
from tests.gpu.runs import last_process_of, make_base, train, wait, wait_until
from tests.helpers.launching import training_lines
from utils.run.logger import depends_on_machine

MISMATCH = 0.05  # nats, the mean
NEAR = 0.05  # of the numbers of the first step after the resume, relative
COMPARED = ("reward", "loss", "entropy", "sft_loss", "kl_loss", "response_tokens")


@check(10, "whole_run", seconds=60, needs=("deepspeed",), cpu="long")
def whole_run(box: Box) -> Iterator[Figure]:
    """30 steps of uft.py at stages 3 and 1, torch engine; after SIGTERM and --resume the lines of the unbroken run."""
    base, data = make_base(box.folder, steps=box.pick(200, 40))
    steps, broken_after = box.pick((30, 3), (3, 1))
    flags = {
        "model": base, "data": data, "seed": 1, "total_steps": steps, "hint_steps": 10, "eval_every": 100,
        "eval_problems": 8, "save_every": 100, "prompts_per_step": 16, "group_size": 4, "mini_batch_prompts": 8,
        "max_prompt_length": 64, "max_response_length": box.pick(48, 24), "max_tokens_per_micro_batch": 640,
        "lr": 1e-5, "kl_coef": 0.1, "dtype": "bfloat16", "engine": "torch", "zero_stage": 3, "sft_coef": 0.1,
    }
    whole, broken, of_stage_1 = (box.folder / name for name in ("whole", "broken", "stage1"))
    others = box.pick({of_stage_1: {"zero_stage": 1}}, {})
    runs = {folder: train(flags | own | {"output_dir": folder}, log_of(folder), box.has_gpu or folder == whole)
            for folder, own in ({broken: {}, whole: {}} | others).items()}  # at once: they leave most of a GPU idle
    wait_until(lambda: len(lines(broken)) >= broken_after, runs[broken])
    os.kill(last_process_of(broken), signal.SIGTERM)
    yield equal("status after SIGTERM", wait(runs[broken], log_of(broken)), 0)
    done = len(lines(broken))
    yield note("steps done before it", done)
    resumed = train(flags | {"output_dir": broken, "resume": True}, log_of(broken), box.has_gpu)
    for folder in runs.keys() - {broken}:
        yield equal(f"{folder.name}: status", wait(runs[folder], log_of(folder)), 0)
        yield from of_run(folder.name, lines(folder), steps)
    yield equal("resumed: status", wait(resumed, log_of(broken)), 0)
    yield from of_run("resumed", lines(broken), steps)
    pairs = list(zip(lines(whole), lines(broken), strict=True))[done:]
    if box.has_gpu:
        yield at_most("resumed: first step, against the unbroken run's", worst(*pairs[0]), NEAR)
        yield note("resumed: last step, against the unbroken run's", worst(*pairs[-1]))
    else:
        yield equal("resumed: lines that are not the unbroken run's", sum(one != other for one, other in pairs), 0)


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".txt")


def lines(folder: Path) -> list[dict]:
    """Training lines without times."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [{name: value for name, value in line.items() if not depends_on_machine(name)}
            for line in training_lines(folder)]


def of_run(name: str, found: list[dict], steps: int) -> Iterator[Figure]:
    yield equal(f"{name}: each step once", [line["step"] for line in found] == list(range(1, steps + 1)), True)
    yield equal(f"{name}: updates skipped", sum(line["skipped_updates"] for line in found), 0)
    yield equal(f"{name}: losses and norms that are not finite", sum(
        not math.isfinite(math.nan if line[part] is None else line[part])
        for line in found for part in ("loss", "grad_norm")), 0)
    yield at_most(f"{name}: largest logprob_mismatch", max(line["logprob_mismatch"] for line in found), MISMATCH)
    yield note(f"{name}: reward, first and last", f"{found[0]['reward']:.3f} {found[-1]['reward']:.3f}")


def worst(one: dict, other: dict) -> float:
    """Largest relative difference of the numbers compared."""
    return max(abs(one[name] - other[name]) / max(abs(one[name]), abs(other[name]), 1e-2) for name in COMPARED)
