"""The structure of the project, counted: `python -m tests.structure`.

    files, import pairs   Python files of ours with code, and pairs of which one imports the other
    circles               sets of files that import each other, directly or not
    longest chain         files in a row of which each imports the next
    lines                 of a file and of a function, median and largest; `main` to the loop of each training script
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from utils import ROOT

FOLDERS = ("rewards", "utils", "inference", "training", "launch_scripts")


def modules() -> dict[str, Path]:
    """{dotted name: file} of all files that hold code."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.stat().st_size:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules among `known` that a file imports, wherever in it. A package counts where something in it is meant
    that is no module of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module


def import_graph() -> dict[str, set[str]]:
    """{module: the modules of ours that it imports}."""
    known = modules()
    return {name: set(imported(ast.parse(path.read_text()), known)) - {name} for name, path in known.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other."""
    reach = {name: reachable(graph, name) for name in graph}
    sets = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted(sorted(circle) for circle in sets)


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found, todo = set(), list(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph[name]
    return found


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest row of modules of which each imports the next; there must be no circle."""
    best: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in best:
            best[name] = [name, *max((chain(other) for other in sorted(graph[name])), key=len, default=[])]
        return best[name]

    return max((chain(name) for name in sorted(graph)), key=len)


def main() -> None:
    graph, files = import_graph(), modules()
    found = circles(graph)
    print(f"files {len(graph)}, import pairs {sum(map(len, graph.values()))}, circles {len(found)} {found or ''}")
    if not found:
        row = longest_chain(graph)
        print(f"longest chain {len(row)}: {' > '.join(row)}")
    engine = sorted(name for name, others in graph.items()
                    if name.startswith("utils.") and any(other.startswith("inference.") for other in others))
    print(f"of utils, these import inference: {', '.join(engine)}")
    lengths = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    long = sorted((count, name) for name, count in lengths.items() if count > 250)
    print(f"lines of a file: median {median(lengths.values()):g}; over 250: "
          + (", ".join(f"{name} {count}" for count, name in reversed(long)) or "none"))
    functions = {f"{name}.{node.name}": node.end_lineno - node.lineno + 1 for name, path in files.items()
                 for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    largest = max(functions, key=functions.get)
    print(f"lines of a function: median {median(functions.values()):g}; largest {functions[largest]}, {largest}")
    for path in sorted((ROOT / "training").glob("*.py")):
        lines = path.read_text().splitlines()
        loops = [number for number, line in enumerate(lines) if line.startswith("    for num_done in ")]
        if loops:
            print(f"{path.name}: main to loop {loops[0] - lines.index('def main(args: Args) -> None:') - 1} lines")


if __name__ == "__main__":
    main()
