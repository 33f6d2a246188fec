"""Data of one's own: files and hub folders become the problems that a parquet folder of ours would give."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import score
from tests.helpers.verifiers import VERIFIER
from utils.checkpoint import describe_run, differences
from utils.data import fingerprint, load_problems, load_splits
from utils.run.errors import BadInput
from utils.tasks import own
from utils.tasks.own import Own

pytestmark = pytest.mark.usefixtures("forget_verifiers")


def sums(count: int = 20) -> list[dict]:
    return [{"question": f"What is {n} + 1?", "solution": f"Take {n}. Add one.\nSo it is {n + 1}.", "answer": n + 1}
            for n in range(count)]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def both(data: str, **settings) -> dict:
    return load_splits(data, ("train", "test"), own=Own(**settings))[0]


def message_of(data, **settings) -> str:
    with pytest.raises(BadInput) as error:
        both(str(data), **settings)
    return str(error.value)


# ---- what a row becomes ----


def test_a_row_becomes_prompt_chunks_demonstration_and_target(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", sums())
    problems = both(data)
    [first] = [p for split in problems.values() for p in split if p.ground_truth["question"] == "What is 3 + 1?"]
    assert first.prompt == ("Solve the problem. Reason between <think> and </think>, then only the final answer "
                            "between <answer> and </answer>.\nProblem: What is 3 + 1?\n<think> ")
    assert first.solution == ("Take 3. ", "Add one.\n", "So it is 4.")
    assert first.demonstration == "Take 3. Add one.\nSo it is 4. </think>\n<answer> 4 </answer>"
    assert first.ground_truth == {"question": "What is 3 + 1?", "target": "4"}
    assert score(first.data_source, first.demonstration, first.ground_truth).correct


@pytest.mark.parametrize(("row", "solution", "target"), [
    ({"problem": "p", "solution": r"Half. So \boxed{\frac{1}{2}}."}, r"Half. So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    ({"question": "p", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"}, "2 + 2 = <<2+2=4>>4", "1004"),
    ({"prompt": [{"role": "user", "content": "p"}], "answer": 7.0}, "", "7"),
    ({"prompt": "p", "solution": r"<think>By hand.</think> It is \boxed{5}"}, "By hand.", "5"),
    ({"prompt": "p", "reasoning": "So.", "final_answer": ["$1$", "2"]}, "So.", "1, 2"),
])
def test_common_forms_are_read_without_a_flag(tmp_path, row, solution, target):
    rows = [row | {next(iter(row)): f"p{n}"} for n in range(4)]
    found = both(write_lines(tmp_path / "a.jsonl", rows))
    assert len(found["train"]) == 3 and len(found["test"]) == 1
    for problem in found["train"] + found["test"]:
        assert ("".join(problem.solution), problem.ground_truth["target"]) == (solution, target)
        assert f"{solution} </think>\n<answer> {target} </answer>" == problem.demonstration


def test_flags_name_the_columns_and_a_prompt_that_names_the_tags_stays_as_it_is(tmp_path):
    rows = [{"prompt": "not this", "q": f"{n}? In <answer> tags.", "how": "Look.", "a": str(n)} for n in range(5)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    found = both(data, prompt_column="q", solution_column="how", answer_column="a", verifier="numeric")
    assert {p.prompt for p in found["train"] + found["test"]} == {row["q"] for row in rows}
    assert {(p.solution, p.data_source) for p in found["train"]} == {(("Look.",), "numeric")}


def test_csv_jsonl_and_parquet_give_the_same_problems(tmp_path):
    rows = [row | {"answer": str(row["answer"])} for row in sums()]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        file.write("question,solution,answer\n")
        file.writelines(f'"{row["question"]}","{row["solution"]}",{row["answer"]}\n' for row in rows)
    found = [both(data) for data in (write_lines(tmp_path / "a.jsonl", rows), str(tmp_path / "a.parquet"),
                                     str(tmp_path / "a.csv"))]
    assert found[0] == found[1] == found[2]


# ---- train and test ----


def test_a_seeded_share_of_the_prompts_is_held_out_and_the_plan_says_so(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", sums(40) + sums(40))
    problems, words = load_splits(data, ("train", "test"))
    prompts = {split: {p.prompt for p in of_split} for split, of_split in problems.items()}
    assert (len(prompts["train"]), len(prompts["test"])) == (36, 4) and not prompts["train"] & prompts["test"]
    assert (len(problems["train"]), len(problems["test"])) == (72, 8)
    assert [p.index for p in problems["train"]] == list(range(72))
    assert "test problems held out: 10% of the prompts, drawn with seed 0" in words
    assert "80 of" not in words and "72 of the first 72 reference answers are right by competition_math" in words
    assert both(data) == problems
    assert both(data, split_seed=1)["test"] != problems["test"]
    assert len(both(data, test_share=0.5)["test"]) == 40


def test_test_data_of_their_own_need_no_solution_and_what_is_in_both_is_told(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", sums(6))
    tests = write_lines(tmp_path / "b.jsonl", [{"question": f"What is {n} + 1?", "answer": n + 1} for n in (5, 6, 7)])
    problems, words = load_splits(data, ("train", "test"), own=Own(test_data=tests, solution_column="solution"))
    assert (len(problems["train"]), [p.solution for p in problems["test"]]) == (6, [(), (), ()])
    assert f"test problems from {tests}" in words and "1 test problems are also trained on" in words


def test_a_folder_in_the_hubs_layout_is_read_by_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    rows = [row | {"answer": str(row["answer"])} for row in sums(9)]
    pq.write_table(pa.Table.from_pylist(rows[:6]), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[6:]), folder / "data" / "test-00000-of-00001.parquet")
    problems, words = load_splits(str(folder), ("train", "test"))
    assert [p.ground_truth["question"] for p in problems["train"] + problems["test"]] == [r["question"] for r in rows]
    assert len(problems["test"]) == 3 and "test problems from its split test" in words
    flat = tmp_path / "flat"  # files named as ours, in other columns
    flat.mkdir()
    for split, part in (("train", rows[:6]), ("test", rows[6:])):
        pq.write_table(pa.Table.from_pylist(part), flat / f"{split}.parquet")
    assert both(str(flat)) == problems


# ---- once and for all ----


@pytest.mark.parametrize("verifier", ["competition_math", "my.py"])
def test_converted_once_it_is_the_same_data(tmp_path, verifier):
    if verifier == "my.py":
        verifier = str(tmp_path / verifier)
        Path(verifier).write_text(VERIFIER)
    data = write_lines(tmp_path / "a.jsonl", sums())
    own.main(own.Args(data=data, output_dir=str(tmp_path / "D"), verifier=verifier))
    in_memory = both(data, verifier=verifier)
    from_disk = both(str(tmp_path / "D"), **({"verifier": verifier} if verifier.endswith(".py") else {}))
    assert from_disk == in_memory
    assert all(fingerprint(from_disk[split]) == fingerprint(in_memory[split]) for split in from_disk)


def test_a_changed_verifier_file_is_other_data_and_a_resumed_run_says_so(tmp_path):
    data, verifier = write_lines(tmp_path / "a.jsonl", sums()), tmp_path / "judge.py"
    runs = []
    for text in (VERIFIER, VERIFIER, VERIFIER + "# changed\n"):
        verifier.write_text(text)
        problems = both(data, verifier=str(verifier))
        runs.append(describe_run({"verifier": str(verifier)}, {name: fingerprint(problems[name]) for name in problems}))
    assert runs[0] == runs[1]
    assert len(differences(runs[0], runs[2])) == 2  # train and test


# ---- refusing ----


def test_what_is_wrong_is_told_with_the_row(tmp_path):
    good, path = sums(3), tmp_path / "a.jsonl"

    def of(*rows: dict) -> str:
        return message_of(write_lines(path, [*good, *rows]))

    where = f"flag --data {path}"
    assert of({"question": "?", "solution": "s"}) == f"{where}, line 4: answer is empty"
    assert of({"question": " ", "answer": 1}).startswith(f"{where}, line 4: question must be a text that is not empty")
    assert of({"question": "?", "answer": {"a": 1}}) == f"{where}, line 4: answer must be a text or a number"
    assert "line 4: the solution must not hold an <answer>" in of(good[0] | {"solution": "It <answer> 4 </answer>"})
    assert "line 4: the answer must not hold an <answer>" in of(good[0] | {"answer": "<answer> 4"})
    assert "line 4: holds half of a character" in of(good[0] | {"question": "\ud800"})
    assert "line 4: math ground_truth" in of(good[0] | {"answer": "1" * 1_001})
    path.write_text(json.dumps(good[0]) + "\n\n{not json\n")
    assert message_of(path).startswith(f"{where}: line 3 is no JSON (")
    path.write_text("[1]\n")
    assert message_of(path) == f'{where}: line 1 must be a JSON object, {{"prompt": ..}}'
    path.write_bytes(b'{"question": "\xff"}\n')
    assert message_of(path).startswith(f"{where}: line 1 is no JSON (")
    path.write_text("")
    assert "has no column prompt, question, problem, instruction; name it by --prompt_column; there are: none" in (
        message_of(path))
    path.unlink()
    assert message_of(path) == f"{where}: no such file"


def test_other_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nwhat,1\nwhat\n")
    assert "a.csv: line 3 has more or fewer fields than the 2 of its first line" in message_of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("question,answer\n")
    assert message_of(tmp_path / "a.csv") == f"flag --data {tmp_path / 'a.csv'} has no rows"
    (tmp_path / "a.csv").write_bytes(b"question,answer\n\xff,1\n")
    assert "a.csv: cannot be read (" in message_of(tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    assert "a.parquet: cannot be read (" in message_of(tmp_path / "a.parquet")


def test_columns_and_verifiers_that_are_not_there(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", sums(4))
    there = "there are: question, solution, answer"
    assert message_of(data, prompt_column="q") == (f"flag --prompt_column q: flag --data {data} has no such column; "
                                                   f"{there}")
    assert message_of(data, answer_column="a").endswith(f"has no such column; {there}")
    assert message_of(data, solution_column="s").endswith(f"has no such column; {there}")
    assert message_of(data, verifier="magic").startswith("flag --verifier magic: must be one of competition_math, nume")
    assert message_of(data, verifier="countdown").startswith(f"flag --data {data}, line 1: countdown ground_truth")
    assert message_of(data, verifier="/no/such.py") == "flag --verifier /no/such.py: no such file"
    nothing = write_lines(tmp_path / "b.jsonl", [{"question": "?"}])
    assert "has no column answer, final_answer, target, solution, " in message_of(nothing)
    alone = write_lines(tmp_path / "c.jsonl", sums(1))
    assert message_of(alone).endswith("1 of them cannot be held out to test on; give --test_data")
    assert message_of(data, test_data=str(tmp_path / "d.csv")) == f"flag --test_data {tmp_path / 'd.csv'}: no such file"


def test_a_verifier_that_finds_no_reference_right_is_refused(tmp_path):
    data, verifier = write_lines(tmp_path / "a.jsonl", sums(4)), tmp_path / "my.py"
    verifier.write_text("def verify(completion, ground_truth):\n    return ground_truth['no such key']\n")
    assert "none of the first 3 reference answers right" in message_of(data, verifier=str(verifier))
    assert "'verifier raised KeyError in line 2'" in message_of(data, verifier=str(verifier))


def test_data_never_name_a_file_to_run(tmp_path, monkeypatch):
    """A folder in our form that asks for a Python file: only the user's flag lets it run."""
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    Path("evil.py").write_text(f"open({str(ran)!r}, 'w')\n{VERIFIER}")
    own.main(own.Args(data=write_lines(tmp_path / "a.jsonl", sums(4)), output_dir="D"))
    for split in ("train", "test"):
        table = pq.read_table(f"D/{split}.parquet")
        rows = [row | {"data_source": "evil.py"} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows), f"D/{split}.parquet")
    with pytest.raises(BadInput, match=r"'evil.py' has no verifier; .*; name your file by --verifier"):
        load_problems("D", "test")
    assert not ran.exists()
    assert both("D", verifier="evil.py") and ran.exists()


def test_flags_for_other_columns_do_not_fit_data_that_have_ours(tmp_path):
    own.main(own.Args(data=write_lines(tmp_path / "a.jsonl", sums(4)), output_dir=str(tmp_path / "D")))
    for settings in ({"prompt_column": "q"}, {"test_data": "T"}, {"verifier": "numeric"}):
        [(name, value)] = settings.items()
        assert message_of(tmp_path / "D", **settings) == (
            f"flag --{name} {value}: is for data in other columns than ours, and --data {tmp_path / 'D'} has ours")
