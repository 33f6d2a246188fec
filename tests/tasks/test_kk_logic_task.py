"""Knights and Knaves: what holds for every puzzle and every line of its derivation, the authors' rows, bad settings.

The puzzles are read back from their prompts and solved and replayed by this file's own reading of the English.
"""

import ast
import random
import re
from collections import Counter
from functools import cache
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import score
from rewards.answer import CORRECT
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import kk_logic, kk_solving

AUTHORS_DATA = Path(__file__).resolve().parents[3] / "shared" / "reference_data" / "kk_logic"
ROLES = {"knight": True, "knave": False}
SPOKEN = {"true": True, "false": False}


def make_args(**flags):
    return kk_logic.Args(**({"output_dir": "unused", "train_problems": 20, "test_problems": 10} | flags))


seeds = st.integers(0, 10**6)


# ---- a second reading of the puzzles, from their English alone ----


JOINED = {  # in the order to try: an "if and only if" holds an " and "
    r"if (.+), then (.+)": lambda left, right: right if left else True,
    r"(.+) if and only if (.+)": lambda left, right: left is right,
    r"(.+) and (.+)": lambda left, right: left and right,
    r"(.+) or (.+)": lambda left, right: left or right,
}


@cache
def parsed(clause):
    """(connective's function, left, right) or (name, the role that it says the name has)."""
    for pattern, joined in JOINED.items():
        if parts := re.fullmatch(pattern, clause):
            return joined, parsed(parts[1]), parsed(parts[2])
    name, negated, role = re.fullmatch(r"([A-Z][a-z]+) is (not )?a (knight|knave)", clause).groups()
    return name, ROLES[role] is not bool(negated)


def truth(tree, world):
    if len(tree) == 2:
        return world[tree[0]] is tree[1]
    return tree[0](truth(tree[1], world), truth(tree[2], world))


def possible_values(clause, roles):
    """The truth values that the clause has over all ways to complete `roles`."""
    free = sorted(set(re.findall("[A-Z][a-z]+", clause)) - set(roles))
    completions = (dict(zip(free, world, strict=True)) for world in product((True, False), repeat=len(free)))
    return {truth(parsed(clause), roles | completion) for completion in completions}


def claims_of(prompt):
    """{name: clause} in the order of the prompt."""
    claims = dict(re.findall(r'^([A-Z][a-z]+) says: "(.+)"\.$', prompt, re.MULTILINE))
    count, names = re.search(r"You meet (\d) people: (.+)\.\n", prompt).groups()
    assert list(claims) == names.split(", ") and len(claims) == int(count)
    return claims


def solve(claims):
    """All solutions, {name: is a knight} each."""
    worlds = (dict(zip(claims, world, strict=True)) for world in product((False, True), repeat=len(claims)))
    return [world for world in worlds if all(truth(parsed(claims[name]), world) is world[name] for name in claims)]


def replay(claims, chunks):
    """Checks every chunk up to the answer's lines against the claims; returns {name: is a knight} as derived.

    `live`: the roles found or supposed; `supposed`: the names supposed to be knights, among them; `refuted`: for each
    (name, role) excluded, the roles that were live when it was.
    """
    live, supposed, refuted = {}, [], {}
    [solution] = solve(claims)
    lines = iter(chunks)
    for line in lines:
        if parts := re.fullmatch(r"(Suppose|So) (\w+) is a (knight|knave)\. ", line):
            kind, name, role = parts[1], parts[2], ROLES[parts[3]]
            assert name not in live and role is (kind == "Suppose")
            if kind == "Suppose":
                supposed.append(name)
            else:
                assert (name, True) in refuted
            live = live | {name: role}
            clause, value = re.fullmatch(r'Their claim "(.+)" can be (true|false)\.\n', next(lines)).groups()
            assert clause == claims[name] and SPOKEN[value] is role
            assert all(live[speaker] in possible_values(claims[speaker], live) for speaker in live)
        elif parts := re.fullmatch(
            r'If (\w+) is a (knight|knave), "(.+)" is (true|false), but (\w+) says it as a (knight|knave)\.\n', line
        ):
            name, role, clause, value, speaker, said_as = parts.groups()
            assert name not in live and (name, ROLES[role]) not in refuted
            extended = live | {name: ROLES[role]}
            assert clause == claims[speaker] and extended[speaker] is ROLES[said_as]
            assert possible_values(clause, extended) == {SPOKEN[value]} == {not ROLES[said_as]}
            refuted[name, ROLES[role]] = live
        elif parts := re.fullmatch(r"No role is left for (\w+), so back to (\w+), who cannot be a knight\.\n", line):
            stuck, name = parts.groups()
            assert (stuck, True) in refuted and (stuck, False) in refuted
            assert name == supposed.pop()  # the latest supposition, so that all the others still stand
            live = dict(list(live.items())[: list(live).index(name)])
            refuted = {key: under for key, under in refuted.items() if under.items() <= live.items()}
            refuted[name, True] = live
        else:
            assert line.startswith("Therefore, (1) ") and set(live) == set(claims)
            break
        if all(solution[name] for name in supposed):
            assert live.items() <= solution.items()
            assert all(solution[name] is not role for name, role in refuted)
    assert len(list(lines)) == len(claims) - 1
    return live


def check_row(row):
    claims, ground_truth = claims_of(row["question"]), row["reward_model"]["ground_truth"]
    [solution] = solve(claims)
    assert ground_truth["names"] == list(claims)
    assert ground_truth["solution"] == list(solution.values())
    answer = "\n".join(f"({i}) {name} is a {'knight' if role else 'knave'}"
                       for i, (name, role) in enumerate(solution.items(), 1))
    assert ground_truth["solution_text_format"] == answer
    assert replay(claims, row["hint"]) == solution
    assert "".join(row["hint"]).split("Therefore, ")[1] == answer
    assert row["answer"] == "".join(row["hint"]) + f" </think>\n<answer> {answer} </answer>"
    assert row["prompt"] == [{"content": row["question"], "role": "user"}]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seeds)
def test_every_puzzle_has_one_solution_and_every_line_of_its_derivation_is_true(seed):
    train, test = kk_logic.generate(make_args(seed=seed, min_people=2, train_problems=24, test_problems=12))
    assert (len(train), len(test)) == (24, 12)
    for row in train + test:
        check_row(row)


def test_the_same_holds_for_eight_people():
    train, test = kk_logic.generate(make_args(min_people=8, max_people=8, train_problems=6, test_problems=2))
    for row in train + test:
        check_row(row)


def test_the_statements_column_says_what_the_prompt_says():
    for row in kk_logic.generate(make_args(train_problems=50))[0]:
        claims = claims_of(row["question"])
        for claim, clause in zip(claims_in(row), claims.values(), strict=True):
            for world in product((True, False), repeat=len(claims)):
                assert kk_solving.holds(claim, world) is truth(parsed(clause), dict(zip(claims, world, strict=True)))


# ---- claims ----


TRUTH, LIE = ("telling-truth", 0), ("lying", 1)  # "0 is a knight", "1 is a knave"


@pytest.mark.parametrize(
    ("claim", "worlds"),  # the truth for roles (True, True), (True, False), (False, True), (False, False)
    [
        (TRUTH, (True, True, False, False)),
        (LIE, (False, True, False, True)),
        (("not", LIE), (True, False, True, False)),
        (("and", TRUTH, LIE), (False, True, False, False)),
        (("or", TRUTH, LIE), (True, True, False, True)),
        (("->", TRUTH, LIE), (False, True, True, True)),
        (("<=>", TRUTH, LIE), (False, True, True, False)),
    ],
)
def test_truth_table_of_each_connective(claim, worlds):
    assert tuple(kk_solving.holds(claim, roles) for roles in product((True, False), repeat=2)) == worlds


def test_an_unknown_connective_is_an_error():
    with pytest.raises(ValueError, match="unknown connective"):
        kk_solving.holds(("xor", TRUTH, LIE), (True, True))


def test_solutions_of_puzzles_with_none_two_and_one():
    assert kk_solving.solutions([("lying", 1), TRUTH]) == []  # A: "B is a knave", B: "A is a knight"
    assert kk_solving.solutions([("telling-truth", 1), TRUTH]) == [(True, True), (False, False)]
    assert kk_solving.solutions([("lying", 1), ("and", ("lying", 0), ("lying", 1))]) == [(True, False)]


def test_a_claim_can_be_what_some_role_of_the_unknown_makes_it():
    both = ("and", TRUTH, LIE)
    assert kk_solving.can_be(both, True, {}) and kk_solving.can_be(both, False, {0: True})
    assert not kk_solving.can_be(both, True, {0: False}) and kk_solving.can_be(both, True, {1: False})
    assert not kk_solving.can_be(both, False, {0: True, 1: False})


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_claim_is_trivial_for_its_listeners_or_its_speaker(count):
    rng, worlds = random.Random(0), list(product((True, False), repeat=count))
    kinds = Counter()
    for _ in range(600):
        claim = kk_logic.draw_claim(1, count, rng)
        kinds[claim[0]] += 1
        assert len(kk_solving.mentioned(claim)) == (2 if claim[0] in kk_solving.JOINED else 1)
        assert {kk_solving.holds(claim, world) for world in worlds} == {True, False}
        assert {kk_solving.holds(claim, world) == world[1] for world in worlds} == {True, False}
    assert all(60 <= kinds[kind] <= 140 for kind in ("not", "and", "or", "->", "<=>"))  # of 600, a sixth each: 100


# ---- which puzzles there are ----


def canonical(claims):
    """A puzzle's meaning, the least of all orders of its people: exact, for few people."""
    count = len(claims)
    return min(
        tuple(tuple(kk_solving.holds(claims[order[i]], [world[order.index(person)] for person in range(count)])
                    for world in product((True, False), repeat=count)) for i in range(count))
        for order in permutations(range(count))
    )


def claims_in(row):
    return ast.literal_eval(row["reward_model"]["ground_truth"]["statements"])


@settings(max_examples=4, deadline=None, derandomize=True)
@given(seeds)
def test_no_puzzle_occurs_twice_within_a_split_or_in_both_not_even_in_other_words(seed):
    train, test = kk_logic.generate(make_args(seed=seed, max_people=4, train_problems=160, test_problems=60))
    assert len({canonical(claims_in(row)) for row in train + test}) == 220


def test_the_key_tells_the_puzzles_of_two_people_apart_exactly():
    atoms = [[("telling-truth", person), ("lying", person)] for person in (0, 1)]
    pairs = [*product(*atoms), *product(*reversed(atoms))]
    joined = [(kind, *pair) for kind in kk_solving.JOINED for pair in pairs]
    keys = {}
    for claims in product(atoms[1] + joined, atoms[0] + joined):  # what draw_claim can draw, but for "not"
        found = kk_solving.solutions(claims)
        if len(found) == 1:
            keys.setdefault(canonical(claims), set()).add(kk_solving.identity(claims, found[0]))
    assert all(len(same) == 1 for same in keys.values())
    assert len(set.union(*keys.values())) == len(keys) == 38


def test_the_key_is_the_same_for_other_names_orders_and_words_and_differs_for_another_claim():
    claims = [("->", ("telling-truth", 1), ("lying", 2)), ("not", ("telling-truth", 2)), ("lying", 0)]
    moved = [("lying", 1), ("or", ("lying", 0), ("lying", 2)), ("lying", 0)]  # 0, 1, 2 became 1, 2, 0
    roles, moved_roles = (True, True, False), (False, True, True)
    assert kk_solving.solutions(claims) == [roles] and kk_solving.solutions(moved) == [moved_roles]
    assert kk_solving.identity(claims, roles) == kk_solving.identity(moved, moved_roles)
    other = [("->", ("telling-truth", 1), ("lying", 2)), ("telling-truth", 0), ("lying", 0)]
    assert kk_solving.solutions(other) == [roles]
    assert kk_solving.identity(claims, roles) != kk_solving.identity(other, roles)


def test_sizes_share_a_split_equally_and_are_mixed():
    train, test = kk_logic.generate(make_args(train_problems=52, test_problems=10))
    sizes = [len(claims_in(row)) for row in train]
    assert sorted(Counter(sizes).values()) == [10, 10, 10, 11, 11] and set(sizes) == {3, 4, 5, 6, 7}
    assert sizes != sorted(sizes)
    assert Counter(len(claims_in(row)) for row in test) == dict.fromkeys(range(3, 8), 2)
    assert [row["extra_info"] for row in test] == [{"index": i, "split": "test"} for i in range(10)]


def test_role_vectors_of_a_size_are_equally_frequent_to_one_in_each_split():
    for rows, count in zip(kk_logic.generate(make_args(max_people=3, train_problems=100, test_problems=27)), (100, 27),
                           strict=True):
        vectors = Counter(tuple(row["reward_model"]["ground_truth"]["solution"]) for row in rows)
        assert len(vectors) == 8 and set(vectors.values()) == {count // 8, count // 8 + 1}


def test_names_are_many_and_distinct_within_a_puzzle():
    assert len(set(kk_logic.NAMES)) == len(kk_logic.NAMES) >= 30
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in kk_logic.NAMES)
    train, _ = kk_logic.generate(make_args(train_problems=60))
    assert all(len(set(row["reward_model"]["ground_truth"]["names"])) == len(claims_in(row)) for row in train)
    assert len({row["reward_model"]["ground_truth"]["names"][0] for row in train}) > 20


# ---- words ----


HAND_MADE = kk_logic.Puzzle(
    ("Ada", "Bruno"), (("telling-truth", 1), ("and", ("lying", 0), ("telling-truth", 1))), (False, False)
)


def test_prompt_names_the_problem_and_ends_in_an_open_think():
    text = kk_logic.instruction(HAND_MADE)
    assert text.endswith("\n(1) X is a knight\n(2) Y is a knave\n<think> ")
    assert 'Ada says: "Bruno is a knight".\nBruno says: "Ada is a knave and Bruno is a knight".\n' in text
    for part in ("2 people: Ada, Bruno.", "</think>", "<answer> and </answer>"):
        assert part in text


def test_demonstration_word_for_word():
    assert kk_logic.demonstration(HAND_MADE) == (
        'Suppose Ada is a knight. Their claim "Bruno is a knight" can be true.\n'
        'If Bruno is a knight, "Ada is a knave and Bruno is a knight" is false, but Bruno says it as a knight.\n'
        'If Bruno is a knave, "Bruno is a knight" is false, but Ada says it as a knight.\n'
        "No role is left for Bruno, so back to Ada, who cannot be a knight.\n"
        'So Ada is a knave. Their claim "Bruno is a knight" can be false.\n'
        'If Bruno is a knight, "Bruno is a knight" is true, but Ada says it as a knave.\n'
        'So Bruno is a knave. Their claim "Ada is a knave and Bruno is a knight" can be false.\n'
        "Therefore, (1) Ada is a knave\n(2) Bruno is a knave </think>\n"
        "<answer> (1) Ada is a knave\n(2) Bruno is a knave </answer>"
    )


def test_claims_without_a_solution_have_no_derivation():
    with pytest.raises(ValueError, match="no assignment of roles fits"):
        kk_solving.derive([("lying", 1), TRUTH], ["Ada", "Bruno"])


# ---- files and rows ----


def test_same_seed_same_bytes_and_another_seed_other_problems(tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        kk_logic.build(tmp_path / folder, train_problems=30, test_problems=10, seed=seed)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["test.parquet", "train.parquet"]
    for name in ("train.parquet", "test.parquet"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b != c


def test_test_split_does_not_depend_on_the_number_of_train_problems():
    assert kk_logic.generate(make_args(train_problems=5))[1] == kk_logic.generate(make_args(train_problems=50))[1]


def test_built_rows_load_and_their_answers_are_correct(tmp_path):
    kk_logic.build(tmp_path, train_problems=60, test_problems=20, min_people=3, max_people=8)
    for split, count in (("train", 60), ("test", 20)):
        problems = load_problems(str(tmp_path), split)
        assert [score("kk_logic", problem.demonstration, problem.ground_truth) for problem in problems] == (
            [CORRECT] * count
        )


needs_authors_data = pytest.mark.skipif(not AUTHORS_DATA.is_dir(), reason=f"{AUTHORS_DATA} is not here")


@needs_authors_data
def test_columns_are_those_of_the_authors_files(tmp_path):
    kk_logic.build(tmp_path, train_problems=5, test_problems=5)
    for name in ("train.parquet", "test.parquet"):
        ours, theirs = (pq.read_table(folder / name).schema for folder in (tmp_path, AUTHORS_DATA))
        assert ours.remove_metadata() == theirs.remove_metadata()


@needs_authors_data
def test_the_solver_reads_the_authors_statements_as_they_do():
    for row in pq.read_table(AUTHORS_DATA / "test.parquet").to_pylist():
        assert kk_solving.solutions(claims_in(row)) == [tuple(row["reward_model"]["ground_truth"]["solution"])]


@needs_authors_data
@pytest.mark.parametrize(("split", "count"), [("train", 4_500), ("test", 500)])
def test_every_row_of_the_authors_loads_unchanged(split, count):
    problems = load_problems(str(AUTHORS_DATA), split)
    rows = pq.read_table(AUTHORS_DATA / f"{split}.parquet").to_pylist()
    assert len(problems) == len(rows) == count
    for problem, row in zip(problems, rows, strict=True):
        assert problem.prompt == row["prompt"][0]["content"]
        assert (list(problem.solution), problem.demonstration) == (row["hint"], row["answer"])
        assert problem.ground_truth == row["reward_model"]["ground_truth"]


# ---- constant answer patterns ----


def problem_of(*roles, **truth):
    return SimpleNamespace(ground_truth={"names": list("ABC"[: len(roles)]), "solution": list(roles)} | truth)


def test_best_constant_pattern_of_a_hand_made_set_is_chosen_per_number_of_people():
    problems = [problem_of(False, True, True), problem_of(True, False), problem_of(False, False),
                problem_of(True, False), problem_of(False, True, True)]
    assert kk_logic.best_constant_pattern(problems) == ("knight, knave; knave, knight, knight", 0.8)


def test_best_constant_pattern_reads_the_text_where_there_is_no_solution():
    text = "(1) A is a knight\n(2) B is a knave"
    lacking = SimpleNamespace(ground_truth={"names": ["A", "B"], "solution_text_format": text})
    none = problem_of(False, True, solution=None, solution_text_format=text)
    assert kk_logic.best_constant_pattern([lacking, none, problem_of(False, True)]) == ("knight, knave", 2 / 3)


def test_no_constant_pattern_is_better_than_one_in_two_to_the_people():
    _, test = kk_logic.generate(make_args(max_people=4, train_problems=2, test_problems=64))
    problems = [SimpleNamespace(ground_truth=row["reward_model"]["ground_truth"]) for row in test]
    assert kk_logic.best_constant_pattern(problems)[1] == (4 + 2) / 64  # 32 of 8 role vectors, 32 of 16


# ---- bad settings ----


@pytest.mark.parametrize(
    ("flag", "value"),
    [("min_people", 1), ("max_people", 2), ("max_people", 9), ("train_problems", 0), ("test_problems", -1)],
)
def test_bad_value_is_named_with_its_flag(flag, value):
    with pytest.raises(BadInput, match=re.escape(f"flag --{flag} {value}: must")):
        kk_logic.generate(make_args(**{flag: value}))


def test_a_setting_with_too_few_puzzles_ends_in_an_error(monkeypatch):
    monkeypatch.setattr(kk_logic, "MAX_FRUITLESS_DRAWS", 2_000)
    with pytest.raises(BadInput, match=r"--train_problems 100: only \d+ of 100 .* 2 people .*--min_people 2\b"):
        kk_logic.generate(make_args(min_people=2, max_people=2, test_problems=1, train_problems=100))
