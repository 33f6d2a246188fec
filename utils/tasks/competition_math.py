r"""MATH (Hendrycks et al. 2021): competition problems of levels 3 to 5 whose solution boxes the answer.

    python -m utils.tasks.competition_math --output_dir D [--source DIR]      # D/train.parquet and D/test.parquet

The source is a data set of the Hugging Face hub, or a folder with a copy of its files. A row's target is the content of
the last \boxed of its solution; rows without one are left out and counted. Rows follow the authors' parquet schema.

Both splits test on the same rows, the last --test_problems of the source's test part (with the default levels and
number, those from row 3532 on, as in the authors' release). They differ in what is trained on:

    clean   the source's train part only, without any problem that also occurs in its test part. MATH500 was drawn from
            that test part, so it is clean too; --math500 names its file to have it checked.
    paper   all other rows of both parts, as the authors seem to have done. Most of MATH500 is then trained on.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from utils.run import distributed
from utils.run.cli import run_script
from utils.run.errors import require
from utils.tasks.parquet import load_rows, make_row, write_splits

DATA_SOURCE = "DigitalLearningGmbH/MATH-lighteval"
MODULE = "utils.tasks.competition_math"
COLUMNS = ("problem", "level", "type", "solution")


@dataclass(frozen=True, kw_only=True)
class Args:
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced
    source: str = DATA_SOURCE  # name on the Hugging Face hub, or a folder with its files (splits train and test)
    # what is trained on: clean has no problem of the source's test part, paper has all but the test rows
    split: Literal["clean", "paper"] = "clean"
    min_level: int = 3  # easiest level, 1..5
    max_level: int = 5  # hardest level, up to 5
    test_problems: int = 1_024  # rows of test.parquet: the last of the chosen levels in the source's test part
    # hub name (HuggingFaceH4/MATH-500) or folder whose problems are kept out of the clean train split too; empty: not
    # read, as the source's whole test part is kept out anyway
    math500: str = ""


def validate(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    require(args.split in ("clean", "paper"), "--split", args.split, "must be clean or paper")
    require(1 <= args.min_level <= 5, "--min_level", args.min_level, "must lie in 1..5")
    require(args.min_level <= args.max_level <= 5, "--max_level", args.max_level,
            f"must lie in --min_level {args.min_level}..5")
    require(args.test_problems >= 1, "--test_problems", args.test_problems, "must be at least 1")
    require(args.split == "clean" or not args.math500, "--math500", args.math500, "is for --split clean only")


# ---- a solution's text ---------------------------------------------------------------------------------------------

OPENING = re.compile(r"\\begin(?![A-Za-z])|\\\[|\\\(|\$\$|\$|\{|\[asy\]|\\.", re.DOTALL)  # last: an escaped character
ENDING = {  # what opens a piece of LaTeX that must stay whole -> what ends it, opens one more, or ends the search
    opening: re.compile(rf"{ending}|\\.", re.DOTALL)
    for opening, ending in (
        (r"\begin", r"(?P<end>\\end\s*\{[^}]*\})|(?P<nested>\\begin(?![A-Za-z]))"),
        (r"\[", r"(?P<end>\\\])"),
        (r"\(", r"(?P<end>\\\))"),
        ("$$", r"(?P<end>\$\$)"),
        ("$", r"(?P<end>\$)|(?P<blank>\n\s*\n)"),  # as in TeX: so a stray dollar sign costs one paragraph only
        ("{", r"(?P<end>\})|(?P<nested>\{)"),
        ("[asy]", r"(?P<end>\[/asy\])"),
    )
}
LINE_OR_SENTENCE_END = re.compile(r"\n|(\S*)\. (?! *[a-z])")
ABBREVIATION = re.compile(r"\(?(?:(?:[A-Za-z]\.)*[A-Za-z]|vs|cf|[Ee]qs?|[Ff]igs?|No|Mr|Mrs|Ms|Dr|St|Prof)")
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


def latex_end(text: str, opening: str, position: int) -> int | None:
    """Where the piece ends that `opening` (a key of ENDING) began just before `position`; None if nothing ends it."""
    depth = 1
    for token in ENDING[opening].finditer(text, position):
        if token.lastgroup == "blank":
            return None
        depth += {"end": -1, "nested": 1, None: 0}[token.lastgroup]
        if depth == 0:
            return token.end()
    return None


def latex_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the outermost formulas, environments, drawings and {groups}. What nothing ends is plain text."""
    spans = []
    position = 0
    while token := OPENING.search(text, position):
        position = token.end()
        if token[0] in ENDING and (end := latex_end(text, token[0], position)) is not None:
            spans.append((token.start(), end))
            position = end
    return spans


def chunks(solution: str) -> list[str]:
    """The lines and sentences of `solution`; joined they are `solution` again. As in the authors' data, a line ends
    with its newline, a sentence with ". ", and a blank line is a chunk; no cut is made inside LaTeX or after an
    abbreviation, a single letter ("A. First case"), or where the text goes on in lower case."""
    spans = latex_spans(solution)
    cuts = [0]
    for ending in LINE_OR_SENTENCE_END.finditer(solution):
        cut = ending.end()
        abbreviated = ending[1] is not None and ABBREVIATION.fullmatch(ending[1])
        if not abbreviated and not any(start < cut < stop for start, stop in spans):
            cuts.append(cut)
    pieces = [solution[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(solution)], strict=True)]
    return [piece for piece in pieces if piece]


def boxed_answer(solution: str) -> str | None:
    r"""What the last \boxed{...} or \fbox{...} holds, or the number or word after a \boxed without braces; None if
    there is no box, it is empty, or its brace is never closed."""
    boxes = list(BOX.finditer(solution))
    if not boxes:
        return None
    start = boxes[-1].end()
    if solution[start : start + 1] == "{":
        end = latex_end(solution, "{", start + 1)
        content = "" if end is None else solution[start + 1 : end - 1].strip()
    else:
        content = re.match(r"[^\s$\\{}]*", solution[start:])[0].rstrip(".,;:")
    return content or None


# ---- rows ----------------------------------------------------------------------------------------------------------


def instruction(problem: str) -> str:
    return (
        "Solve the math problem. Reason between <think> and </think>, then only the final answer between <answer> and "
        f"</answer>.\nProblem: {problem}\n<think> "
    )


def to_row(data_source: str, problem: str, solution: str, target: str, index: int, split: str) -> dict[str, Any]:
    """A row in the authors' columns. `index` and `split` say where it stands in its source."""
    answer = f"{solution} </think>\n<answer> {target} </answer>"
    ground_truth = {"question": problem, "target": target}
    return make_row(data_source, instruction(problem), chunks(solution), answer, ground_truth, index, split)


def normalised(problem: str) -> str:
    """Letters and digits in lower case: two problems that differ in less are the same."""
    return "".join(character for character in problem.lower() if character.isalnum())


def rows_of_levels(rows: Iterable[dict[str, Any]], split: str, args: Args, left_out: Counter) -> list[dict[str, Any]]:
    """The rows of the chosen levels that have a target, converted; adds the others of these levels to `left_out`."""
    levels = [f"Level {level}" for level in range(args.min_level, args.max_level + 1)]
    converted = []
    for index, row in enumerate(rows):
        if row["level"] not in levels:
            continue
        target = boxed_answer(row["solution"])
        if target is None:
            left_out["without a boxed answer"] += 1
            continue
        fields = to_row(DATA_SOURCE, row["problem"], row["solution"], target, index, split)
        converted.append({"level": row["level"], "type": row["type"], **fields})
    return converted


def generate(args: Args) -> tuple[dict[str, list[dict[str, Any]]], Counter]:
    """{"train": rows, "test": rows} and how many rows of the chosen levels were left out, by reason.

    BadInput where the flags allow no such data or the source cannot be read."""
    validate(args)
    source = {split: load_rows(args.source, None, split, COLUMNS, MODULE) for split in ("train", "test")}
    left_out: Counter = Counter()
    rows = {split: rows_of_levels(source[split], split, args, left_out) for split in source}
    require(args.test_problems <= len(rows["test"]), "--test_problems", args.test_problems,
            f"{args.source} has {len(rows['test'])} test problems of levels {args.min_level}..{args.max_level}")
    others, test = rows["test"][: -args.test_problems], rows["test"][-args.test_problems :]
    if args.split == "paper":
        return {"train": rows["train"] + others, "test": test}, left_out
    math500 = load_rows(args.math500, None, "test", ("problem",), MODULE) if args.math500 else []
    held_out = {normalised(row["problem"]) for row in source["test"] + math500}
    questions = [normalised(row["reward_model"]["ground_truth"]["question"]) for row in rows["train"]]
    train = [row for row, question in zip(rows["train"], questions, strict=True) if question not in held_out]
    left_out["also in the test part"] += len(rows["train"]) - len(train)
    return {"train": train, "test": test}, left_out


def build(output_dir: str | os.PathLike, **flags: Any) -> None:
    """Write both splits and tell what was left out; `flags` are other fields of Args.

    Files are renamed into place whole, so two ranks may build the same folder at once.
    """
    args = Args(output_dir=str(output_dir), **flags)
    splits, left_out = generate(args)
    write_splits(args.output_dir, splits)
    if distributed.is_main():
        reasons = "".join(f"; left out {count} {reason}" for reason, count in left_out.items() if count)
        print(f"{args.output_dir}: {len(splits['train'])} train, {len(splits['test'])} test problems of MATH{reasons}")


def main(args: Args) -> None:
    build(**asdict(args))


if __name__ == "__main__":
    run_script(main, Args, computes=False)
