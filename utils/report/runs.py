"""Reading runs: their lines, what they were given, which belong together; intervals and Markdown tables."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from utils.run.output_dir import read_jsonl

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
ACCURACY = "eval/accuracy"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval (Wilson 1927) of a proportion: with p = successes / n and z = 1.96,
    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n). Sound at 0 and n successes too."""
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"wilson_interval: {successes} successes of n = {n}; must be 0 <= successes <= n and n > 0")
    p, z2n = successes / n, Z_95**2 / n
    half_width = Z_95 * math.sqrt(p * (1 - p) / n + z2n / (4 * n))
    return max(0.0, (p + z2n / 2 - half_width) / (1 + z2n)), min(1.0, (p + z2n / 2 + half_width) / (1 + z2n))


def read_metrics(output_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl, in order, without a torn last one."""
    return read_jsonl(Path(output_dir) / "metrics.jsonl")


def read_evaluations(output_dir: str | Path) -> list[dict]:
    """The evaluation lines of a run; ValueError where it has none."""
    evaluations = [line for line in read_metrics(output_dir) if ACCURACY in line]
    if not evaluations:
        raise ValueError(f"{Path(output_dir) / 'metrics.jsonl'} has no evaluation ({ACCURACY})")
    return evaluations


def has_evaluation(output_dir: str | Path) -> bool:
    return any(ACCURACY in line for line in read_metrics(output_dir))


def evaluation_interval(*evaluations: dict) -> tuple[float, float]:
    """95 % interval of the accuracy of one evaluation line, or of several pooled."""
    n = sum(line["eval/n"] for line in evaluations)
    return wilson_interval(sum(round(line[ACCURACY] * line["eval/n"]) for line in evaluations), n)


def read_args(output_dir: str | Path) -> dict:
    """The flags of a run; {} where it has no args.json."""
    path = Path(output_dir) / "args.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_on_hub(name: str) -> bool:
    """Whether a model or data set of that name must be the hub's."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def data_name(output_dir: str | Path) -> str:
    """What a run was trained on, for people: the last folder of --data that is not called `data`, if there is one."""
    path = Path(read_args(output_dir).get("data", "unknown data"))
    return without_data(path).name or path.name or str(path)


def without_data(path: Path) -> Path:
    """The path without its folders called `data`, a name that says nothing."""
    return Path(*(part for part in path.parts if part != "data"))


def distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest end of each absolute path that no other has: its last part, and as many before that as it takes."""
    names = {}
    for path in paths:
        num = 1
        while any(other.parts[-num:] == path.parts[-num:] for other in paths if other != path):
            num += 1
        names[path] = str(Path(*path.parts[-num:]))
    return names


def group_by_seed(output_dirs: Sequence[Path]) -> dict[str, list[Path]]:
    """{name without _seedN: its runs}, in the order given. Runs of a group lie in one folder."""
    groups: dict[str, list[Path]] = {}
    for output_dir in output_dirs:
        groups.setdefault(re.sub(r"_seed\d+$", "", str(output_dir.resolve())), []).append(output_dir)
    return groups


def named_groups(output_dirs: Sequence[Path]) -> dict[str, list[Path]]:
    """The same by the folder's name without _seedN; where folders in different places have one name, that is preceded
    by as much of their paths as tells them apart."""
    groups = group_by_seed(output_dirs)
    names = distinct_names([Path(group) for group in groups])
    return {names[Path(group)]: runs for group, runs in groups.items()}


def seed_counts(groups: dict[str, list[Path]]) -> str:
    """ "3 seeds", or "1 to 3 seeds" where groups differ."""
    sizes = sorted({len(runs) for runs in groups.values()})
    return f"{sizes[0]} seed{'s' * (sizes[0] > 1)}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} seeds"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines)
