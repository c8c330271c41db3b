"""What the tests print while they run: a line a file with its share, failures by name at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CONFTEST = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from progress import Progress, place

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))

def pytest_collection_modifyitems(items):
    items.sort(key=place)
"""
GOOD = "def test_one(): pass\ndef test_two(): pass\n"
BAD = """
import pytest
def test_wrong(): assert 1 == 2
@pytest.fixture
def broken(): raise ValueError
def test_not_begun(broken): pass
@pytest.mark.skip
def test_left_out(): pass
@pytest.mark.xfail
def test_known(): assert False
"""


@pytest.mark.parametrize("processes", [[], ["-n", "2", "--dist", "loadfile"]], ids=["one", "two"])
def test_lines(tmp_path, processes) -> None:
    (tmp_path / "train").mkdir()
    files = {"conftest.py": CONFTEST, "test_good.py": GOOD, "train/test_bad.py": BAD}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nconsole_output_style = classic\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stdout.split("= ERRORS =")[0].splitlines() if "test_" in line]
    assert {re.sub(r"[\d.]+ s$|^\[.*\] ", "", line) for line in lines} == {
        "FAILED train/test_bad.py::test_wrong (call)",
        "FAILED train/test_bad.py::test_not_begun (setup)",
        "train/test_bad.py  2 failed, 2 skipped in ",
        "test_good.py  2 passed in ",
    }
    shares = [line[:6] for line in lines if line.startswith("[")]
    assert shares[-1] == "[100%]" and shares[0] in ("[ 66%]", "[ 33%]")
    if not processes:
        assert "train" in lines[0]  # the longest first
    # the summary names them as ever
    assert "\nFAILED train/test_bad.py::test_wrong - assert 1 == 2" in done.stdout
    assert "\nERROR train/test_bad.py::test_not_begun - ValueError" in done.stdout
    assert "1 failed, 2 passed, 1 skipped, 1 xfailed, 1 error in" in done.stdout
