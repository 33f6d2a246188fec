"""The benchmarks: read from local folders with the hub's files and columns, targets, a source that fails."""

import json
from pathlib import Path
from typing import get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards import score
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import benchmarks

# name -> (path in the repository, its rows, problems, targets)
HUB = {
    "gsm8k": (
        "main/test-00000-of-00001.parquet",
        [
            {"question": "Eggs?", "answer": "She sells 16 - 7 = <<16-7=9>>9 eggs.\n#### 9"},
            {"question": "Profit?", "answer": "He made 70000\n#### 70,000"},
        ],
        ["Eggs?", "Profit?"],
        ["9", "70000"],
    ),
    "aime24": (
        "data/train-00000-of-00001.parquet",
        [{"id": 60, "problem": "Walk?", "solution": "long", "answer": "204", "url": "u", "year": "2024"}],
        ["Walk?"],
        ["204"],
    ),
    "amc": (
        "data/train-00000-of-00001.parquet",
        [{"id": 0, "problem": "Sum?", "answer": 142.0, "url": "u"}, {"id": 1, "problem": "Half?", "answer": 0.5}],
        ["Sum?", "Half?"],
        ["142", "0.5"],
    ),
    "math500": (
        "test.jsonl",
        [
            {"problem": "Polar?", "solution": "s", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
             "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"},
        ],
        ["Polar?"],
        ["\\left( 3, \\frac{\\pi}{2} \\right)"],
    ),
    "minerva": ("test.jsonl", [{"question": "Ohms?", "answer": "-0.25 "}], ["Ohms?"], ["-0.25"]),
    "olympiad_bench": (
        "data/train-00000-of-00001.parquet",
        [{"question": "Which?", "answer": "$\\frac{1}{2}$"}, {"question": "Both?", "answer": "$1$, $2$"}],
        ["Which?", "Both?"],
        ["\\frac{1}{2}", "$1$, $2$"],
    ),
}
DATA_SOURCES = {
    "gsm8k": "openai/gsm8k", "aime24": "aime", "amc": "amc", "math500": "math500", "minerva": "minerva",
    "olympiad_bench": "olympiad_bench",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, name: str, rows: list[dict] | None = None) -> str:
    """A folder with the benchmark's file as the hub has it (with other rows, if given)."""
    path, hub_rows, _, _ = HUB[name]
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    rows = hub_rows if rows is None else rows
    if path.endswith(".jsonl"):
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / path)
    return str(folder)


def test_every_name_has_one_entry():
    assert list(benchmarks.BENCHMARKS) == list(get_args(benchmarks.Name)) == list(HUB)


@pytest.mark.parametrize("name", HUB)
def test_a_benchmark_is_read_from_the_hubs_files(name, tmp_path):
    source = write(tmp_path / name, name)
    benchmarks.build(tmp_path / "out", name, source=source)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.parquet"]
    _, _, problems, targets = HUB[name]
    rows = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in rows] == [
        {"question": problem, "target": target} for problem, target in zip(problems, targets, strict=True)
    ]
    for index, (row, problem, target) in enumerate(zip(rows, problems, targets, strict=True)):
        assert row["data_source"] == DATA_SOURCES[name]
        assert row["hint"] == []
        assert row["answer"] == f" </think>\n<answer> {target} </answer>"
        prompt = row["prompt"][0]["content"]
        assert problem in prompt and target not in prompt and prompt.endswith("<think> ")
        assert row["extra_info"]["index"] == index


@pytest.mark.parametrize("name", HUB)
def test_what_is_built_loads_and_its_targets_score_one(name, tmp_path):
    benchmarks.build(tmp_path / "out", name, source=write(tmp_path / name, name))
    for problem in load_problems(str(tmp_path / "out"), "test"):
        assert problem.solution == ()
        assert score(problem.data_source, problem.demonstration, problem.ground_truth).reward == 1.0


def test_a_configs_files_may_lie_in_the_folder_itself_and_its_neighbours_are_not_read(tmp_path):
    source = Path(write(tmp_path / "gsm8k", "gsm8k"))
    pq.write_table(pa.Table.from_pylist([{"question": "No", "answer": "#### 0"}]), source / "test-0.parquet")
    args = benchmarks.Args(name="gsm8k", output_dir="unused", source=str(source))
    assert len(benchmarks.generate(args)) == 2
    args = benchmarks.Args(name="gsm8k", output_dir="unused", source=str(source / "main"))
    assert len(benchmarks.generate(args)) == 2


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        (3.0, "3"), (3.5, "3.5"), (12, "12"), (" x ", "x"), ("$x$", "x"), ("$$ x $$", "x"), ("\\$5", "\\$5"),
        ("$1$ or $2$", "$1$ or $2$"), (["$1$", "2"], "1, 2"),
    ],
)
def test_an_answer_becomes_text(answer, target):
    assert benchmarks.plain(answer) == target


def test_gsm8ks_target_is_what_follows_the_hashes():
    assert benchmarks.after_hashes("so 5\n#### 1,234,567 ") == "1234567"
    assert benchmarks.after_hashes("#### -3") == "-3"
    assert benchmarks.after_hashes("no hashes: 5") == ""


# ---- bad input


@pytest.mark.parametrize("name", HUB)
def test_an_unreachable_hub_is_told_with_the_data_set_and_the_way_out(name, tmp_path):
    with pytest.raises(BadInput) as error:
        benchmarks.build(tmp_path / "out", name)
    for part in (benchmarks.BENCHMARKS[name].hub_name, "Couldn't reach", "--source DIR", "utils.tasks.benchmarks"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_told_with_those_that_are_there(tmp_path):
    source = write(tmp_path / "amc", "amc", [{"Problem": "P", "answer": 1.0}])
    with pytest.raises(BadInput, match="amc .train. has no column problem; there are Problem, answer"):
        benchmarks.build(tmp_path / "out", "amc", source=source)


@pytest.mark.parametrize(
    "row",
    [{"question": "Q", "answer": "5"}, {"question": "", "answer": "#### 5"}, {"question": "Q", "answer": None}],
)
def test_a_row_without_problem_or_target_is_told(row, tmp_path):
    source = write(tmp_path / "gsm8k", "gsm8k", [HUB["gsm8k"][1][0], row])
    with pytest.raises(BadInput, match="gsm8k .test. row 1: no problem, or no target in"):
        benchmarks.build(tmp_path / "out", "gsm8k", source=source)


def test_an_unknown_name_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match="flag --name aime: must be one of gsm8k, aime24, amc"):
        benchmarks.build(tmp_path / "out", "aime")


def test_a_split_without_rows_is_told(tmp_path):
    source = tmp_path / "amc"
    write(source, "amc")
    path = source / HUB["amc"][0]
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(BadInput, match="amc .train. (has no rows|cannot be loaded)"):
        benchmarks.build(tmp_path / "out", "amc", source=str(source))
