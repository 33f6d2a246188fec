"""The tests that are marked gpu."""

from collections.abc import Iterator

import pytest

from tests.gpu.checks import Box, Figure, at_least, check, equal
from utils import ROOT


class Seen:
    """A plugin of pytest that notes what it collects, what passes and what fails."""

    def __init__(self) -> None:
        self.collected: list[str] = []
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = [item.nodeid for item in session.items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # in its set-up too
            self.failed.append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)


@check(4, "pytest_gpu", seconds=40, cpu="quick")
def pytest_gpu(box: Box) -> Iterator[Figure]:
    """`pytest -m gpu`: captured steps equal uncaptured ones, a GPU says what a CPU says, a replica that slept."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    seen, words = Seen(), ["-m", "gpu", "-q", "-p", "no:cacheprovider"]
    status = pytest.main([*words, *([] if box.has_gpu else ["--collect-only"]), *files], plugins=[seen])
    yield at_least("tests", len(seen.collected), 1)
    yield equal("pytest's exit status", int(status), 0)
    if box.has_gpu:
        yield equal("tests that passed", len(seen.passed), len(seen.collected))
        yield equal("tests that failed", ", ".join(seen.failed), "")
