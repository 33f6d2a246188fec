"""The search tree of the UFT paper as a text task: a walk of `depth` turns through hidden states.

    python -m utils.tasks.tree --output_dir D --depth 6 --branching 4      # D/train.parquet and D/test.parquet

The prompt names `depth` turns. A hidden rule maps (state, turn) to the next state, one of `branching`; the solution is
a chunk "turn -> state" for each turn, the answer all states. It is right only as a whole, so a model that guesses is
right with branching ** -depth: a tree with one good leaf. Each single step is easy to learn, the whole is not found by
chance.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from utils.run.cli import run_script
from utils.run.errors import require
from utils.tasks.parquet import make_row, read_setting, setting_of, write_splits

METADATA_KEY = b"tree_setting"  # the parquet schema carries the Setting as JSON
STATES, TURNS = "ABCDEFGH", "12345678"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which tree it is."""

    depth: int = 6  # turns of a walk (H in the paper)
    branching: int = 4  # different turns, and states that they lead to (B), 2..8: branching ** depth walks exist
    rule_seed: int = 0  # of the hidden rule


@dataclass(frozen=True, kw_only=True)
class Args(Setting):
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced
    seed: int = 0  # of the walks; same flags and seed, same bytes
    train_problems: int = 3_072  # rows of train.parquet
    test_problems: int = 1_024  # rows of test.parquet; none of its walks occurs in train.parquet


def validate(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    require(1 <= args.depth <= 64, "--depth", args.depth, "must lie in 1..64")
    require(2 <= args.branching <= len(STATES), "--branching", args.branching, f"must lie in 2..{len(STATES)}")
    require(args.train_problems >= 1, "--train_problems", args.train_problems, "must be at least 1")
    require(args.test_problems >= 1, "--test_problems", args.test_problems, "must be at least 1")
    num_walks = args.branching**args.depth
    require(args.train_problems + args.test_problems <= num_walks, "--train_problems", args.train_problems,
            f"and --test_problems {args.test_problems} are more than the {num_walks} walks of --branching "
            f"{args.branching} and --depth {args.depth}")


def hidden_rule(setting: Setting) -> dict[tuple[str, str], str]:
    """(state, turn) -> next state. The turns of a state lead to all states, so over all walks every path is as likely
    as any other."""
    rng = random.Random(f"tree rule {setting.rule_seed} {setting.branching}")
    states = STATES[: setting.branching]
    return {(state, turn): next_state for state in states
            for turn, next_state in zip(TURNS, rng.sample(states, len(states)), strict=False)}


def walk(turns: Sequence[str], rule: dict[tuple[str, str], str]) -> str:
    """The states that `turns` lead through, from the first state on."""
    path, state = "", STATES[0]
    for turn in turns:
        state = rule[state, turn]
        path += state
    return path


def instruction(turns: str) -> str:
    return (
        "You start at state A. Each turn leads to a next state, by a rule that is not told. Name the state after every "
        "turn between <think> and </think>, then all of them in one word between <answer> and </answer>.\n"
        f"Turns: {turns}\n<think> "
    )


def chunks(turns: str, path: str) -> list[str]:
    """The solution: one line per turn (no newline after the last)."""
    lines = [f"{turn} -> {state}\n" for turn, state in zip(turns, path, strict=True)]
    return [*lines[:-1], lines[-1].removesuffix("\n")]


def demonstration(turns: str, path: str) -> str:
    return "".join(chunks(turns, path)) + f" </think>\n<answer> {path} </answer>"


def to_row(turns: str, path: str, index: int, split: str) -> dict[str, Any]:
    return make_row("tree", instruction(turns), chunks(turns, path), demonstration(turns, path), {"path": path}, index,
                    split, ability="search")


def build(output_dir: str | os.PathLike, **flags: Any) -> None:
    """Write both splits; `flags` are other fields of Args. BadInput where they allow no such data."""
    args = Args(output_dir=str(output_dir), **flags)
    validate(args)
    rule, rng = hidden_rule(args), random.Random(f"tree {args.seed}")
    walks: dict[str, None] = {}  # an ordered set
    while len(walks) < args.test_problems + args.train_problems:
        walks["".join(rng.choices(TURNS[: args.branching], k=args.depth))] = None
    chosen = list(walks)
    splits = {"train": chosen[args.test_problems :], "test": chosen[: args.test_problems]}
    rows = {split: [to_row(turns, walk(turns, rule), i, split) for i, turns in enumerate(of_split)]
            for split, of_split in splits.items()}
    write_splits(args.output_dir, rows, (METADATA_KEY, setting_of(args, Setting)))


def load_setting(folder: str | os.PathLike) -> Setting:
    """The setting of a folder that `build` wrote. BadInput for other folders with a test.parquet."""
    return Setting(**read_setting(folder, METADATA_KEY, "tree"))


def best_constant_pattern(problems: Iterable[Any]) -> tuple[str, float]:
    """The most frequent path, and the accuracy of answering it always. `problems` have a `ground_truth` with `path`."""
    paths = Counter(problem.ground_truth["path"] for problem in problems)
    [(path, count)] = paths.most_common(1)
    return path, count / paths.total()


def main(args: Args) -> None:
    build(**asdict(args))
    print(f"{args.output_dir}: {args.train_problems} train and {args.test_problems} test walks, depth {args.depth}, "
          f"branching {args.branching}: a guess is right with {args.branching**-args.depth:.2e}")


if __name__ == "__main__":
    run_script(main, Args, computes=False)
