"""The Knights and Knaves verifier: hand-worked answers, attacks, and properties of random answers."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, score
from rewards.answer import CORRECT, NO_ANSWER, UNPARSABLE, WRONG_RESULT
from rewards.kk_logic import MAX_ANSWER_CHARS, parse_ground_truth

GOLD = Path(__file__).parents[3] / "shared/reference_data/kk_logic"
TRUTH = {"names": ["Zoey", "Oliver", "Mia"], "solution": [True, False, False]}
RIGHT = "(1) Zoey is a knight\n(2) Oliver is a knave\n(3) Mia is a knave"
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def answered(answer: str, truth: dict = TRUTH) -> Score:
    return score("kk_logic", f"Assume Mia is a knight. </think>\n<answer> {answer} </answer>", truth)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (RIGHT, CORRECT),
        ("Mia is a knave, Zoey is a knight and Oliver is a knave.", CORRECT),
        ("1. zoey IS knight; 2. OLIVER is the Knave; 3) mia is a knave", CORRECT),
        ("(7)Zoey is a knight(7)Oliver is a knave,and Mia is knave", CORRECT),
        ("1: Zoey is a knight 2: Oliver is a knave 3: Mia is a knave", CORRECT),
        ("Zoey\nis\na\nknight\n\n\tOliver  is a knave\r\nMia is a knave", CORRECT),
        # the wrong roles, or not the right names
        ("(1) Zoey is a knave\n(2) Oliver is a knave\n(3) Mia is a knave", WRONG_RESULT),
        ("(1) Zoey is a knight\n(2) Oliver is a knave", WRONG_RESULT),
        (f"{RIGHT}\n(4) Ella is a knave", WRONG_RESULT),
        (f"{RIGHT}\n(4) Mia is a knave", WRONG_RESULT),  # twice, though the same
        (f"{RIGHT}\n(4) Mia is a knight", WRONG_RESULT),  # both roles
        (f"Mia is a knight\n{RIGHT}", WRONG_RESULT),
        ("Zoey is a knight, Oliver is a knave, Miaa is a knave", WRONG_RESULT),
        ("Zoey is a knight, Oliver is a knave, M\u0456a is a knave", WRONG_RESULT),  # a Cyrillic letter
        ("Zoey is a knight, Oliver and Mia is a knave", WRONG_RESULT),
        ("Zoey is a knight or Oliver is a knave or Mia is a knave", WRONG_RESULT),  # "or Oliver" is nobody
        ("(1) Zoey is a knight\n(2) Oliver is a knight\n(3) ... is a knave", UNPARSABLE),  # the prompt's example
        # negations and other sentences
        ("Zoey is not a knave, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a knight, Oliver is not a knight, Mia is a knave", UNPARSABLE),
        ("Zoey isn't a knave, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a non-knave, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a knight, Oliver and Mia are knaves", UNPARSABLE),
        ("Zoey is a knight is a knave, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a knight/knave, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a a knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey: knight, Oliver: knave, Mia: knave", UNPARSABLE),
        ("knight, knave, knave", UNPARSABLE),
        ("is a knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
        (f"{RIGHT}?", UNPARSABLE),
        (f"{RIGHT}\nbut who knows", UNPARSABLE),
        ("Zoey is a", UNPARSABLE),
        ("", UNPARSABLE),
        # invisible characters, digits
        ("Zo\u200bey is a knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("Zoey is a\u00a0knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("(\u0661) Zoey is a knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
        ("1 Zoey is a knight, Oliver is a knave, Mia is a knave", UNPARSABLE),
    ],
    ids=ascii,
)
def test_golden_answers(answer, expected):
    assert answered(answer) == expected


STATEMENTS = ("Zoey is a knight", "Oliver is a knave", "Mia is a knave")
SENTENCE = ", ".join(STATEMENTS)


@pytest.mark.parametrize("form", [
    *(f"{bullet} {{}}\n{bullet} {{}}\n{bullet}{{}}" for bullet in "-*+\u2022\u2013"), "**{}**\n**{}**\n**{}**",
    "(a) {}\n(b) {}\n(c) {}", "(A) {} (B) {} (C) {}", "a) {}\nb) {}\nc) {}", "[1] {}\n[2] {}\n[3] {}",
    "(i) {} (ii) {} (iii) {}", "- (1) {}\n- (2) {}\n- (3) {}", "{} & {} & {}", "{} | {} | {}", "{}; & {}; & {}",
    r"\text{{{}}} \\ \text{{{}}} \\ \text{{{}}}", r"\boxed{{\text{{{}}}, \text{{{}}}, \text{{{}}}}}",
    r"$\textbf{{{}}} \land {} \wedge {}$", r"\[ \text{{{}}}, \quad {}, \quad {} \]", r"\( {}, {}, {} \)",
])
def test_lists_and_latex_around_the_statements_are_read(form):
    assert answered(form.format(*STATEMENTS)) == CORRECT
    assert answered(form.format(*STATEMENTS[:2], "Mia is a knight")) == WRONG_RESULT
    assert answered(form.format(*STATEMENTS) + "\nMia is a knight") == WRONG_RESULT
    assert answered(form.format(*STATEMENTS[:2], "Mia is not a knight")) == UNPARSABLE


@pytest.mark.parametrize("lead_in", [
    "Therefore, ", "Therefore ", "THEREFORE: ", "So ", "So, ", "Thus: ", "Thus ", "Hence, ", "Hence: ", "And so, ",
    "The solution is: ", "The solution is ", "The solution is:\n", "the final answer is: ", "So the answer is, ",
    "Therefore, the solution is: ", "Solution: ", "Answer:\n", "**Final answer:** ", "- So ", "The solution is that ",
    "The solution is as follows:\n",
])
def test_a_lead_in_is_no_part_of_a_name(lead_in):
    assert answered(lead_in + SENTENCE) == answered(lead_in + RIGHT) == CORRECT
    assert answered(lead_in + SENTENCE.replace("Mia is a knave", "Mia is a knight")) == WRONG_RESULT
    assert answered(f"{lead_in}{SENTENCE}, so Mia is a knight") == WRONG_RESULT
    assert answered(f"{lead_in}not {SENTENCE}") == WRONG_RESULT  # "not Zoey" is nobody


def test_a_lead_in_may_stand_before_any_statement():
    assert answered("Zoey is a knight, so Oliver is a knave; therefore, Mia is a knave.") == CORRECT


@pytest.mark.parametrize("answer", [
    f"The solution is not: {SENTENCE}", f"The solution is not that {SENTENCE}", f"The wrong solution is: {SENTENCE}",
    f"The opposite is: {SENTENCE}", f"If {SENTENCE}", f"So if {SENTENCE}", f"So {SENTENCE}?", f"{SENTENCE} so not",
    f"Suppose the solution is: {SENTENCE}", f"It is false that {SENTENCE}", f"{SENTENCE}. The solution is: not this",
    "So is a knight, Oliver is a knave, Mia is a knave", "Zoey so is a knight, Oliver is a knave, Mia is a knave",
    "Zoey is so a knight, Oliver is a knave, Mia is a knave", "- is a knight\n- is a knave\n- is a knave",
    rf"\neg \text{{Zoey is a knight}}, {SENTENCE[18:]}", SENTENCE.replace("a knight", "a) knight"),
    SENTENCE.replace(",", r" \lor"), rf"\text{{{SENTENCE}",
    "Zoey is a - knight, Oliver is a knave, Mia is a knave", "Zoey - is a knight, Oliver is a knave, Mia is a knave",
    f"~{SENTENCE}", f"!{SENTENCE}", f"`{SENTENCE}`", f'"{SENTENCE}"', f"{SENTENCE} {{", f"[{SENTENCE}]",
])
def test_what_may_deny_or_doubt_the_statements_or_is_not_in_the_grammar_is_not_right(answer):
    assert answered(answer) in (UNPARSABLE, WRONG_RESULT)


def test_a_name_may_begin_with_a_lead_in():
    truth = {"names": ["So Yeon", "Hence", "The Solution", "Yeon"], "solution": [True, False, True, False]}
    right = "So Yeon is a knight, Hence is a knave, The Solution is a knight, Yeon is a knave"
    assert answered(right, truth) == CORRECT
    assert answered(right.replace("So Yeon is a knight", "So Yeon is a knave"), truth) == WRONG_RESULT
    assert answered(right.replace("So Yeon", "Yeon"), truth) == WRONG_RESULT


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (RIGHT, NO_ANSWER),
        (f"<answer>{RIGHT}", NO_ANSWER),
        (f"<answer> {RIGHT} </answer> no: <answer> Zoey is a knave </answer>", WRONG_RESULT),
        (f"<answer> Zoey is a knave <answer> {RIGHT} </answer>", CORRECT),
    ],
)
def test_only_the_last_closed_block_counts(completion, expected):
    assert score("kk_logic", completion, TRUTH) == expected


def test_the_longest_answer_is_read_and_one_character_more_is_not():
    completion = "<answer>{}</answer>"
    assert score("kk_logic", completion.format(f"{RIGHT:{MAX_ANSWER_CHARS}}"), TRUTH) == CORRECT
    assert score("kk_logic", completion.format(f"{RIGHT:{MAX_ANSWER_CHARS + 1}}"), TRUTH) == UNPARSABLE


HUGE = ["Zoey is a knight ", "is ", "(1) ", "Zoey ", "((((", "\u0301", "-'", "so ", "\\text{", "\\text{a}", "- ",
        "- so", "the ", "the solution is ", ": "]


@pytest.mark.parametrize("part", HUGE)
def test_a_huge_answer_is_scored_in_time(part):
    start = time.perf_counter()
    answered(part * (MAX_ANSWER_CHARS // len(part)))
    answered(part * 300_000)
    assert time.perf_counter() - start < 2.0  # seconds: a bound on hanging, not on speed


@pytest.mark.parametrize(
    "truth",
    [
        TRUTH | {"solution_text_format": "nonsense"},
        {"names": np.array(TRUTH["names"]), "solution": np.array(TRUTH["solution"])},
        {"solution_text_format": RIGHT},
        {"names": None, "solution": None, "solution_text_format": RIGHT},
        {"names": ["Zoey"], "solution_text_format": RIGHT},
    ],
)
def test_roles_come_from_names_and_solution_or_else_from_the_text(truth):
    assert parse_ground_truth(truth) == {"zoey": True, "oliver": False, "mia": False}


@pytest.mark.parametrize(
    "truth",
    [
        {},
        {"names": ["Zoey"]},
        {"names": ["Zoey"], "solution": []},
        {"names": ["Zoey", "Mia"], "solution": [True]},
        {"names": ["Zoey", "ZOEY"], "solution": [True, True]},
        {"names": [" "], "solution": [True]},
        {"names": [], "solution": []},
        {"names": ["Zoey"], "solution": ["knight"]},
        {"names": ["Zoey"], "solution": [None]},
        {"names": [7], "solution": [True]},
        {"names": "Zoey", "solution": True},
        {"solution_text_format": ""},
        {"solution_text_format": None},
        {"solution_text_format": "Zoey is not a knight"},
        {"solution_text_format": "Zoey is a knight, Zoey is a knight"},
    ],
)
@pytest.mark.parametrize("completion", ["", f"<answer> {RIGHT} </answer>"])
def test_a_malformed_ground_truth_is_an_error_whatever_the_completion(completion, truth):
    with pytest.raises(ValueError, match="kk_logic ground_truth"):
        score("kk_logic", completion, truth)


names = st.lists(st.sampled_from(["Ava", "Noah", "Mary Ann", "O'Neil", "Anne-Lou", "\u00c9lo\u00efse", "Andy"]),
                 min_size=1, max_size=6, unique=True)


@PROPERTY
@given(st.data(), names)
def test_any_order_numbering_and_separators_are_right_and_any_flipped_role_is_wrong(data, people):
    roles = data.draw(st.lists(st.booleans(), min_size=len(people), max_size=len(people)))
    truth = {"names": people, "solution": roles}

    def text(roles: list[bool]) -> str:
        statements = []
        for name, role in data.draw(st.permutations(list(zip(people, roles, strict=True)))):
            number = data.draw(st.sampled_from(["", "(1) ", "2. ", "33) "]))
            article = data.draw(st.sampled_from(["", "a ", "the "]))
            spelled = data.draw(st.sampled_from([name, name.upper(), name.replace(" ", "\n")]))
            statements.append(f"{number}{spelled} is {article}{'knight' if role else 'knave'}")
        return data.draw(st.sampled_from([" ", "\n", ", ", "; ", ". ", " and ", ", and\n"])).join(statements)

    assert answered(text(roles), truth) == CORRECT
    flipped = data.draw(st.integers(0, len(people) - 1))
    assert answered(text([role ^ (i == flipped) for i, role in enumerate(roles)]), truth) == WRONG_RESULT


PIECES = ["so", "the solution is", ":", "-", r"\text{", "}", "&"]
PIECES += ["Zoey", "Mia", "is", "a", "knight", "knave", "not", "and", "(1)", "2.", ",", "\n", "?", "\u200b", "\ud800"]


@PROPERTY
@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join))
def test_any_answer_text_is_scored_and_never_raises(text):
    assert answered(text) in (UNPARSABLE, WRONG_RESULT)  # Oliver is not among the pieces


@pytest.mark.skipif(not GOLD.exists(), reason=f"{GOLD} is not here")
def test_every_gold_answer_of_the_authors_test_data_is_correct():
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(GOLD / "test.parquet", columns=["data_source", "answer", "reward_model"]).to_pylist()
    scores = [score(row["data_source"], row["answer"], row["reward_model"]["ground_truth"]) for row in rows]
    assert scores == [CORRECT] * 500
