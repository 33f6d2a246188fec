"""What the page of runs shows, as plain values that JSON holds. Reads files of runs, also while they are written."""

import json
import re
import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.report.runs import (
    ACCURACY,
    data_name,
    distinct_names,
    evaluation_interval,
    named_groups,
    read_args,
    read_metrics,
    wilson_interval,
)
from utils.run.doctor import diagnoses
from utils.run.output_dir import plain, read_jsonl

MOST_POINTS = 2_000  # of a curve; longer runs are shown as means of so many spans of steps
MOST_SAMPLES = 400  # of a run, the newest
MOST_CHARACTERS = 20_000  # of a sample's text
SPANS = 10  # of steps, over which accuracy by slices is pooled
HALF = re.compile("[\ud800-\udfff]")  # of a pair of surrogates; Python's strings hold whole characters otherwise
SLICES = re.compile(r"accuracy/slices_(\d+)")


def page_data(output_dirs: Sequence[Path]) -> dict[str, Any]:
    """All that the page shows. A folder in which no run has begun is a run without lines."""
    folders = list(dict.fromkeys(folder.resolve() for folder in output_dirs))
    names = distinct_names(folders)
    groups = {run: group for group, runs in named_groups(folders).items() for run in runs}
    runs = [run_data(folder) | {"name": names[folder], "group": groups[folder]} for folder in folders]
    return plain({"made": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": runs})


def run_data(folder: Path) -> dict[str, Any]:
    lines = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
    training = [line for line in lines if "loss" in line]
    flags = read_args(folder)
    return {
        **facts(folder, flags), "args": flags,
        "steps": max((line["step"] for line in lines), default=0), "total_steps": flags.get("total_steps"),
        "curves": curves(training), "evaluations": evaluations(lines), "slices": accuracy_by_slices(training),
        "phases": phases(training, flags), "notes": health_notes(training), "samples": samples(folder),
    }


def facts(folder: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """Command, commit, hardware and time, as texts; empty where the run does not say."""
    path = folder / "environment.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    hardware, git, command = known.get("hardware", {}), known.get("git", {}), known.get("command", [])
    gpus = [f"{one['name']}, {one['memory_gib']:g} GiB" for one in hardware.get("gpus", [])]
    machine = [f"{hardware[key]}{unit}" for key, unit in (("cpu", ""), ("cores", " cores"), ("memory_gib", " GiB"))
               if hardware.get(key) is not None]
    processes = known.get("world_size")
    return {
        "folder": str(folder), "command": shlex.join(command), "script": Path(command[0]).stem if command else "",
        "model": str(flags.get("model", "")), "data": data_name(folder) if flags else "",
        "commit": (git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else ""),
        "hardware": "; ".join([*gpus, ", ".join(machine)] if machine else gpus),
        "processes": "" if processes is None else f"{processes} process{'es' * (processes > 1)}",
        "versions": ", ".join(f"{name} {known['versions'][name]}" for name in ("python", "torch", "deepspeed")
                              if known.get("versions", {}).get(name)),
        "started": known.get("date", ""), "seconds": seconds_until_last_line(folder, known.get("date")),
    }


def seconds_until_last_line(folder: Path, start: str | None) -> float | None:
    """From the run's start to the last line of its metrics, pauses before a --resume included."""
    path = folder / "metrics.jsonl"
    if not start or not path.is_file():
        return None
    return max(0.0, path.stat().st_mtime - datetime.strptime(start, "%Y-%m-%d %H:%M:%S %z").timestamp())


def short(value: Any) -> float | None:
    """A number with five digits; None for what is no number."""
    return float(f"{value:.5g}") if isinstance(value, int | float) else None


def spans(lines: list[dict], most: int) -> list[list[dict]]:
    """Consecutive lines, in at most `most` parts of about equal length."""
    number = min(most, len(lines))
    ends = [round(i * len(lines) / number) for i in range(number + 1)] if number else []
    return [lines[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def curves(training: list[dict]) -> dict[str, list[float | None]]:
    """{metric: its values}, `step` among them; null where a line has none. What has no number but 0 stays in."""
    names = [name for name in dict.fromkeys(name for line in training for name in line)
             if not re.search(r"/slices_\d+$", name)]

    def mean(name: str, part: list[dict]) -> float | None:
        numbers = [line[name] for line in part if isinstance(line.get(name), int | float)]
        return short(sum(numbers) / len(numbers)) if numbers else None

    parts = spans(training, MOST_POINTS)
    return {name: [part[-1]["step"] if name == "step" else mean(name, part) for part in parts] for name in names}


def evaluations(lines: list[dict]) -> list[dict[str, Any]]:
    """Accuracy with its 95 % interval, and what else an evaluation says."""
    shown = []
    for line in lines:
        if line.get(ACCURACY) is not None:
            low, high = evaluation_interval(line) if line.get("eval/n") else (None, None)
            rest = {name: line.get(f"eval/{name}") for name in ("accuracy", "n", "format", "response_tokens",
                                                                "truncated")}
            shown.append({"step": line["step"], "low": low, "high": high} | rest)
    return shown


def accuracy_by_slices(training: list[dict]) -> list[dict[str, Any]]:
    """For each number of slices that was shown: accuracy over the whole run, and over spans of steps."""
    numbers = sorted({int(found[1]) for line in training for name in line if (found := SLICES.fullmatch(name))})

    def pooled(number: int, lines: list[dict]) -> dict[str, Any] | None:
        counts = [(line[f"accuracy/slices_{number}"], line[f"rollouts/slices_{number}"]) for line in lines
                  if f"accuracy/slices_{number}" in line]
        n = sum(count for _, count in counts)
        if not n:
            return None
        right = min(n, sum(accuracy * count for accuracy, count in counts))
        low, high = wilson_interval(right, n)
        return {"from": lines[0]["step"], "to": lines[-1]["step"], "accuracy": right / n, "n": n, "low": low,
                "high": high}

    return [{"slices": number, "all": pooled(number, training),
             "spans": [one for part in spans(training, SPANS) if (one := pooled(number, part))]} for number in numbers]


def phases(training: list[dict], flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of each part of the steps, and what was done in it where that is known."""
    names = list(dict.fromkeys(name for line in training for name in line if name.startswith("seconds/")))
    prompts, group = flags.get("prompts_per_step", 0), flags.get("group_size", 0)
    share = flags.get("share_prefix", True)

    def total(name: str) -> float:
        return sum(line.get(name) or 0.0 for line in training)

    responses = prompts * group
    prefixes = (total("prompt_tokens") + total("hint_tokens")) * prompts * (1 if share else group)
    work = {"rollout": ("tokens sampled", responses * total("response_tokens")),
            "reward": ("responses verified", responses * len(training)),
            "update": ("tokens forward and backward", prefixes + responses * total("response_tokens"))}
    if not group or not any("prompt_tokens" in line for line in training):
        work.pop("update")
    return [{"name": name.removeprefix("seconds/"), "seconds": total(name),
             "unit": work.get(name.removeprefix("seconds/"), ("", 0))[0],
             "amount": work.get(name.removeprefix("seconds/"), ("", 0))[1]} for name in names if total(name)]


def health_notes(training: list[dict]) -> list[dict[str, Any]]:
    """What the doctor says, and what went wrong but did not stop the run. A text that differs in its numbers only is
    told once, as it was last, with its first and last step."""
    told = list(diagnoses(training))
    for line in training:
        if line.get("skipped_updates"):
            told.append((line["step"], f"{line['skipped_updates']:g} updates were skipped: a loss or gradient was not"
                         " finite"))
        if line.get("verifier_timeouts"):
            told.append((line["step"], f"{line['verifier_timeouts']:g} responses had a verifier that ran out of time or"
                         " failed"))
    notes: dict[str, dict[str, Any]] = {}
    for step, text in sorted(told):
        note = notes.setdefault(re.sub(r"[\d.]+", "#", text), {"first": step, "count": 0})
        note |= {"last": step, "count": note["count"] + 1, "text": text}
    return list(notes.values())


def samples(folder: Path) -> list[dict[str, Any]]:
    """The newest samples, oldest first; their texts cut, and half characters (lone surrogates) replaced."""
    path = folder / "samples.jsonl"
    lines = read_jsonl(path)[-MOST_SAMPLES:] if path.is_file() else []

    def cut(text: str) -> str:
        text = HALF.sub("\N{REPLACEMENT CHARACTER}", text)
        left_out = len(text) - MOST_CHARACTERS
        return text if left_out <= 0 else f"{text[:MOST_CHARACTERS]} [{left_out} more characters]"

    return [line | {name: cut(line.get(name, "")) for name in ("prompt", "hint", "response")} for line in lines]
