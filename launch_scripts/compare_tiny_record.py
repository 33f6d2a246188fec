"""The runs of compare_tiny.sh as one file, a line each, and folders made of its lines again.

    python launch_scripts/compare_tiny_record.py save --run runs/compare_tiny       adds what is complete there
    python launch_scripts/compare_tiny_record.py restore --run runs/compare_tiny    makes folders of what is not there

A line has the flags of a run, commit and processor, and of its metrics what the reports read, at the steps that were
evaluated: accuracy, hints, and the tokens since the step before. A folder made of it has neither model nor samples;
its file `restored` tells it from a run's.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.report.runs import ACCURACY, read_args, read_metrics

RECORD = Path(__file__).with_name("compare_tiny_runs.jsonl")
EVALUATED = ("step", ACCURACY, "eval/n")
SUMMED = ("tokens/sampled", "tokens/response", "tokens/hint", "tokens/demonstration")  # since the line before
AT_STEP = ("loss", "hint_slices", "hint_share", "rollouts/hinted", "state_grad_norm/hint")


def is_complete(run: Path) -> bool:
    return (run / "curves.png").is_file()


def thinned(lines: list[dict]) -> list[dict]:
    """Of the lines of metrics.jsonl the evaluations, and for each the training line of its step."""
    trained = [line for line in lines if "loss" in line]
    kept, start = [], 0
    for evaluation in (line for line in lines if ACCURACY in line):
        since = [line for line in trained if start < line["step"] <= evaluation["step"]]
        if since:
            sums = {name: sum(line[name] for line in since) for name in SUMMED if name in since[-1]}
            values = {name: rounded(since[-1][name]) for name in AT_STEP if name in since[-1]}
            kept.append({"step": since[-1]["step"]} | values | sums)
        kept.append({name: rounded(evaluation[name]) for name in EVALUATED})
        start = evaluation["step"]
    return kept


def rounded(value: float | None) -> float | None:
    """To six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def record_of(root: Path, run: Path) -> dict:
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    args = read_args(run)
    given = {name: args[name] for name in args if f"--{name}" in environment["command"] or name == "eval_problems"}
    for name in ("model", "data"):
        given[name] = str(Path(given[name]).resolve().relative_to(root.resolve()))
    for name in ("output_dir", "overwrite", "resume"):
        given.pop(name, None)
    return {"run": str(run.relative_to(root)), "commit": environment["git"]["commit"],
            "processor": environment["hardware"]["cpu"], "args": given, "lines": thinned(read_metrics(run))}


def read_record() -> dict[str, dict]:
    """The lines, by the run's folder."""
    lines = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.is_file() else []
    return {record["run"]: record for record in map(json.loads, lines)}


def save(root: Path) -> None:
    """A run that is complete here takes the place of one of its name."""
    records = read_record()
    for path in sorted(root.rglob("metrics.jsonl")):
        if is_complete(path.parent) and path.parent.parent.name != "tuning":
            record = record_of(root, path.parent)
            records[record["run"]] = record
    RECORD.write_text("".join(json.dumps(records[run]) + "\n" for run in sorted(records)), encoding="utf-8")


def restore(root: Path) -> None:
    """What is there, complete or not, is left as it is."""
    for name, record in read_record().items():
        run = root / name
        if run.exists():
            continue
        run.mkdir(parents=True)
        args = record["args"] | {key: str(root.resolve() / record["args"][key]) for key in ("model", "data")}
        (run / "args.json").write_text(json.dumps(args, indent=1), encoding="utf-8")
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in record["lines"]),
                                           encoding="utf-8")
        (run / "restored").write_text(f"at {record['commit']} on {record['processor']}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("--run", type=Path, required=True)
    args = parser.parse_args()
    save(args.run) if args.what == "save" else restore(args.run)


if __name__ == "__main__":
    main()
