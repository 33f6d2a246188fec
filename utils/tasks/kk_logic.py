"""Knights and Knaves: a knight's claim is true, a knave's is false; from everybody's claim, find who is what.

    python -m utils.tasks.kk_logic --output_dir D             # D/train.parquet and D/test.parquet

For a puzzle the roles are fixed first, then a claim is drawn for each person that has the truth value of the role; the
puzzle is kept if trying all roles finds this one solution (see kk_solving.py, also for the step-by-step derivation).
Claims are about one other person ("A is a knight", "A is not a knave") or join the roles of two different people, the
speaker possibly one of them, with and, or, if-then, iff. So no claim is true or false whatever the roles, and none fits
both roles of its speaker whatever the others' roles ("I am a knight"), nor neither ("I am a knave"). All role vectors
of one size are equally frequent (to one puzzle) in each split, so no constant answer does well. Rows follow the parquet
schema of the authors' release.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import cycle, islice, product
from typing import Any

from rewards.kk_logic import parse_ground_truth
from utils.run.cli import run_script
from utils.run.errors import require
from utils.tasks.kk_solving import (
    JOINED,
    Claim,
    derive,
    holds,
    identity,
    in_words,
    role_name,
    roles_in_words,
    solutions,
)
from utils.tasks.parquet import make_row, write_splits

MAX_FRUITLESS_DRAWS = 10_000  # draws for one puzzle before a size counts as exhausted
NAMES = (
    "Ada", "Amir", "Berta", "Bruno", "Carmen", "Cyrus", "Dalia", "Edgar", "Emil", "Farah", "Flora", "Gita", "Goran",
    "Hanna", "Hugo", "Irene", "Ivo", "Jonas", "Judith", "Karim", "Kenji", "Leila", "Lena", "Marco", "Milan",
    "Nadia", "Nora", "Oscar", "Petra", "Quentin", "Rosa", "Stefan", "Tamara", "Ulrich", "Vera", "Walter", "Xenia",
    "Yusuf", "Zora",
)


@dataclass(frozen=True, kw_only=True)
class Args:
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced
    seed: int = 0  # same flags and seed, same bytes
    # fewest people in a puzzle, 2..8; each size from here to --max_people gets an equal part of a split
    min_people: int = 3
    max_people: int = 7  # most people in a puzzle, up to 8
    train_problems: int = 4_500  # rows of train.parquet
    # rows of test.parquet; none of its puzzles occurs in train.parquet, nor with other names, order or wording
    test_problems: int = 500


@dataclass(frozen=True)
class Puzzle:
    names: tuple[str, ...]
    claims: tuple[Claim, ...]  # one a person
    roles: tuple[bool, ...]  # True: a knight

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two puzzles the same."""
        return identity(self.claims, self.roles)

    @property
    def ground_truth(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "solution": list(self.roles),
            "solution_text_format": "\n".join(roles_in_words(self.names, self.roles)),
            "statements": repr(self.claims),
        }


def validate(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    rules = [
        ("min_people", args.min_people >= 2, "must be at least 2"),
        ("max_people", args.min_people <= args.max_people <= 8, f"must lie in --min_people {args.min_people}..8"),
        ("train_problems", args.train_problems >= 1, "must be at least 1"),
        ("test_problems", args.test_problems >= 1, "must be at least 1"),
    ]
    for name, fits, rule in rules:
        require(fits, f"--{name}", asdict(args)[name], rule)


# ---- one puzzle ----------------------------------------------------------------------------------------------------


def draw_claim(speaker: int, count: int, rng: random.Random) -> Claim:
    """One of six kinds, equally likely: a role, not a role, and the four ways to join two roles."""
    kind = rng.choice(["role", "not", *JOINED])
    if kind in JOINED:
        return kind, *((rng.choice(["telling-truth", "lying"]), person) for person in rng.sample(range(count), 2))
    other = rng.choice([person for person in range(count) if person != speaker])
    claim = (rng.choice(["telling-truth", "lying"]), other)
    return claim if kind == "role" else ("not", claim)


def draw_puzzle(roles: tuple[bool, ...], rng: random.Random) -> Puzzle | None:
    """A puzzle with these roles, or None where the claims drawn allow others too."""
    claims = []
    for speaker, role in enumerate(roles):
        claim = draw_claim(speaker, len(roles), rng)
        while holds(claim, roles) != role:
            claim = draw_claim(speaker, len(roles), rng)
        claims.append(claim)
    if solutions(claims) != [roles]:
        return None
    return Puzzle(tuple(rng.sample(NAMES, len(roles))), tuple(claims), roles)


def instruction(puzzle: Puzzle) -> str:
    claims = "".join(
        f'{name} says: "{in_words(claim, puzzle.names)}".\n'
        for name, claim in zip(puzzle.names, puzzle.claims, strict=True)
    )
    return (
        f"On an island everybody is a knight or a knave. What a knight says is true, what a knave says is false. An "
        f'"or" includes both; an "if" is false only where its condition is true and the rest is not. You meet '
        f"{len(puzzle.names)} people: {', '.join(puzzle.names)}.\n{claims}"
        f"Find out the role of each. Reason between <think> and </think>, then only the roles between <answer> and "
        f"</answer>, a line for each person in the order above, in this form:\n(1) X is a knight\n(2) Y is a knave\n"
        f"<think> "
    )


def demonstration(puzzle: Puzzle) -> str:
    roles = "\n".join(roles_in_words(puzzle.names, puzzle.roles))
    return "".join(derive(puzzle.claims, puzzle.names)) + f" </think>\n<answer> {roles} </answer>"


# ---- the two splits ------------------------------------------------------------------------------------------------


def new_puzzles(count: int, num_problems: int, seen: set[tuple[str, ...]], rng: random.Random) -> list[Puzzle]:
    """Puzzles of `count` people whose keys are not in `seen`, to which they are added, with the role vectors in turn;
    fewer than `num_problems`, if MAX_FRUITLESS_DRAWS brought none for the next role vector."""
    role_vectors = list(product((True, False), repeat=count))
    rng.shuffle(role_vectors)
    chosen = []
    for roles in islice(cycle(role_vectors), num_problems):
        draws = (draw_puzzle(roles, rng) for _ in range(MAX_FRUITLESS_DRAWS))
        puzzle = next((puzzle for puzzle in draws if puzzle is not None and puzzle.key not in seen), None)
        if puzzle is None:
            break
        seen.add(puzzle.key)
        chosen.append(puzzle)
    return chosen


def make_puzzles(args: Args) -> tuple[list[Puzzle], list[Puzzle]]:
    """Train and test puzzles, the sizes in equal parts and mixed. BadInput where there are too few."""
    splits: dict[str, list[Puzzle]] = {"test": [], "train": []}  # the test puzzles are drawn first
    num_problems = {"test": args.test_problems, "train": args.train_problems}
    sizes = range(args.min_people, args.max_people + 1)
    for i, count in enumerate(sizes):
        rng = random.Random(f"kk_logic {args.seed} {count}")
        seen: set[tuple[str, ...]] = set()
        for split, chosen in splits.items():
            wanted = (num_problems[split] + i) // len(sizes)  # over the sizes these add up to num_problems
            found = new_puzzles(count, wanted, seen, rng)
            require(len(found) == wanted, f"--{split}_problems", num_problems[split],
                    f"only {len(found)} of {wanted} different puzzles of {count} people could be found; ask for fewer "
                    f"problems or more people (--min_people {args.min_people})")
            chosen += found
    for split, chosen in splits.items():
        random.Random(f"kk_logic {args.seed} {split} order").shuffle(chosen)
    return splits["train"], splits["test"]


def to_row(puzzle: Puzzle, index: int, split: str) -> dict[str, Any]:
    hint = derive(puzzle.claims, puzzle.names)
    return make_row("kk_logic", instruction(puzzle), hint, demonstration(puzzle), puzzle.ground_truth, index, split)


def generate(args: Args) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train rows and test rows, in the columns of the authors' release. BadInput where the flags allow no such data."""
    validate(args)
    train, test = make_puzzles(args)
    return ([to_row(puzzle, i, "train") for i, puzzle in enumerate(train)],
            [to_row(puzzle, i, "test") for i, puzzle in enumerate(test)])


def build(output_dir: str | os.PathLike, **flags: Any) -> None:
    """Write both splits; `flags` are other fields of Args.

    Files are renamed into place whole, so two ranks may build the same folder at once.
    """
    args = Args(output_dir=str(output_dir), **flags)
    train_rows, test_rows = generate(args)
    write_splits(args.output_dir, {"train": train_rows, "test": test_rows})


def best_constant_pattern(problems: Iterable[Any]) -> tuple[str, float]:
    """The best that an answer of constant form can do: its text ("knight, knave, knight"-like, one per number of
    people, joined by "; ") and its accuracy over all problems. `problems` have a `ground_truth` with `names` and
    `solution` or, where one is missing, `solution_text_format`."""
    by_count: dict[int, Counter[tuple[bool, ...]]] = {}
    for problem in problems:
        roles = tuple(parse_ground_truth(problem.ground_truth).values())
        by_count.setdefault(len(roles), Counter())[roles] += 1
    best = [counter.most_common(1)[0] for _, counter in sorted(by_count.items())]
    texts = [", ".join(map(role_name, roles)) for roles, _ in best]
    return "; ".join(texts), sum(hits for _, hits in best) / sum(map(Counter.total, by_count.values()))


def main(args: Args) -> None:
    build(**asdict(args))
    _, test = make_puzzles(args)
    text, accuracy = best_constant_pattern(test)
    print(f"{args.output_dir}: {args.train_problems} train and {args.test_problems} test puzzles of knights and knaves")
    print(f"best constant answer pattern on the test split: {accuracy:.1%} ({text})")


if __name__ == "__main__":
    run_script(main, Args, computes=False)
