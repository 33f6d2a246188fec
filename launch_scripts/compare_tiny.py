"""What compare_tiny.sh runs, a line a run: its folder, its script, its flags.

    python launch_scripts/compare_tiny.py tune --run runs/compare_tiny --tasks countdown tree6 sudoku --seeds 0 1 2

The runs of `--part 2` begin with what runs of `--part 1` have made; part 0 is both, for the tables: all seeds of a
method stand together, and the sweeps have the runs that they share with the comparison.
Every method is tuned alike: four runs as long as those of the comparison, with a seed that it does not use, on problems
of another seed; the best last evaluation there decides, and of equal ones the best mean of all. A method with a
coefficient of its own is tried with two learning rates and two of it, one without with four learning rates.
compare_tiny_tuned.json keeps what was chosen, and what all four had: a method that it has is not tuned again. `keep`
adds what is complete. To tune anew, take an entry out.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.report.runs import ACCURACY, read_evaluations

TUNING_SEED = 100
KEPT = Path(__file__).with_name("compare_tiny_tuned.json")  # {task: {method: {"flags": chosen, "accuracies": of four}}}
Flags = dict[str, object]


@dataclass(frozen=True)
class Task:
    steps: int  # training steps of a run
    lr: float  # learning rate of methods that sample, and take four updates a step, before it is tuned
    sft_lr: float  # of SFT, one update a step
    eval_every: int
    flags: Flags  # of every run
    sampling: Flags  # of those that sample


TASKS = {
    "countdown": Task(80, 1e-4, 1e-3, 20, {"prompts_per_step": 32, "max_prompt_length": 96, "max_response_length": 64},
                      {"group_size": 4, "mini_batch_prompts": 8}),
    "sudoku": Task(80, 1e-4, 2e-3, 20, {"prompts_per_step": 32, "max_prompt_length": 96, "max_response_length": 80},
                   {"group_size": 4, "mini_batch_prompts": 8}),
    "tree6": Task(80, 4e-4, 1e-3, 10, {"prompts_per_step": 32, "max_prompt_length": 48, "max_response_length": 64},
                  {"group_size": 8, "mini_batch_prompts": 8}),
}


@dataclass(frozen=True)
class Method:
    script: str
    own: tuple[Flags, ...] = ()  # two settings of the method's own coefficient
    flags: Flags = field(default_factory=dict)  # a share of the steps where the value is a text "0.5 steps"
    begins_with: str = ""  # the method whose last checkpoint it trains


DEMONSTRATIONS = {"max_demonstration_length": 96}
HINTS = {"hint_steps": "0.5 steps"}
SFT_COEFS = ({"sft_coef": 0.001}, {"sft_coef": 1.0})
METHODS = {
    "sft": Method("sft"),
    "rft": Method("rft"),
    "dapo": Method("dapo"),
    # An SFT step costs 3 passes for a demonstration, an RFT step 4 for each of its samples: fewer steps for equal cost.
    "sft_rft": Method("rft", flags={"total_steps": "0.8 steps"}, begins_with="sft"),
    "r3": Method("r3"),
    "stage": Method("stage", SFT_COEFS, HINTS),
    "uft": Method("uft", SFT_COEFS, HINTS),
    "uft_adaptive": Method("uft_adaptive", SFT_COEFS),
    "luffy": Method("luffy", ({"shaping": 0.1}, {"shaping": 0.5}), DEMONSTRATIONS),
    "chord": Method("chord", ({"phi": True, "mu_peak": 0.1, "mu_valley": 0.1}, {"mu_peak": 0.9, "mu_valley": 0.05,
                    "mu_decay": "0.5 steps"}), DEMONSTRATIONS),
    "hpt": Method("hpt", ({"sft_coef": 1.0}, {"sft_coef": 0.3}), DEMONSTRATIONS),
    "srft": Method("srft", ({"sft_coef": 0.5}, {"sft_coef": 2.0}), DEMONSTRATIONS),
    "relift": Method("relift", ({"sft_lr": 1e-4}, {"sft_lr": 1e-3}), DEMONSTRATIONS | {"buffer_size": 32}),
    "adaback": Method("adaback"),
    "ghpo": Method("ghpo"),
    "prefix_rft": Method("prefix_rft", ({"prefix_loss": "top"}, {"prefix_loss": "all"})),
}
# One flag each, every other as in the comparison. What is learned of a prefix, and UFT's two sweeps.
SWEEPS = {
    **{f"prefix_{kind}": ("prefix_rft", {"prefix_loss": kind}) for kind in ("top", "all", "none", "nll")},
    **{f"uft_sft_coef_{value:g}": ("uft", {"sft_coef": value}) for value in (0.0, 0.001, 0.01, 0.1, 1.0)},
    **{f"uft_hint_steps_{share:g}": ("uft", {"hint_steps": f"{share} steps"}) for share in (0.125, 0.25, 0.75, 1.0)},
}
SIZES = ("small", "middle")  # bases of Countdown beside that of the comparison, which is the largest
OVER_MODELS = ("sft", "rft", "sft_rft", "r3", "stage", "uft")


@dataclass(frozen=True)
class Run:
    folder: Path
    script: str
    flags: Flags

    def line(self) -> str:
        words = [f"--{name}" if value is True else f"--{name} {value}" for name, value in self.flags.items()]
        return f"{self.folder} {self.script} {' '.join(words)}"


def settings(method: Method, task: Task) -> list[Flags]:
    """The four that a method is tuned over."""
    lr = task.sft_lr if method.script == "sft" else task.lr
    if method.own:
        return [{"lr": lr * factor} | own for own, factor in product(method.own, (1, 2))]
    return [{"lr": lr * factor} for factor in (1, 2, 4, 0.5)]


def make_run(task: Task, folder: Path, name: str, chosen: Flags, seed: int, model: Path, data: Path,
             num_steps: int) -> Run:
    """`chosen` are the tuned flags; `folder` is the run's."""
    method = METHODS[name]
    flags: Flags = {"model": model, "data": data, "seed": seed, "total_steps": num_steps, "eval_every": task.eval_every,
                    **task.flags}
    if method.script == "sft":
        flags |= {"mini_batch_prompts": task.flags["prompts_per_step"],
                  "max_length": task.flags["max_prompt_length"] + task.flags["max_response_length"]}
    else:
        flags |= {**task.sampling, "kl_coef": 0}
        if method.script not in ("srft", "prefix_rft"):  # the one has no ratio, the other one of tokens not sampled
            flags["old_logprobs"] = "engine"  # the same numbers, a pass less
    flags |= method.flags | chosen
    for key, value in flags.items():
        if isinstance(value, str) and value.endswith(" steps"):
            flags[key] = max(1, round(float(value.split()[0]) * num_steps))
    return Run(folder, method.script, flags)


def last_checkpoint(run: Path, num_steps: int) -> Path:
    return run / "checkpoints" / f"step_{num_steps}" / "hf"


def tuning(root: Path, task_name: str, name: str) -> list[Run]:
    task, folder, first = TASKS[task_name], root / task_name, METHODS[name].begins_with
    model = folder / "base"
    if first:
        best = best_of(tuning_evaluations(root, task_name, first))
        model = last_checkpoint(folder / "tuning" / f"{first}_{best}", task.steps)
    return [make_run(task, folder / "tuning" / f"{name}_{i}", name, chosen, TUNING_SEED, model, folder / "tuning_data",
                     task.steps)
            for i, chosen in enumerate(settings(METHODS[name], task))]


def tuning_evaluations(root: Path, task_name: str, name: str) -> list[list[float]]:
    """The accuracies of the four runs, each from its first evaluation to its last."""
    return [[line[ACCURACY] for line in read_evaluations(root / task_name / "tuning" / f"{name}_{i}")]
            for i in range(4)]


def best_of(accuracies: list[list[float]]) -> int:
    """Which had the best last evaluation; of equal ones the best mean of all, then the first."""
    return max(range(4), key=lambda i: (accuracies[i][-1], fmean(accuracies[i]), -i))


def read_kept() -> dict[str, dict[str, dict]]:
    return json.loads(KEPT.read_text(encoding="utf-8"))


def tuning_outcome(root: Path, task_name: str, name: str) -> tuple[Flags, list[float]]:
    """The flags that were chosen, and the last accuracies of the four settings. ValueError where not all four have
    one."""
    if (kept := read_kept().get(task_name, {}).get(name)) is not None:
        return kept["flags"], kept["accuracies"]
    accuracies = tuning_evaluations(root, task_name, name)
    return settings(METHODS[name], TASKS[task_name])[best_of(accuracies)], [of_run[-1] for of_run in accuracies]


def is_to_tune(task_name: str, name: str) -> bool:
    """Also where only a method that begins with its runs is not kept."""
    kept = read_kept().get(task_name, {})
    return name not in kept or any(method.begins_with == name and other not in kept
                                   for other, method in METHODS.items())


def keep(root: Path, tasks: list[str]) -> None:
    """Adds to the file what is complete, methods in their order."""
    kept = read_kept()
    for task, name in product(tasks, METHODS):
        if all((root / task / "tuning" / f"{name}_{i}" / "curves.png").is_file() for i in range(4)):
            flags, accuracies = tuning_outcome(root, task, name)
            kept.setdefault(task, {})[name] = {"flags": flags, "accuracies": accuracies}
    lines = [f'  "{task}": {{\n' + ",\n".join(f'    "{name}": {json.dumps(of_task[name])}' for name in METHODS
                                             if name in of_task) + "\n  }" for task, of_task in kept.items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def comparison(root: Path, task_name: str, name: str, seed: int, flags: Flags | None = None,
               as_name: str = "", size: str = "") -> Run:
    """The run of a method with its tuned flags, and with `flags` over them; of a base of another `size`."""
    task, of_task, first = TASKS[task_name], root / task_name, METHODS[name].begins_with
    folder = of_task / size
    model = of_task / f"base{'_' * bool(size)}{size}"
    if first:
        model = last_checkpoint(folder / f"{first}_seed{seed}", task.steps)
    return make_run(task, folder / f"{as_name or name}_seed{seed}", name,
                    tuning_outcome(root, task_name, name)[0] | (flags or {}), seed, model, of_task / "data", task.steps)


def sweep(root: Path, task_name: str, name: str, seed: int) -> Run | None:
    """A run of SWEEPS; None where the comparison has it already."""
    method, flags = SWEEPS[name]
    same = comparison(root, task_name, method, seed)
    run = comparison(root, task_name, method, seed, flags, name)
    return None if run.flags == same.flags else run


def list_for_tables(root: Path, stage: str, tasks: list[str], seeds: list[int]) -> list[Run]:
    if stage == "compare":
        return [comparison(root, task, name, seed) for name in METHODS for task in tasks for seed in seeds]
    if stage == "models":
        return [comparison(root, "countdown", name, seed, size=size)
                for name in OVER_MODELS for size in (*SIZES, "") for seed in seeds]
    shared = [comparison(root, task, name, seed) for name in ("uft", "prefix_rft") for task in tasks for seed in seeds
              if task != "tree6"]
    return shared + sorted(list_runs(root, stage, 1, tasks, seeds), key=lambda run: str(run.folder))


def list_runs(root: Path, stage: str, part: int, tasks: list[str], seeds: list[int]) -> list[Run]:
    methods = [name for name, method in METHODS.items() if bool(method.begins_with) == (part == 2)]
    if stage == "tune":
        return [run for name in methods for task in tasks if is_to_tune(task, name) for run in tuning(root, task, name)]
    if stage == "compare":
        return [comparison(root, task, name, seed) for seed in seeds for name in methods for task in tasks]
    if stage == "models":
        return [comparison(root, "countdown", name, seed, size=size)
                for seed in seeds for name in methods if name in OVER_MODELS for size in SIZES]
    return [] if part == 2 else [
        run for seed in seeds for name in SWEEPS for task in tasks if task != "tree6"
        if (run := sweep(root, task, name, seed)) is not None]


def tuning_table(root: Path, tasks: list[str]) -> str:
    """Markdown: for each method and task the flags that were chosen, and the accuracies of all four."""
    lines = ["| method | " + " | ".join(tasks) + " |", "| :-- |" + " :-- |" * len(tasks)]
    for name in METHODS:
        cells = []
        for task in tasks:
            flags, accuracies = tuning_outcome(root, task, name)
            chosen = json.dumps(flags).translate(str.maketrans("", "", '{}"'))
            cells.append(f"{chosen} ({', '.join(f'{accuracy:.3f}' for accuracy in accuracies)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tune", "compare", "sweep", "models", "tuned", "keep"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--part", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    try:
        if args.stage == "tuned":
            print(tuning_table(args.run, args.tasks))
        elif args.stage == "keep":
            keep(args.run, args.tasks)
        elif args.part == 0:
            print(*(run.line() for run in list_for_tables(args.run, args.stage, args.tasks, args.seeds)), sep="\n")
        else:
            print(*(run.line() for run in list_runs(args.run, args.stage, args.part, args.tasks, args.seeds)), sep="\n")
    except (OSError, ValueError) as error:  # a run that others begin with, or that decides, is not complete
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
