"""A check in a process of its own: a crash, a lack of memory or a hang takes nothing else with it."""

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.gpu.checks import CHECKS, ERROR, FAIL, Box, Check, Figure, reason_to_skip, shown, verdict_of
from tests.helpers.launching import MARK, marked
from utils import ROOT
from utils.run.output_dir import read_jsonl

LOG_TAIL = 6_000  # characters of a check's output that the report keeps where it did not pass
SKIPPED = "skipped"


def run_checks(checks: list[Check], machine: dict[str, Any], minutes: float, is_named: bool) -> Iterator[dict]:
    """A result of each check, in order. What has not begun after `minutes` is left out, what is running then ends."""
    end = time.monotonic() + 60 * minutes
    for one in checks:
        reason = reason_to_skip(one, machine, is_named)
        left = end - time.monotonic()
        if reason is None and left <= 0:
            reason = f"no time left of {minutes:g} minutes"
        yield _result(one, machine, SKIPPED, reason) if reason is not None else run_check(one, machine, left)


def run_check(one: Check, machine: dict[str, Any], limit: float) -> dict[str, Any]:
    """{"verdict": ok, missed, FAIL or error; "figures", "seconds", ...}. It may take three times its seconds."""
    limit = min(limit, 3 * one.seconds + 30)
    has_gpu = bool(machine["cards"])
    # A process that has CUDA cannot be forked; without it a fork spares the seconds of all imports.
    context = multiprocessing.get_context("spawn" if has_gpu else "fork")
    mark, start = uuid.uuid4().hex, time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{one.name}_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        sys.stdout.flush()
        process = context.Process(target=_alone, args=(one.name, one.run.__module__, folder, has_gpu, mark))
        process.start()
        process.join(limit)
        is_late = process.is_alive()
        end_all(process.pid, mark)
        process.join()
        figures, ended, error = [], False, None
        for line in read_jsonl(folder / "figures.jsonl") if (folder / "figures.jsonl").exists() else []:
            if "error" in line:
                ended, error = True, line["error"]
            else:
                figures.append(Figure(**line))
        if not ended:
            error = f"ended after {limit:.0f} s" if is_late else f"its process ended with status {process.exitcode}"
        log = (folder / "log.txt").read_text(errors="replace") if (folder / "log.txt").exists() else ""
    verdict = verdict_of(figures, error)
    return _result(one, machine, verdict, error, time.monotonic() - start, figures,
                   log[-LOG_TAIL:] if verdict in (FAIL, ERROR) else "")


def _result(one: Check, machine: dict[str, Any], verdict: str, reason: str | None, seconds: float = 0.0,
            figures: list[Figure] = (), log: str = "") -> dict[str, Any]:
    return {"number": one.number, "name": one.name, "about": one.about, "on": "gpu" if machine["cards"] else "cpu",
            "verdict": verdict, "reason": reason, "seconds": round(seconds, 1), "budget": one.seconds,
            "figures": [asdict(figure) for figure in figures], "log": log}


def _alone(name: str, module: str, folder: Path, has_gpu: bool, mark: str) -> None:
    """What the process of a check does: figures go to a file one by one, everything printed to another."""
    os.setsid()  # so that all it starts can be ended with it
    os.chdir(ROOT)
    os.environ[MARK] = mark
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    sys.stdout = sys.stderr = log = (folder / "log.txt").open("w", buffering=1)
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    error = None
    with (folder / "figures.jsonl").open("w") as file:
        try:
            importlib.import_module(module)  # registers it
            for figure in CHECKS[name].run(Box(folder, has_gpu)):
                file.write(json.dumps(asdict(figure) | {"value": storable(figure.value)}) + "\n")
                file.flush()
        except BaseException as raised:  # a failed row, whatever it is
            traceback.print_exc()
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"
        file.write(json.dumps({"error": error}) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a library's teardown may hang or abort


def storable(value: Any) -> Any:
    """As JSON holds it: NaN and infinities as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def end_all(pid: int, mark: str) -> None:
    """Kills a check's process and whatever it started that still lives."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # where it had no group of its own yet
    for left in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def lines_of(result: dict[str, Any]) -> str:
    """The result as a part of the table: check, figure, bound, verdict."""
    of_cpu = " (cpu)" if result["on"] == "cpu" else ""
    seconds = "" if result["verdict"] == SKIPPED else f"{result['seconds']:.1f} s"
    head = f"{result['number']:>2} {result['name'] + of_cpu:<58} {seconds:>10} {'':>12} {result['verdict']}"
    rows = [f"     {figure['name']:<54} {shown(figure['value']):>10} {figure['bound']:>12} {figure['verdict']}".rstrip()
            for figure in result["figures"]]
    reason = [f"     {result['reason']}"] if result["reason"] else []
    return "\n".join([head, *rows, *reason])
