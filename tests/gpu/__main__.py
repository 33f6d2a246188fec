"""Runs the checks and prints a table of their figures.

    python -m tests.gpu                          # all, in eight minutes; on a CPU their small forms
    python -m tests.gpu cudnn_nan varlen         # these
    python -m tests.gpu --list
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tests.gpu import load_checks
from tests.gpu.checks import CHECKS, ERROR, FAIL
from tests.gpu.machine import ask, one_line
from tests.gpu.runner import lines_of, run_checks


@dataclass
class Args:
    names: tyro.conf.Positional[tuple[str, ...]] = ()  # of checks; none: all
    json: str = "runs/gpu_checks.json"  # the figures and the machine, written after each check
    minutes: float = 8.0  # after which no check begins, and the one that runs ends
    list: bool = False  # only say what there is


def main(args: Args) -> int:
    """The exit status: 1 where a check failed, 2 where there is no such check."""
    load_checks()
    checks = sorted(CHECKS.values(), key=lambda one: one.number)
    unknown = [name for name in args.names if name not in CHECKS]
    if unknown:
        print(f"error: no check {', '.join(unknown)}; there are {', '.join(one.name for one in checks)}",
              file=sys.stderr)
        return 2
    if args.list:
        for one in checks:
            print(f"{one.number:>2} {one.name:<14} {one.seconds:>4} s  needs {', '.join(one.needs) or 'nothing':<20} "
                  f"{one.about}")
        return 0
    machine, start = ask(), time.monotonic()
    print(one_line(machine), flush=True)
    if machine["reason"]:
        print(f"FAIL: there is a card, and CUDA cannot use it: {machine['reason']}")
        write(args.json, machine, [], start)
        return 1
    if not machine["cards"]:
        print("no GPU here: what can is run small, on the CPU")
    results = []
    chosen = [one for one in checks if one.name in args.names or not args.names]
    for result in run_checks(chosen, machine, args.minutes, bool(args.names)):
        print(lines_of(result), flush=True)
        results.append(result)
        write(args.json, machine, results, start)
    verdicts = [result["verdict"] for result in results]
    print(f"{time.monotonic() - start:.0f} s: " + ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) + f"; {args.json}")
    for result in results:
        if result["log"]:
            print(f"--- the end of what {result['name']} printed ---\n{result['log'][-2000:]}")
    return int(bool({FAIL, ERROR} & set(verdicts)))


def write(path: str, machine: dict[str, Any], results: list[dict], start: float) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "seconds": round(time.monotonic() - start, 1), "checks": results},
                               indent=1, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))))
