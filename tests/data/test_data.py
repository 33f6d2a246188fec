"""The authors' schema, what is refused and in which words, and the order of problems."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import score
from tests.helpers.models import make_problem
from utils import ROOT, data, seeding
from utils.data import data_folder, fingerprint, load_problems, problems_of_step
from utils.run.errors import BadInput
from utils.types import Problem

AUTHORS_DATA = Path(__file__).resolve().parents[3] / "shared" / "reference_data" / "countdown"
ROW = {
    "data_source": "countdown",
    "prompt": [{"role": "user", "content": "Make 5 of 2, 3. <think> "}],
    "hint": ["2 + 3 = 5\n", "So it is 2 + 3."],
    "answer": "2 + 3 = 5\nSo it is 2 + 3.\n</think> <answer> 2 + 3 </answer>",
    "reward_model": {"style": "rule", "ground_truth": {"target": 5, "numbers": [2, 3]}},
    "extra_info": {"split": "train", "index": 0},
}


def write(folder: Path, rows: list[dict], split: str = "train") -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return str(folder)


def message_of(folder, split: str = "train") -> str:
    with pytest.raises(BadInput) as error:
        load_problems(str(folder), split)
    return str(error.value)


# ---- reading ----


def test_a_row_becomes_a_problem(tmp_path):
    folder = write(tmp_path, [ROW, ROW | {"hint": [], "answer": "other"}], "test")
    assert load_problems(folder, "test") == [
        Problem(0, "countdown", "Make 5 of 2, 3. <think> ", ("2 + 3 = 5\n", "So it is 2 + 3."), ROW["answer"],
                {"target": 5, "numbers": [2, 3]}),
        Problem(1, "countdown", "Make 5 of 2, 3. <think> ", (), "other", {"target": 5, "numbers": [2, 3]}),
    ]


def test_each_split_is_read_from_its_file(tmp_path):
    write(tmp_path, [ROW], "test")
    write(tmp_path, [ROW | {"answer": "train"}], "train")
    assert [problem.demonstration for problem in load_problems(str(tmp_path), "train")] == ["train"]
    assert [problem.demonstration for problem in load_problems(str(tmp_path), "test")] == [ROW["answer"]]


@pytest.mark.skipif(not AUTHORS_DATA.is_dir(), reason=f"the authors' data is not at {AUTHORS_DATA}")
@pytest.mark.parametrize(("split", "count"), [("train", 10_240), ("test", 1_024)])
def test_the_authors_countdown_loads_unchanged(split, count):
    problems = load_problems(str(AUTHORS_DATA), split)
    table = pq.read_table(AUTHORS_DATA / f"{split}.parquet")
    assert len(problems) == table.num_rows == count
    assert [problem.prompt for problem in problems] == [row[0]["content"] for row in table["prompt"].to_pylist()]
    assert [problem.demonstration for problem in problems] == table["answer"].to_pylist()
    assert [list(problem.solution) for problem in problems] == table["hint"].to_pylist()
    assert {len(problem.solution) for problem in problems} == {3, 4}
    for problem in problems:
        assert problem.prompt.endswith("<think> ")
        assert problem.demonstration.startswith("".join(problem.solution))
        assert set(problem.ground_truth) == {"target", "numbers"}


OTHERS = AUTHORS_DATA.parent / "others"
OTHER_ROWS = [  # source, target, numbers, answer: rows of our own in the columns of that file
    ("countdown", "24", [2, 4, 16], "2 * 4 + 16"),
    ("aime", "025", None, "25"),
    ("amc", "142.0", None, "142"),
    ("openai/gsm8k", "18", None, "$18"),
    ("math500", r"\text{Dana}", None, "Dana"),
    ("minerva", "4.5e33", None, r"4.5 \times 10^{33}"),
    ("olympiad_bench", "$2n-2$", None, "2n - 2"),
    ("DigitalLearningGmbH/MATH-lighteval", "1,\\!000", None, "1000"),
]


def right_by_its_verifier(problem: Problem) -> bool:
    return score(problem.data_source, problem.demonstration, problem.ground_truth).reward == 1.0


def test_a_file_of_many_tasks_loads_where_targets_are_texts_and_what_a_task_lacks_is_null(tmp_path):
    """The columns and types of the authors' evaluation file: `difficulty`, `level`, `nums` are null in most rows."""
    rows = [ROW | {"data_source": source, "answer": f" </think>\n<answer> {answer} </answer>", "hint": [""],
                   "difficulty": None, "level": None, "target": None, "nums": numbers, "reward_model": {
                       "ground_truth": {"numbers": numbers, "question": "Q", "target": target}, "style": "rule"}}
            for source, target, numbers, answer in OTHER_ROWS]
    problems = load_problems(write(tmp_path, rows, "test"), "test")
    assert [problem.data_source for problem in problems] == [source for source, *_ in OTHER_ROWS]
    assert all(map(right_by_its_verifier, problems))
    assert [problem.solution for problem in problems] == [()] * len(OTHER_ROWS)


@pytest.mark.skipif(not OTHERS.is_dir(), reason=f"the authors' evaluation data is not at {OTHERS}")
def test_the_authors_evaluation_file_loads_unchanged_and_every_gold_answer_is_right():
    problems = load_problems(str(OTHERS), "test")
    assert Counter(problem.data_source for problem in problems) == {
        "openai/gsm8k": 1319, "DigitalLearningGmbH/MATH-lighteval": 1024, "countdown": 1024, "olympiad_bench": 675,
        "math500": 500, "minerva": 272, "amc": 83, "aime": 30,
    }
    assert [problem for problem in problems if not right_by_its_verifier(problem)] == []


# ---- refusing ----


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, [ROW], "train")
    assert message_of(tmp_path, "test") == f"flag --data {tmp_path}: test.parquet is missing in {tmp_path}"


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("data_source,prompt\n")
    assert message_of(tmp_path).startswith(f"flag --data {tmp_path}: train.parquet cannot be read as parquet")


@pytest.mark.parametrize("column", ["data_source", "prompt", "reward_model"])
def test_a_missing_column_is_named(tmp_path, column):
    write(tmp_path, [{name: value for name, value in ROW.items() if name != column}])
    assert f"train.parquet has no column {column}; needed are data_source, prompt" in message_of(tmp_path)


def test_all_missing_columns_are_named_at_once(tmp_path):
    write(tmp_path, [{"data_source": "countdown", "answer": ""}])
    assert "train.parquet has no column prompt, reward_model" in message_of(tmp_path)


# ---- rows without a solution ----


@pytest.mark.parametrize("hint", [[], [""], ["", ""], None])
def test_without_a_solution_a_row_loads_and_has_none(tmp_path, hint):
    write(tmp_path, [ROW, ROW | {"hint": hint, "answer": None if hint is None else ""}])
    problems = load_problems(str(tmp_path), "train")
    assert (problems[1].solution, problems[1].demonstration) == ((), "")
    assert problems[0].solution == tuple(ROW["hint"])


def test_the_columns_of_solutions_may_be_missing(tmp_path):
    write(tmp_path, [{name: ROW[name] for name in ("data_source", "prompt", "reward_model")}])
    [problem] = load_problems(str(tmp_path), "train")
    assert (problem.solution, problem.demonstration) == ((), "")


@pytest.mark.parametrize("column", ["hint", "answer"])
def test_what_a_script_needs_must_be_there_in_every_row(tmp_path, column):
    def refused():
        with pytest.raises(BadInput) as error:
            load_problems(str(tmp_path), "train", (column,))
        return str(error.value)

    empty = {"hint": [""], "answer": ""}[column]
    write(tmp_path, [ROW, ROW, ROW | {column: empty}, ROW | {column: empty}])
    assert refused() == (f"flag --data {tmp_path}: train.parquet: 2 of 4 rows have an empty {column}, which this "
                         "script needs (the first is row 2)")
    write(tmp_path, [{name: value for name, value in ROW.items() if name != column}])
    assert refused() == (f"flag --data {tmp_path}: train.parquet has no column {column}; needed are data_source, "
                         f"prompt, reward_model, {column}")
    write(tmp_path, [ROW])
    assert len(load_problems(str(tmp_path), "train", ("hint", "answer"))) == 1


def test_a_file_without_rows_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), tmp_path / "test.parquet")
    assert message_of(tmp_path, "test") == f"flag --data {tmp_path}: test.parquet has no rows"


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("data_source", "addition", "data_source 'addition' has no verifier; known: countdown"),
        ("data_source", None, "data_source None has no verifier"),
        ("data_source", ["countdown"], "data_source ['countdown'] has no verifier"),
        ("prompt", "Make 5.", "prompt must be a list of one message whose content is a text"),
        ("prompt", [], "prompt must be a list of one message"),
        ("prompt", ["Make 5."], "prompt must be a list of one message"),
        ("prompt", [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "list of one message"),
        ("prompt", [{"role": "user"}], "prompt must be a list of one message whose content is a text"),
        ("prompt", [{"role": "user", "content": ""}], "prompt must be a list of one message whose content is a text"),
        ("prompt", [{"role": "user", "content": 5}], "prompt must be a list of one message whose content is a text"),
        ("hint", "2 + 3 = 5", "hint must be a list of texts"),
        ("hint", ["2 + 3 = 5", None], "hint must be a list of texts"),
        ("hint", [1, 2], "hint must be a list of texts"),
        ("hint", ["It is <answer>", " 2 + 3 </answer>"], "hint must not hold an <answer>"),
        ("hint", ["It is <ans", "wer> 2 + 3"], "hint must not hold an <answer>"),  # cut across chunks
        ("answer", 5, "answer must be a text"),
        ("reward_model", "rule", "reward_model must hold ground_truth"),
        ("reward_model", {"style": "rule"}, "reward_model must hold ground_truth"),
        ("reward_model", {"ground_truth": "5"}, "reward_model must hold ground_truth"),
        ("reward_model", {"ground_truth": {"target": 5}}, "ground_truth"),  # not what the verifier needs
        ("reward_model", {"ground_truth": {"target": "five", "numbers": [2, 3]}}, "ground_truth"),
    ],
)
def test_a_wrong_value_is_named_with_file_row_and_rule(tmp_path, column, value, rule):
    write(tmp_path, [ROW | {column: value}])
    message = message_of(tmp_path)
    assert message.startswith(f"flag --data {tmp_path}: train.parquet row 0: ")
    assert rule in message


@pytest.mark.parametrize("text", ["0", "abc"])
def test_a_number_of_verifier_workers_that_cannot_be_is_refused_with_the_data(tmp_path, monkeypatch, text):
    """Any script reads its data before a model; the workers start in mid-run."""
    monkeypatch.setenv("VERIFIER_WORKERS", text)
    write(tmp_path, [ROW])
    assert message_of(tmp_path) == (
        f"environment variable VERIFIER_WORKERS {text}: must be a whole number from 1 to 1024")


def test_the_row_that_is_wrong_is_named(tmp_path):
    write(tmp_path, [ROW, ROW, ROW | {"data_source": None}])
    assert "train.parquet row 2: data_source None has no verifier" in message_of(tmp_path)


def test_data_that_is_neither_a_task_nor_a_folder_is_refused():
    with pytest.raises(BadInput, match=r"--data no/such: must be a built-in task \(.*countdown, .*tree\) or a"):
        data_folder("no/such")


def test_a_built_in_task_is_built_at_first_use_only(tmp_path, monkeypatch):
    built = []

    def build(folder):
        built.append(folder)
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            write(folder, [ROW], split)

    monkeypatch.setattr(data, "BUILT_IN", {"toy": build})
    monkeypatch.setattr(data, "BUILT_IN_FOLDER", tmp_path)
    assert [len(load_problems("toy", split)) for split in ("train", "test", "train")] == [1, 1, 1]
    assert built == [tmp_path / "toy"]


# A job of its own: what it is given as data is a task that takes a while to build, and notes that it was.
JOB = """
import sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from tests.data.test_data import ROW
from utils import data
home = Path(sys.argv[1])
def build(folder):
    with (home / "built").open("a") as notes:
        notes.write("once ")
    time.sleep(0.5)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist([ROW]), folder / f"{split}.parquet")
data.BUILT_IN, data.BUILT_IN_FOLDER = {"toy": build}, home / "data"
(home / f"here_{sys.argv[2]}").touch()
while not all((home / f"here_{number}").exists() for number in "12"):
    time.sleep(0.01)
print(len(data.load_problems("toy", "train")), len(data.load_problems("toy", "test")))
"""


def test_two_jobs_that_miss_the_same_data_at_once_build_it_once(tmp_path):
    jobs = [subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path), number], cwd=ROOT, stdout=subprocess.PIPE)
            for number in "12"]
    assert [job.communicate(timeout=120)[0].split() for job in jobs] == [[b"1", b"1"]] * 2
    assert (tmp_path / "built").read_text() == "once "


# ---- order ----


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 13), st.integers(1, 30), st.integers(1, 6), st.integers(0, 5))
def test_every_epoch_visits_every_problem_once(num_problems, count, num_steps, seed):
    problems = [make_problem(index) for index in range(num_problems)]
    steps = [problems_of_step(problems, step, count, seed) for step in range(1, num_steps + 1)]
    assert [len(step) for step in steps] == [count] * num_steps
    visits = [problem.index for step in steps for problem in step]
    for start in range(0, len(visits), num_problems):
        epoch = visits[start : start + num_problems]
        assert max(Counter(epoch).values()) == 1
    assert len(set(visits)) == min(num_problems, count * num_steps)


def test_problems_of_a_step_are_a_function_of_seed_and_step():
    problems = [make_problem(index) for index in range(30)]

    def visits(step, seed=0):
        return [problem.index for problem in problems_of_step(problems, step, 30, seed)]

    third = visits(3)
    assert visits(1) != third != visits(2)  # epochs have orders of their own
    assert visits(3) == third  # whatever was asked before
    assert visits(3, seed=1) != third != visits(2, seed=1)
    assert third != list(range(30))


def first_visits(num_problems: int, count: int, num_visits: int, seed: int = 3) -> list[int]:
    """The problems met in steps of `count`, by index."""
    problems = [make_problem(index) for index in range(num_problems)]
    steps = range(1, -(-num_visits // count) + 1)
    return [one.index for step in steps for one in problems_of_step(problems, step, count, seed)][:num_visits]


def shuffled_epochs(num_problems: int, num_epochs: int, seed: int = 3) -> list[int]:
    return [index for epoch in range(num_epochs)
            for index in seeding.generator("epoch", seed, epoch).permutation(num_problems).tolist()]


def test_where_steps_divide_the_data_all_sizes_cut_the_same_row_of_shuffled_epochs():
    for count in (1, 2, 5, 10):
        assert first_visits(10, count, 60) == shuffled_epochs(10, 6)


@pytest.mark.parametrize("count", range(1, 13))
def test_the_first_epoch_is_as_it_was_shuffled_whatever_a_step_holds(count):
    assert first_visits(10, count, 10) == shuffled_epochs(10, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 40), st.integers(0, 5))
def test_no_step_holds_a_problem_twice(num_problems, count, step, seed):
    """It would have the same hints and the same samples both times."""
    count = min(count, num_problems)
    chosen = problems_of_step([make_problem(index) for index in range(num_problems)], step, count, seed)
    assert len({problem.index for problem in chosen}) == count


def test_what_the_end_of_an_epoch_had_changes_places_with_the_next_that_it_had_not(monkeypatch):
    orders = [[0, 1, 2, 3, 4], [4, 3, 1, 2, 0], [4, 3, 0, 1, 2], [0, 1, 2, 3, 4]]
    monkeypatch.setattr(data.seeding, "generator", lambda purpose, seed, epoch: FixedOrder(orders[epoch]))
    threes = [[0, 1, 2], [3, 4, 1], [3, 4, 2], [0, 4, 3], [0, 1, 2]]  # 3 4 | 4: for the 4 the 1, as the 3 is there
    fours = [[0, 1, 2, 3], [4, 2, 3, 1], [4, 0, 1, 3], [0, 4, 2, 1]]  # 4 is late in the second epoch, so in the third
    assert first_visits(5, 3, 15) == sum(threes, [])
    assert first_visits(5, 4, 16) == sum(fours, [])


class FixedOrder:
    """A random generator's stand-in."""

    def __init__(self, order: list[int]) -> None:
        self.order = order

    def permutation(self, num_problems: int) -> np.ndarray:
        return np.array(self.order)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_is_as_it_was_shuffled_but_for_a_place_or_two_for_each_problem_that_would_meet_itself(
    num_problems, count, seed
):
    count = min(count, num_problems)
    found = first_visits(num_problems, count, 4 * num_problems, seed)
    plain = shuffled_epochs(num_problems, 4, seed)
    for start in range(0, 4 * num_problems, num_problems):
        step_start = start - start % count
        head = slice(start, step_start + count if start % count else start)
        num_twice = len(set(found[step_start:start]) & set(plain[head]))
        changed = [place for place in range(start, start + num_problems) if found[place] != plain[place]]
        assert len(changed) == 2 * num_twice and all(place < start + count for place in changed)


@pytest.mark.parametrize(
    "other",
    [{"prompt": "other"}, {"solution": ("other",)}, {"demonstration": "other"}, {"data_source": "other"},
     {"ground_truth": {"target": 6, "numbers": [2, 3]}}],
    ids=lambda other: next(iter(other)),
)
def test_equal_fingerprints_mean_equal_data(other):
    problems = [make_problem(0), make_problem(1)]
    assert fingerprint(problems) == fingerprint([make_problem(0), make_problem(1)])
    assert fingerprint([problems[0], replace(problems[1], **other)]) != fingerprint(problems)
    assert fingerprint(problems[:1]) != fingerprint(problems)
