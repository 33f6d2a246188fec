"""--profile_steps A:B: which steps, and the table of their phases: FLOP/s beside what a matrix product reaches here."""

import re
import time
from functools import partial
from pathlib import Path

import torch

from utils import profiling
from utils.cpu_linear import product
from utils.pretrained import resolve_dtype
from utils.profiling import Phase, Profile
from utils.run import distributed
from utils.run.errors import require
from utils.run.logger import Logger
from utils.setup.duration import Work
from utils.setup.shapes import Shape

FOLDER = "profile"  # in an output folder
REPEATS = 4  # of the matrix product, of which the fastest counts


def profiled_steps(words: str, total_steps: int) -> tuple[int, int] | None:
    """First and last step of `A:B`, or of `A`; None of nothing. Raises BadInput."""
    if not words:
        return None
    found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", words, re.ASCII)
    require(found is not None, "--profile_steps", words, "must be a step, or two as in 5:7")
    first, last = int(found[1]), int(found[2] or found[1])
    require(1 <= first <= last <= total_steps, "--profile_steps", words,
            f"must lie between 1 and --total_steps {total_steps}, the first not after the last")
    return first, last


def start_profile(words: str, total_steps: int, output_dir: str, dtype: str, shape: Shape | None,
                  logger: Logger) -> None:
    """From here on the steps that `words` name are profiled, if they come; the first process writes the trace."""
    steps = profiled_steps(words, total_steps)
    if steps is None:
        return profiling.start(None)
    stem = Path(output_dir) / FOLDER / f"steps_{steps[0]}_to_{steps[1]}"
    report = partial(tell, stem, steps, dtype, shape, logger)
    profiling.start(Profile(*steps, stem.with_suffix(".json.gz") if distributed.is_main() else None, report))


def tell(stem: Path, steps: tuple[int, int], dtype: str, shape: Shape | None, logger: Logger,
         phases: dict[str, Phase], num_steps: int) -> None:
    """All ranks measure together, as they compute together; the first one tells of itself."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    distributed.barrier()
    limit, size = matrix_limit(device, resolve_dtype(dtype, device))
    if distributed.is_main():
        where = f"rank 0 of {distributed.world_size()}" if distributed.world_size() > 1 else "one process"
        text = (f"profile of steps {steps[0]} to {steps[1]}, {where}, means of a step; the profiler costs time of its "
                f"own. Limit: {limit / 1e9:.0f} GFLOP/s, of a matrix product ({size} x {size})\n"
                f"{phase_table(phases, num_steps, shape, limit)}\ntrace: {stem.with_suffix('.json.gz')} "
                "(chrome://tracing, ui.perfetto.dev)")
        stem.with_suffix(".txt").write_text(text + "\n")
        logger.print(text)


def phase_table(phases: dict[str, Phase], num_steps: int, shape: Shape | None, limit: float) -> str:
    """Seconds, FLOPs that the work needs (what is computed twice to save memory counts once), FLOP/s and their share of
    `limit`. Without a `shape` the FLOPs are not known."""
    rows = [["phase", "seconds", "share", "GFLOP", "GFLOP/s", "of the limit"]]
    total = Phase(sum(phase.seconds for phase in phases.values()))
    for phase in phases.values():
        total.add(phase.tokens, phase.scored, phase.pairs, times=1)
    for name, phase in (phases | {"step": total}).items():
        row = [name, f"{phase.seconds / num_steps:.3f}", f"{phase.seconds / max(total.seconds, 1e-9):.0%}"]
        flops = sum(Work(phase.tokens, phase.scored, phase.pairs).flops(shape)) if shape is not None else 0.0
        if flops:
            rate = flops / phase.seconds
            row += [f"{flops / num_steps / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{rate / limit:.1%}"]
        rows.append(row + ["-"] * (len(rows[0]) - len(row)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                           zip(row[1:], widths[1:], strict=True))]) for row in rows)


def matrix_limit(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """FLOP/s of a large matrix product, as linear layers compute it, and its size."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.perf_counter()
            product(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), size
