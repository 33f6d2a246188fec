"""Who may import whom: a file imports from its own layer or lower, so it can be understood without what is above."""

import ast
import re

import pytest

from tests import structure
from tests.structure import circles, import_graph, longest_chain, modules
from utils import ROOT

LAYERS = (  # the first prefix that fits a module says its layer
    ("launch_scripts.", 5), ("training.", 5), ("inference.generate", 5),
    ("utils.setup.", 4), ("utils.report.", 4), ("utils.export", 4),
    ("inference.", 3),
    ("utils.run.", 0), ("utils.types", 0), ("utils.seeding", 0), ("utils.losses", 0), ("utils.cpu_linear", 0),
    ("utils.cpu_kernels", 0),
    ("utils.tasks", 1),
    ("utils.", 2),
    ("rewards", 0), ("utils", 0),
)
ONLY_IN = {  # package -> who imports it
    "deepspeed": {"utils.actor", "utils.reshape", "utils.state_copies", "utils.run.processes",
                  "inference.deepspeed_engine"},
    "vllm": {"inference.vllm_engine"},
    "matplotlib": {"utils.report.curves", "utils.report.comparison", "utils.report.depths", "utils.report.figures",
                   "utils.report.over_models"},
}


def layer(name: str) -> int:
    return next(number for prefix, number in LAYERS if name.startswith(prefix))


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the order. A script is imported by no file of ours."""
    return [f"{name} imports {other}" for name, others in sorted(graph.items()) for other in sorted(others)
            if layer(other) > layer(name) or layer(other) == 5]


def packages(name: str) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_files_import_downwards():
    assert upward(import_graph()) == []


def test_no_file_imports_itself_by_way_of_others():
    assert circles(import_graph()) == []
    assert len(longest_chain(import_graph())) <= 11


def test_rewards_are_a_package_that_anyone_can_take_along():
    ours = {name: packages(name) & {"utils", "inference", "training"} for name in modules() if layer(name) == 0
            and name.startswith("rewards")}
    assert ours and not any(ours.values())


def test_of_utils_only_setup_knows_engines():
    assert {name for name, others in import_graph().items() if name.startswith("utils.")
            and any(other.startswith("inference.") for other in others)} == {"utils.setup.inputs",
                                                                             "utils.setup.memory_terms"}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_heavy_package_is_imported_in_few_places(package):
    assert {name for name in modules() if package in packages(name)} == ONLY_IN[package]


def test_reports_need_no_torch():
    assert not [name for name in modules() if name.startswith("utils.report.") and "torch" in packages(name)]


def test_nothing_is_compiled_since_every_start_would_wait_for_it():
    """For PyTorch's compiler; test_start.py: no library loads it either."""
    assert not [name for name, path in modules().items() if re.search(r"torch\.compile|torch\._dynamo|TORCHDYNAMO",
                                                                      path.read_text())]


# ----- the test of the test -----


@pytest.mark.parametrize(("file", "line", "broken"), [
    ("utils/losses.py", "from utils.packing import pack", "utils.losses imports utils.packing"),
    ("utils/data.py", "def f():\n    from inference import sampling", "utils.data imports inference.sampling"),
    ("utils/evaluation.py", "import utils.setup.plan", "utils.evaluation imports utils.setup.plan"),
    ("utils/setup/plan.py", "from training import uft", "utils.setup.plan imports training.uft"),
    ("training/rft.py", "from training.uft import draw_hint", "training.rft imports training.uft"),
])
def test_a_planted_import_is_found(tmp_path, monkeypatch, file, line, broken):
    planted = {}
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n{line}\n" if str(path.relative_to(ROOT)) == file else ""))
        planted[name] = copy
    monkeypatch.setattr(structure, "modules", lambda: planted)
    assert broken in upward(import_graph())


def test_a_planted_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [["b", "c"]]
