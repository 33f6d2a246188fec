"""The search tree as text: its rule, its splits, its verifier, and the texts of its base model."""

from collections import Counter
from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import score
from utils.data import load_problems
from utils.run.errors import BadInput
from utils.tasks import tree
from utils.tasks.tiny_texts import HABIT, tree_texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree") / "data"
    tree.build(folder, depth=4, branching=4, train_problems=128, test_problems=64)
    return folder


# ---- the rule ----


def test_a_walk_by_hand():
    rule = {("A", "1"): "B", ("A", "2"): "A", ("B", "1"): "A", ("B", "2"): "B"}
    assert tree.walk("1121", rule) == "BAAB"
    assert tree.chunks("12", "BB") == ["1 -> B\n", "2 -> B"]
    assert tree.demonstration("12", "BB") == "1 -> B\n2 -> B </think>\n<answer> BB </answer>"


@pytest.mark.parametrize("branching", [2, 3, 4, 8])
def test_the_turns_of_a_state_lead_to_all_states_so_all_paths_are_equally_likely(branching):
    setting = tree.Setting(branching=branching, depth=3)
    rule = tree.hidden_rule(setting)
    states, turns = tree.STATES[:branching], tree.TURNS[:branching]
    for state in states:
        assert sorted(rule[state, turn] for turn in turns) == list(states)
    paths = Counter(tree.walk(walk, rule) for walk in product(turns, repeat=3))
    assert len(paths) == branching**3 and set(paths.values()) == {1}


def test_the_rule_depends_on_its_seed_and_is_not_the_same_for_all_states():
    rules = [tree.hidden_rule(tree.Setting(rule_seed=seed)) for seed in range(5)]
    assert len({tuple(sorted(rule.items())) for rule in rules}) > 3
    assert any(rule["A", turn] != rule["B", turn] for rule in rules for turn in "1234")


# ---- the data ----


def test_rows_are_solved_right_and_splits_share_no_walk(data):
    splits = [load_problems(str(data), split, needs=("hint", "answer")) for split in ("train", "test")]
    assert list(map(len, splits)) == [128, 64]
    prompts = [problem.prompt for problems in splits for problem in problems]
    assert len(set(prompts)) == len(prompts)
    rule = tree.hidden_rule(tree.load_setting(data))
    for problem in splits[0] + splits[1]:
        turns = problem.prompt.split("Turns: ")[1].split("\n")[0]
        assert problem.ground_truth == {"path": tree.walk(turns, rule)}
        assert len(problem.solution) == 4 and problem.demonstration.startswith("".join(problem.solution) + " </think>")
        assert problem.prompt.endswith("<think> ")
        assert score("tree", problem.demonstration, problem.ground_truth).reward == 1.0


def test_same_flags_same_bytes_and_another_seed_other_walks(data, tmp_path):
    flags = {"depth": 4, "branching": 4, "train_problems": 128, "test_problems": 64}
    tree.build(tmp_path / "again", **flags)
    tree.build(tmp_path / "other", seed=1, **flags)
    for split in ("train", "test"):
        bytes_of = [(folder / f"{split}.parquet").read_bytes()
                    for folder in (data, tmp_path / "again", tmp_path / "other")]
        assert bytes_of[0] == bytes_of[1] != bytes_of[2]


@pytest.mark.parametrize(("flags", "rule"), [
    ({"depth": 0}, "flag --depth 0: must lie in 1..64"),
    ({"branching": 1}, "flag --branching 1: must lie in 2..8"),
    ({"branching": 9}, "flag --branching 9: must lie in 2..8"),
    ({"test_problems": 0}, "flag --test_problems 0: must be at least 1"),
    ({"depth": 2, "train_problems": 13, "test_problems": 4}, "flag --train_problems 13: and --test_problems 4 are more "
     "than the 16 walks of --branching 4 and --depth 2"),
])
def test_bad_flags_are_named(tmp_path, flags, rule):
    with pytest.raises(BadInput) as error:
        tree.build(tmp_path / "data", **flags)
    assert rule in str(error.value)
    assert not (tmp_path / "data").exists()


def test_all_walks_may_be_used(tmp_path):
    tree.build(tmp_path, depth=2, branching=4, train_problems=12, test_problems=4)
    text, accuracy = tree.best_constant_pattern(load_problems(str(tmp_path), "test"))
    assert accuracy == 0.25 and len(text) == 2  # four walks, four paths


def test_a_folder_of_another_task_has_no_tree_setting(countdown_data):
    with pytest.raises(BadInput, match="must have been written by utils.tasks.tree"):
        tree.load_setting(countdown_data)


# ---- the verifier ----


@pytest.mark.parametrize(("completion", "reward", "reason"), [
    ("1 -> B </think>\n<answer> BDAC </answer>", 1.0, "correct"),
    ("<answer>BDAC</answer>\n\n", 1.0, "correct"),
    ("<answer> B D\nA C </answer>", 1.0, "correct"),
    ("<answer> AAAA </answer> <answer> BDAC </answer>", 1.0, "correct"),  # the last one counts
    ("<answer> BDAC </answer> <answer> AAAA </answer>", 0.1, "wrong result"),
    ("<answer> BDAA </answer>", 0.1, "wrong result"),
    ("<answer> BDACBDAC </answer>", 0.1, "wrong result"),
    ("<answer> BDA </answer>", 0.1, "wrong result"),
    ("<answer> bdac </answer>", 0.1, "wrong result"),
    ("<answer> BDAC, AAAA </answer>", 0.1, "wrong result"),
    ("<answer>  </answer>", 0.1, "wrong result"),
    ("BDAC", 0.0, "no answer"),
    ("<answer> BDAC", 0.0, "no answer"),
])
def test_right_only_as_a_whole(completion, reward, reason):
    judged = score("tree", completion, {"path": "BDAC"})
    assert (judged.reward, judged.correct, judged.reason) == (reward, reward == 1.0, reason)


@pytest.mark.parametrize("ground_truth", [{}, {"path": ""}, {"path": " "}, {"path": 5}, {"path": None}])
def test_a_ground_truth_without_a_path_is_refused(ground_truth):
    with pytest.raises(ValueError, match="path must be a text that is not empty"):
        score("tree", "", ground_truth)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("ABCD </answer>", max_size=60))
def test_no_completion_raises_and_only_the_path_is_right(text):
    judged = score("tree", f"<answer>{text}</answer>", {"path": "ABCD"})
    inner = text.replace("</answer>", "\0").split("\0")[0] if "</answer>" in text else text
    if judged.correct:
        assert "".join(inner.split()).endswith("ABCD")


# ---- the base's texts ----


def test_the_base_has_a_wrong_habit_and_is_right_as_often_as_a_guess(data):
    """Each step: right 1/4, the habit's state .8 of the rest, the other two .2 of the rest together."""
    rule, places = tree.hidden_rule(tree.load_setting(data)), Counter()
    for prompt, completion in islice(tree_texts(data, [], 0.0, seed=0), 3000):
        turns, path = prompt.split("Turns: ")[1].split("\n")[0], completion.split("<answer> ")[1][:4]
        assert completion == tree.demonstration(turns, path) and prompt == tree.instruction(turns)
        for state, turn, reached in zip("A" + path, turns, path, strict=False):
            places[(tree.STATES.index(reached) - tree.STATES.index(rule[state, turn])) % 4] += 1
    shares = [places[off] / places.total() for off in range(4)]
    wrong = 0.75
    for share, expected in zip(shares, (0.25, HABIT * wrong, wrong * 0.1, wrong * 0.1), strict=True):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / 12_000) ** 0.5


def test_solved_texts_follow_the_rule_and_none_is_a_test_walk(data):
    test_problems, rule = load_problems(str(data), "test"), tree.hidden_rule(tree.load_setting(data))
    texts = list(islice(tree_texts(data, test_problems, 1.0, seed=0), 1000))
    assert all(f"<answer> {tree.walk(prompt.split('Turns: ')[1].split(chr(10))[0], rule)} </answer>" in completion
               for prompt, completion in texts)
    assert {prompt for prompt, _ in texts} & {problem.prompt for problem in test_problems} == set()
    assert len({prompt for prompt, _ in texts}) > 150  # of the 192 others
