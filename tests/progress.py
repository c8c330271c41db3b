"""What `make test` prints while it runs: a line a file when all of its tests are done, and the full
name of a test that fails as soon as it does.

    [ 37%] tests/train/test_profile.py  4 passed, 1 skipped in 3.1 s

With -vv pytest's own line a test is printed instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

# Files of these folders take longest: begun first, so that two processes end together.
LONGEST_FIRST = (
    "config",
    "faults",
    "train",
    "dryrun",
    "checkpoints_conv",
    "model",
    "rollout",
    "slurm",
)


class Progress:
    """A pytest plugin of the process that prints."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._left: Counter[str] = Counter()
        self._outcomes: dict[str, Counter[str]] = {}
        self._seconds: Counter[str] = Counter()
        self._total = self._done = 0

    def _expect(self, ids: Iterable[str]) -> None:
        """Every process has the same tests: counted once."""
        if not self._total:
            self._left.update(_file(name) for name in ids)
            self._total = self._left.total()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._expect(ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Counted and named in the summary as ever, but no letter."""
        if not isinstance(report, pytest.TestReport) or (report.when != "call" and report.passed):
            return None
        if hasattr(report, "wasxfail"):
            return ("xfailed", "", "XFAIL") if report.skipped else ("xpassed", "", "XPASS")
        if report.failed and report.when != "call":
            return "error", "", "ERROR"
        return report.outcome, "", report.outcome.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = _file(report.nodeid)
        self._seconds[file] += report.duration
        outcomes = self._outcomes.setdefault(file, Counter())
        if report.when == "call" or not report.passed:
            outcomes[report.outcome] += 1
        if report.failed:
            self._print(f"FAILED {report.nodeid} ({report.when})", red=True)
        if report.when == "teardown":
            self._left[file] -= 1
            self._done += 1
            if not self._left[file]:
                told = ", ".join(f"{outcomes[how]} {how}" for how in sorted(outcomes))
                share = 100 * self._done // self._total
                self._print(f"[{share:3}%] {file}  {told} in {self._seconds[file]:.1f} s")

    def _print(self, line: str, **markup: bool) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(line, **markup)


def _file(name: str) -> str:
    return name.split("::", 1)[0]


def place(item: pytest.Item) -> int:
    """Sorts tests: the longest folders first, the others as they were."""
    folders = _file(item.nodeid).split("/")
    return min((i for i, name in enumerate(LONGEST_FIRST) if name in folders), default=99)
