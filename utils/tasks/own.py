"""Problems of one's own, from a file or data set with a column of prompts and one of solutions or answers.

    python -m utils.tasks.own FILE --output_dir D [--verifier V ...]          # D/train.parquet and D/test.parquet

`--data FILE` of the scripts makes the same in memory. FILE is a .jsonl, .csv or .parquet file, a data set of the
Hugging Face hub (`name` or `name:config`), or a folder in the hub's layout. A solution is cut into chunks by lines and
sentences, as those of MATH are; the answer follows it in the tags that the verifiers read. Without a column of answers
it is what the last \\boxed of the solution holds; an answer "steps #### 18" (GSM8K) is solution and answer in one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from rewards import NAMED, VERIFIERS, score_all, use_file, verify
from utils import seeding
from utils.run import distributed
from utils.run.cli import run_script
from utils.run.errors import BadInput, Fraction, NotNegative, check_ranges, require
from utils.tasks.benchmarks import after_hashes, plain
from utils.tasks.competition_math import boxed_answer, chunks
from utils.tasks.own_files import WHOLE, Rows, read_splits
from utils.tasks.parquet import make_row, write_splits
from utils.types import Problem

COLUMNS = {  # what is looked for, in this order, where no flag names a column
    "prompt": ("prompt", "question", "problem", "instruction"),
    "solution": ("solution", "reasoning", "rationale"),
    "answer": ("answer", "final_answer", "target"),
}
DEFAULT_VERIFIER = "competition_math"
NUM_JUDGED = 100  # reference answers that the verifier judges before a run begins
INSTRUCTION = ("Solve the problem. Reason between <think> and </think>, then only the final answer between <answer> "
               "and </answer>.\nProblem: {problem}\n<think> ")


@dataclass(frozen=True, kw_only=True)
class Own:
    """How data of one's own are read."""

    test_data: str = ""  # file or data set to test on; empty: the data's own test split, else a share held out
    prompt_column: str = ""  # the problem; empty: prompt, question, problem or instruction
    solution_column: str = ""  # the steps to its answer; empty: solution, reasoning or rationale, if there
    answer_column: str = ""  # what is verified; empty: answer, final_answer or target, else the solution's last \boxed
    verifier: str = DEFAULT_VERIFIER  # a name in rewards/, or a Python file with verify(completion, ground_truth)
    test_share: Fraction = 0.1  # of the different prompts, held out where there is no test split
    split_seed: NotNegative[int] = 0  # of the draw of those held out


@dataclass(frozen=True, kw_only=True)
class Args(Own):
    data: Annotated[str, tyro.conf.Positional]  # file, folder or name on the Hugging Face hub
    output_dir: str  # folder for train.parquet and test.parquet; files of those names are replaced


# ---- what a row says ----


def choose_columns(rows: Rows, own: Own, split: str, where: str) -> dict[str, str]:
    """{"prompt": column, ..} of the three that there are. Problems to test on need no solution."""
    chosen = {}
    there = f"there are: {', '.join(rows.columns) or 'none'}"
    for role, usual in COLUMNS.items():
        named = {"prompt": own.prompt_column, "solution": own.solution_column, "answer": own.answer_column}[role]
        if named and named not in rows.columns and (role, split) != ("solution", "test"):
            raise BadInput(f"flag --{role}_column {named}: {where} has no such column; {there}")
        found = [column for column in ([named] if named else usual) if column in rows.columns]
        if found:
            chosen[role] = found[0]
    if "prompt" not in chosen:
        raise BadInput(f"{where} has no column {', '.join(COLUMNS['prompt'])}; name it by --prompt_column; {there}")
    if "answer" not in chosen and "solution" not in chosen:
        usual = ", ".join((*COLUMNS["answer"], *COLUMNS["solution"]))
        raise BadInput(f"{where} has no column {usual}; name one by --answer_column or --solution_column; {there}")
    return chosen


def text_of(value: Any, column: str, place: str) -> str:
    """The value, which must be a text, or a chat of one message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{place}: {column} must be a text that is not empty, or a list of one message")
    return value


def problem_of(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[str, str, str]:
    """The row's problem, solution (empty where there is none) and answer."""
    problem = text_of(row[columns["prompt"]], columns["prompt"], place)
    solution = row[columns["solution"]] if "solution" in columns else None
    solution = "" if solution is None else text_of(solution, columns["solution"], place)
    if "answer" in columns:
        value = row[columns["answer"]]
        if isinstance(value, dict):
            raise BadInput(f"{place}: {columns['answer']} must be a text or a number")
        if "solution" not in columns and isinstance(value, str) and "####" in value:
            solution, value = value.partition("####")[0].strip(), after_hashes(value)
        target = "" if value is None else plain(value)
        why = f"{columns['answer']} is empty"
    else:
        target = boxed_answer(solution) or ""
        why = f"no column of answers (--answer_column), and no \\boxed answer in {columns['solution']}"
    if not target:
        raise BadInput(f"{place}: {why}")
    solution = solution.partition("</think>")[0].rpartition("<think>")[2]  # of a reasoning model: its thoughts
    for name, text in (("solution", solution), ("answer", target)):
        if "<answer>" in text or "</answer>" in text:
            raise BadInput(f"{place}: the {name} must not hold an <answer>: the tags are put around the answer")
    if any("\ud800" <= character <= "\udfff" for character in problem + solution + target):
        raise BadInput(f"{place}: holds half of a character (a lone surrogate)")
    return problem, solution, target


def rows_of(rows: Rows, own: Own, data_source: str, split: str, where: str) -> tuple[list[dict[str, Any]], str]:
    """The rows in our columns, and in words where they are from."""
    columns = choose_columns(rows, own, split, where)
    values = rows.values(list(dict.fromkeys(columns.values())))
    if not values:
        raise BadInput(f"{where} has no rows")
    converted = []
    for index, row in enumerate(values):
        problem, solution, target = problem_of(row, columns, f"{where}, {rows.place(index)}")
        text = problem if "<answer>" in problem else INSTRUCTION.format(problem=problem)
        answer = f"{solution} </think>\n<answer> {target} </answer>"
        truth = {"question": problem, "target": target}
        try:
            verify(data_source, "", truth)
        except ValueError as error:
            raise BadInput(f"{where}, {rows.place(index)}: {error}") from error
        converted.append(make_row(data_source, text, chunks(solution), answer, truth, index, split))
    return converted, ", ".join(f"{role} from column {column}" for role, column in columns.items())


# ---- train and test ----


def hold_out(rows: Sequence[dict[str, Any]], own: Own, where: str) -> dict[str, list[dict[str, Any]]]:
    """Train and test part. A prompt that occurs twice is in one of them."""
    prompts = list(dict.fromkeys(row["question"] for row in rows))
    num = max(1, round(own.test_share * len(prompts)))
    if num >= len(prompts):
        raise BadInput(f"{where} has {len(prompts)} different prompts, and {num} of them cannot be held out to test "
                       "on; give --test_data")
    order = seeding.generator("held out", own.split_seed).permutation(len(prompts))
    held_out = {prompts[index] for index in order[:num]}
    return {"train": [row for row in rows if row["question"] not in held_out],
            "test": [row for row in rows if row["question"] in held_out]}


def read_all(data: str, own: Own, data_source: str) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The rows of "train" and "test", as far as there are any, and in words where they are from."""
    where = f"flag --data {data}"
    splits = read_splits(data, where)
    tests = next((name for name in ("test", "validation") if name in splits), None)
    trains = next((name for name in ("train", WHOLE) if name in splits), None)
    if trains is None and tests is None:
        raise BadInput(f"{where} has neither a train nor a test split; there are: {', '.join(splits)}")
    found, words = {}, ""
    if trains is not None:
        found["train"], words = rows_of(splits[trains], own, data_source, "train", where)
    if own.test_data:
        test_where = f"flag --test_data {own.test_data}"
        others = read_splits(own.test_data, test_where)
        name = next(name for name in ("test", "validation", *others) if name in others)
        found["test"], _ = rows_of(others[name], own, data_source, "test", test_where)
        return found, f"{words}; test problems from {own.test_data}"
    if tests is not None:
        found["test"], test_words = rows_of(splits[tests], own, data_source, "test", f"{where} ({tests})")
        return found, f"{words or test_words}; test problems from its split {tests}"
    share = f"{own.test_share:.0%} of the prompts, drawn with seed {own.split_seed}"
    return hold_out(found["train"], own, where), f"{words}; test problems held out: {share}"


# ---- all of it ----


def use_verifier(name: str) -> str:
    """The data_source of rows that this verifier judges; a file is imported by a worker, and from then on known."""
    if name.endswith(".py"):
        try:
            return use_file(name)
        except ValueError as error:
            raise BadInput(f"flag --verifier {name}: {error}") from error
    require(name in NAMED or name in VERIFIERS, "--verifier", name,
            f"must be one of {', '.join((*NAMED, *VERIFIERS))}, or a Python file (.py)")
    return name


def judge(rows: Sequence[dict[str, Any]], own: Own) -> str:
    """How many of the first reference answers are right by the verifier, in words. BadInput where none is."""
    first = rows[:NUM_JUDGED]
    scores = score_all([(row["data_source"], row["answer"], row["reward_model"]["ground_truth"]) for row in first])
    right = sum(score.correct for score in scores)
    if not right:
        raise BadInput(f"flag --verifier {own.verifier}: finds none of the first {len(first)} reference answers right; "
                       f"of {first[0]['answer'][-80:]!r} it says {scores[0].reason!r}")
    return f"{right} of the first {len(first)} reference answers are right by {own.verifier}"


def convert(data: str, own: Own) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """{"train": rows, "test": rows} in our columns, as far as there are any, and in words what was done.

    Raises:
        BadInput: the flag, the value, and what is wrong; for a row its number."""
    check_ranges(own)
    data_source = use_verifier(own.verifier)
    splits, words = read_all(data, own, data_source)
    judged = judge(next(iter(splits.values())), own)
    seen = {row["question"] for row in splits.get("train", [])}
    both = sum(row["question"] in seen for row in splits["test"])
    return splits, f"{words}; {judged}" + (f"; {both} test problems are also trained on" if both else "")


def own_facts(words: str, problems: Sequence[Problem]) -> dict[str, str]:
    """For --check: what was done, and the first three problems with the chunks that slices are made of."""
    return {"data of your own": words} | {
        f"problem {p.index}": f"{p.ground_truth['question'][:200]!r}, answer {p.ground_truth['target']!r}, "
                              f"{len(p.solution)} chunks of a solution: {list(p.solution)}"
        for p in problems[:3]
    }


def main(args: Args) -> None:
    own = Own(**{field.name: vars(args)[field.name] for field in fields(Own)})
    splits, words = convert(args.data, own)
    write_splits(args.output_dir, splits)
    if distributed.is_main():
        counts = " and ".join(f"{len(rows)} {split}" for split, rows in splits.items())
        print(f"{args.output_dir}: {counts} problems of {args.data}; {words}")
        if own.verifier.endswith(".py"):
            print(f"train with --data {args.output_dir} --verifier {own.verifier}")


if __name__ == "__main__":
    run_script(main, Args)
