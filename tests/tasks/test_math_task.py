"""MATH: chunks that join back and keep LaTeX whole, targets out of boxes, the two splits, a source that fails."""

import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import score_all
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import competition_math

AUTHORS_DATA = Path(__file__).resolve().parents[3] / "shared" / "reference_data" / "math" / "test.parquet"
AUTHORS_RULE = re.compile(r"(?<=\. )|(?<=\n)")  # where the authors cut, LaTeX or not
needs_authors_data = pytest.mark.skipif(not AUTHORS_DATA.is_file(), reason=f"{AUTHORS_DATA} is not here")
PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)


def cuts(pieces: list[str]) -> set[int]:
    """Offsets at which the joined text is cut."""
    return {len("".join(pieces[:count])) for count in range(1, len(pieces))}


# ---- a solution's text


@pytest.mark.parametrize(
    "expected",
    [
        [],
        ["One sentence."],
        ["First. ", "Second. ", " Third.\n", "\n", "Fourth."],  # two spaces: the second opens the next chunk
        ["A line\n", "another\n"],
        ["It is 3.5 or .25 at 1.000. ", "Then 7."],
        ["So $f(1. 2)\n= 3. $ holds. ", "Next $$1. A\n\n2. B$$ and\n", "end."],
        ["As \\[a. B\n\\\\[1ex] c. D\\] or \\(x. Y\\) is. ", "End."],  # \\[1ex] is a line break with a gap, no formula
        ["We have \\begin{align*}\na &= b. \\\\\n\\begin{array}{c}\nx\n\\end{array}\n\\end{align*}so. ", "End."],
        ["Nested \\begin{array}{c}\n\\begin{array}{c}\n1\n\\end{array}\n2. A\n\\end{array} here. ", "End."],
        ["Draw\n", '[asy]\nlabel("$x", (0,0)); // A. B\n\ndraw(a);\n[/asy]\n', "Done."],
        ["In \\textbf{bold. {Very} bold. Indeed} words. ", "End."],
        ["It costs \\$5. ", "Or $x. Y$ dollars, \\$6. ", "End."],
        ["A stray $ sign. ", "No formula.\n", "\n", "But $x. Y$ is one. ", "End."],
        ["An open \\[ bracket. ", "An open { brace. ", "An open \\begin{x} too. ", "End."],
        ["Adjacent $a. B$$c. D$ formulas. ", "End."],
        ["That is, i.e. Two, e.g. Three (cf. Four), see Eq. $5$ and Fig. 6 by Dr. Seven vs. Mr. X. Y.\n", "End."],
        ["A. First case. ", "At 2 p.m. it was open. ", "End."],
        ["it goes on. in lower case. ", "End."],
        ["Really? Yes! Sure. ", "End."],
    ],
)
def test_chunks_are_lines_and_sentences_and_keep_latex_whole(expected):
    assert competition_math.chunks("".join(expected)) == expected


whole = st.sampled_from(
    ["$x. Y$", "$$a. B\nc$$", "\\[u. V\n\\]", "\\(p. Q\\)", "\\begin{align*}\na. B\\\\\n\\end{align*}", "\\{", "\\$",
     "\\text{If $n$. Then\n}", "$\\text{if \\$}. Z$", "[asy]\n$ draw. Me\n[/asy]", "\\frac{1. A}{2\n}"]
)
between = st.sampled_from([" ", "\n", "\n\n", ". ", ". Then ", ", so ", ". and "])


@PROPERTY
@given(st.lists(st.tuples(whole, between), max_size=8))
def test_no_cut_is_inside_latex_and_all_cuts_are_where_the_authors_cut_too(parts):
    text, inside = "", set()
    for latex, joint in parts:
        inside |= set(range(len(text) + 1, len(text) + len(latex)))
        text += latex + joint
    pieces = competition_math.chunks(text)
    assert "".join(pieces) == text
    assert not cuts(pieces) & inside
    assert cuts(pieces) <= cuts([piece for piece in AUTHORS_RULE.split(text) if piece])


@PROPERTY
@given(st.text("ab .\n$\\[]{}()", max_size=60) | st.text(max_size=40))
def test_any_text_is_joined_back_exactly_from_chunks_that_are_not_empty(text):
    pieces = competition_math.chunks(text)
    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize(
    ("solution", "target"),
    [
        ("so $\\boxed{5}$.", "5"),
        ("$\\boxed{\\frac{1}{\\sqrt{2}}}$", "\\frac{1}{\\sqrt{2}}"),
        ("first $\\boxed{1}$, then $\\boxed{2}$ as {always}", "2"),
        ("$\\boxed{ 5 }$", "5"),
        ("\\boxed 5$.", "5"),
        ("\\boxed5$", "5"),
        ("\\boxed 12. ", "12"),
        ("\\fbox{7}", "7"),
        ("\\boxed {\\{1, 2\\}}", "\\{1, 2\\}"),  # escaped braces do not count
        ("\\boxed{\\left\\{1}", "\\left\\{1"),
        ("the answer is 5", None),
        ("\\boxed{}", None),
        ("\\boxed{ }", None),
        ("\\boxed{1} and \\boxed{2", None),
        ("\\boxed", None),
        ("\\boxedfoo{3}", None),
    ],
)
def test_the_target_is_what_the_last_box_holds(solution, target):
    assert competition_math.boxed_answer(solution) == target


def breaks_latex(pieces: list[str]) -> bool:
    """A rough second opinion: some piece holds an odd number of $, or opens what it does not close."""
    pairs = [("\\begin{", "\\end{"), ("[asy]", "[/asy]"), ("\\[", "\\]"), ("{", "}")]
    for piece in pieces:
        text = re.sub(r"\[asy\].*?\[/asy\]", "", piece, flags=re.DOTALL)
        text = re.sub(r"\\[\\{}$]", "", text)
        if text.count("$") % 2 or any(text.count(opening) != text.count(closing) for opening, closing in pairs):
            return True
    return False


@needs_authors_data
def test_on_the_authors_rows_targets_agree_and_chunks_differ_only_for_latex_and_abbreviations():
    rows = pq.read_table(AUTHORS_DATA, columns=["hint", "reward_model"]).to_pylist()
    solutions = ["".join(row["hint"]) for row in rows]
    ours = [competition_math.chunks(solution) for solution in solutions]
    targets = [row["reward_model"]["ground_truth"]["target"].strip() for row in rows]
    assert ["".join(pieces) for pieces in ours] == solutions
    assert [competition_math.boxed_answer(solution) for solution in solutions] == targets
    assert all(cuts(pieces) <= cuts(row["hint"]) for pieces, row in zip(ours, rows, strict=True))
    assert not any(breaks_latex(pieces) for pieces in ours)
    theirs_are_whole = [not breaks_latex(row["hint"]) for row in rows]
    equal = [pieces == row["hint"] for pieces, row in zip(ours, rows, strict=True)]
    assert sum(equal) / sum(theirs_are_whole) > 0.97


# ---- rows and splits


def source_row(problem: str, level: str = "Level 3", solution: str = "As $1 + 1 = 2$. So $\\boxed{2}$.") -> dict:
    return {"problem": problem, "level": level, "type": "Algebra", "solution": solution}


TRAIN = [
    source_row("What is $a$?"),
    source_row("Too easy", "Level 2"),
    source_row("No box", "Level 4", "It is 4."),
    source_row("FIND $x^2$"),  # but for case and signs an easy problem of the test part
    source_row("What is b?", "Level 5", "By (a. b) it is. So\n\\[\\boxed{\\frac{1}{2}}\\]"),
    source_row("Unknown level", "Level ?"),
    source_row("In the file of MATH500 only"),
]
TEST = [
    source_row("Find $x_2$.", "Level 1"),
    source_row("Test one"),
    source_row("Test without box", "Level 3", "none"),
    source_row("Test two", "Level 4"),
    source_row("Test three", "Level 5"),
    source_row("Test easy", "Level 2"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_split(folder: Path, split: str, rows: list[dict]) -> Path:
    """A folder with the files of the hub's repository."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def source(tmp_path) -> str:
    write_split(tmp_path / "MATH-lighteval", "train", TRAIN)
    return str(write_split(tmp_path / "MATH-lighteval", "test", TEST))


def generate(source: str, **flags):
    args = competition_math.Args(output_dir="unused", source=source, **({"test_problems": 2} | flags))
    return competition_math.generate(args)


def problems(rows: list[dict]) -> list[str]:
    return [row["reward_model"]["ground_truth"]["question"] for row in rows]


def places(rows: list[dict]) -> list[tuple[str, int]]:
    return [(row["extra_info"]["split"], row["extra_info"]["index"]) for row in rows]


def test_clean_trains_on_no_problem_of_the_whole_test_part(source):
    splits, left_out = generate(source)
    assert problems(splits["train"]) == ["What is $a$?", "What is b?", "In the file of MATH500 only"]
    assert places(splits["train"]) == [("train", 0), ("train", 4), ("train", 6)]
    assert left_out == {"without a boxed answer": 2, "also in the test part": 1}


def test_clean_keeps_the_problems_of_a_math500_file_out_too(source, tmp_path):
    math500 = write_split(tmp_path / "MATH-500", "test", [{"problem": "in the file of math500, only!"}])
    splits, left_out = generate(source, math500=str(math500))
    assert problems(splits["train"]) == ["What is $a$?", "What is b?"]
    assert left_out["also in the test part"] == 2


def test_paper_trains_on_all_other_rows_of_both_parts(source):
    splits, left_out = generate(source, split="paper")
    assert places(splits["train"]) == [("train", 0), ("train", 3), ("train", 4), ("train", 6), ("test", 1)]
    assert left_out == {"without a boxed answer": 2}


def test_both_splits_test_on_the_same_last_rows_of_the_test_part(source):
    clean, paper = (generate(source, split=split)[0]["test"] for split in ("clean", "paper"))
    assert clean == paper
    assert places(clean) == [("test", 3), ("test", 4)]
    assert places(generate(source, test_problems=3)[0]["test"]) == [("test", 1), ("test", 3), ("test", 4)]


def test_levels_are_chosen_by_the_flags(source):
    splits, _ = generate(source, min_level=1, max_level=2, test_problems=1)
    assert problems(splits["train"]) == ["Too easy"]
    assert problems(splits["test"]) == ["Test easy"]


def test_a_row_says_all_that_training_and_the_verifier_need(source):
    row = generate(source)[0]["train"][1]
    prompt = row["prompt"][0]["content"]
    assert "What is b?" in prompt and "</answer>" in prompt and prompt.endswith("<think> ")
    assert row == {
        "level": "Level 5",
        "type": "Algebra",
        "data_source": "DigitalLearningGmbH/MATH-lighteval",
        "prompt": [{"content": prompt, "role": "user"}],
        "hint": ["By (a. b) it is. ", "So\n", "\\[\\boxed{\\frac{1}{2}}\\]"],
        "question": prompt,
        "answer": "By (a. b) it is. So\n\\[\\boxed{\\frac{1}{2}}\\] </think>\n<answer> \\frac{1}{2} </answer>",
        "ability": "math",
        "reward_model": {"ground_truth": {"question": "What is b?", "target": "\\frac{1}{2}"}, "style": "rule"},
        "extra_info": {"index": 4, "split": "train"},
    }


@needs_authors_data
def test_the_files_have_the_columns_and_types_of_the_authors(source, tmp_path):
    competition_math.build(tmp_path / "out", source=source, test_problems=2)
    theirs = pq.read_schema(AUTHORS_DATA)
    for split in ("train", "test"):
        ours = pq.read_schema(tmp_path / "out" / f"{split}.parquet")
        assert {(field.name, str(field.type)) for field in ours} == {(f.name, str(f.type)) for f in theirs}


def test_what_is_built_loads_and_its_demonstrations_score_one(source, tmp_path):
    competition_math.build(tmp_path / "out", source=source, test_problems=2)
    loaded = load_problems(str(tmp_path / "out"), "train") + load_problems(str(tmp_path / "out"), "test")
    scores = score_all([(problem.data_source, problem.demonstration, problem.ground_truth) for problem in loaded])
    assert [reward for reward, _, _ in scores] == [1.0] * 5


@needs_authors_data
def test_the_authors_solutions_with_our_targets_score_one():
    items = []
    for row in pq.read_table(AUTHORS_DATA, columns=["hint", "reward_model"]).to_pylist():
        solution, problem = "".join(row["hint"]), row["reward_model"]["ground_truth"]["question"]
        answer = competition_math.boxed_answer(solution)
        ours = competition_math.to_row(competition_math.DATA_SOURCE, problem, solution, answer, 0, "test")
        items += [(competition_math.DATA_SOURCE, ours["answer"], truth["ground_truth"])
                  for truth in (ours["reward_model"], row["reward_model"])]
    assert [reward for reward, _, _ in score_all(items)] == [1.0] * 2_048


# ---- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"split": "dirty"}, "--split dirty: must be clean or paper"),
        ({"min_level": 0}, "--min_level 0: must lie in 1..5"),
        ({"min_level": 4, "max_level": 3}, "--max_level 3: must lie in --min_level 4..5"),
        ({"max_level": 6}, "--max_level 6: must lie in --min_level 3..5"),
        ({"test_problems": 0}, "--test_problems 0: must be at least 1"),
        ({"split": "paper", "math500": "M"}, "--math500 M: is for --split clean only"),
        ({"test_problems": 4}, "--test_problems 4: .* has 3 test problems of levels 3..5"),
    ],
)
def test_a_bad_flag_is_named_with_its_rule(source, flags, message):
    with pytest.raises(BadInput, match=message):
        generate(source, **flags)


def test_an_unreachable_hub_is_told_with_the_data_set_and_the_way_out(tmp_path):
    with pytest.raises(BadInput) as error:
        competition_math.build(tmp_path / "out")
    for part in ("data set DigitalLearningGmbH/MATH-lighteval (train)", "Couldn't reach", "--source DIR"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_files_or_without_a_split_is_told(tmp_path):
    with pytest.raises(BadInput, match="nowhere .train. cannot be loaded"):
        generate(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty .train. cannot be loaded"):
        generate(str(tmp_path / "empty"))
    with pytest.raises(BadInput, match="half .test. cannot be loaded"):
        generate(str(write_split(tmp_path / "half", "train", TRAIN)))


def test_a_broken_file_is_told(tmp_path, source):
    (Path(source) / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(BadInput, match="MATH-lighteval .train. cannot be loaded"):
        generate(source)


def test_a_missing_column_is_told_with_those_that_are_there(tmp_path):
    folder = write_split(tmp_path / "other", "train", [{"question": "Q", "level": "Level 3"}])
    with pytest.raises(BadInput, match="has no column problem, type, solution; there are question, level"):
        generate(str(folder))


def test_the_command_tells_how_many_rows_there_are_and_were_left_out(source, tmp_path, capsys):
    competition_math.main(competition_math.Args(output_dir=str(tmp_path / "out"), source=source, test_problems=2))
    counts = "3 train, 2 test problems of MATH; left out 2 without a boxed answer; left out 1 also in the test part"
    assert counts in capsys.readouterr().out
    assert [pq.read_metadata(tmp_path / "out" / f"{split}.parquet").num_rows for split in ("train", "test")] == [3, 2]
