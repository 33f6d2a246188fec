"""The table of tests/bench/README.md from what all.sh has measured: `python -m tests.bench.table runs/bench`."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.report.runs import table
from utils.run.environment import environment


@dataclass(frozen=True)
class Row:
    what: str
    file: str  # of $OUT, without .json
    value: Callable[[Any], float | str]
    before: str  # measured at commit 84991cc, Intel / AMD where both are known
    least: str
    aim: str


def ratio_to_generate(result: dict) -> float:
    return result["result"]["ratio"]["generate"]


def share_of_limit(results: list[dict]) -> float:
    return min(results[0]["shared"]["of the limit"].values())


ROWS = (
    Row("step against TRL, 4.9M, n = 4", "step", ratio_to_generate, "2.9 / 3.8", "3.5", "5"),
    Row("the same, both with bfloat16 products", "step_medium", ratio_to_generate, "", "", ""),
    Row("the same, hints, n = 8", "step_hints", ratio_to_generate, "- / 5.2", "5", "7"),
    Row("step against TRL, quickstart's tiny model", "step_tiny", ratio_to_generate, "- / 1.9", "2.5", "4"),
    Row("rollout against generate, n = 1", "rollout", lambda rows: rows[0]["ratio to generate"], "1.9 / 2.9", "3", "4"),
    Row("rollout against vLLM's CPU build, least", "rollout_vllm", lambda rows: min(r["ratio to vllm"] for r in rows),
        "0.85", "1", ""),
    Row("the same, mean of 12 cases", "rollout_vllm", lambda rows: fmean(r["ratio to vllm"] for r in rows), "", "1.2",
        "1.5"),
    Row("the same, 1,024 new tokens, least", "rollout_vllm_long", lambda rows: min(r["ratio to vllm"] for r in rows),
        "", "1", ""),
    Row("update, share of the matmul limit", "update", share_of_limit, ".41 / .46", ".60", ".75"),
    Row("update, medium, share of float32's limit", "update_medium", share_of_limit, "", "", ""),
    Row("peak memory, V = 152k, 353M, checkpointed, times states", "update_memory",
        lambda results: results[0]["MiB"]["all over states"], "1.45", "1.3", "1.15"),
    Row("update, Gemma 3 270M, V = 262k, share of the limit", "update_gemma", share_of_limit, ".21", ".5", ".6"),
    Row("evaluation against a rollout, tokens/s", "evaluation", lambda result: result["ratio"], "", "0.9", "1"),
    Row("start to the first line, two processes, s", "start", lambda result: result["first line"], "", "half", ""),
)


def main(folder: Path) -> None:
    rows = []
    for row in ROWS:
        path = folder / f"{row.file}.json"
        now = f"{row.value(json.loads(path.read_text())):.2f}" if path.is_file() else "not measured"
        rows.append([row.what, row.before, now, row.least, row.aim])
    here = environment()
    print(table(["", "before, Intel / AMD", "now", "at least", "aim"], rows))
    print(f"\n{here['hardware']['cpu']}, {here['hardware']['cores']} cores, commit {here['git']['commit'][:7]}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
