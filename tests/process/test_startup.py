"""Stop signals while a command still imports: one line, its status, no traceback.

The moment is the import of a named module, so nothing here waits for a time to pass.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import environment

from megaladder.cli import VERBS
from megaladder.console import imports
from megaladder.startup import RESUMING_VERBS

# the first module that Python loads by itself: from then on it watches what is imported
WATCHER = """
import os, signal, sys

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MOMENT"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.meta_path.insert(0, Watcher())
"""
# what an installer writes into bin/
SCRIPT = "import sys\nfrom megaladder.cli import main\nsys.exit(main())\n"
BEFORE = "before it began; start the same command again"
LATER = "; what was finished before is on disk; start the same command again"


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "sitecustomize.py").write_text(WATCHER)
    (folder / "megaladder").write_text(SCRIPT)
    return folder


def interrupted_at(
    folder: Path, moment: str, number: int, command: list[str]
) -> subprocess.CompletedProcess[str]:
    env = environment()
    env |= {"MOMENT": moment, "SIGNAL": str(int(number)), "MEGALADDER_QUIET": "1"}
    env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("moment", "number", "verb", "status", "said"),
    [
        ("megaladder.cli", signal.SIGINT, "sft run.yaml", 3, f"stopped by SIGINT {BEFORE}"),
        ("megaladder.cli", signal.SIGTERM, "--quiet sft", 3, f"stopped by SIGTERM {BEFORE}"),
        ("difflib", signal.SIGUSR1, "data sample", 3, f"stopped by SIGUSR1 {BEFORE}"),
        ("difflib", signal.SIGINT, "data stats", 130, "interrupted"),
        ("pydantic", signal.SIGINT, "grpo", 3, f"stopped by SIGINT{LATER}"),
        ("pydantic", signal.SIGINT, "plan", 130, "interrupted"),
    ],
)
def test_an_import_is_interrupted_with_one_line(
    watched, moment, number, verb, status, said
) -> None:
    command = ["-m", "megaladder", *verb.split()]
    done = interrupted_at(watched, moment, number, command)
    assert (done.returncode, done.stderr) == (status, f"megaladder: {said}\n")


def test_the_installed_script_is_interrupted_like_the_module(watched) -> None:
    command = [str(watched / "megaladder"), "eval"]
    done = interrupted_at(watched, "megaladder.cli", signal.SIGINT, command)
    assert (done.returncode, done.stderr) == (3, f"megaladder: stopped by SIGINT {BEFORE}\n")


def test_a_program_that_imports_the_package_keeps_its_interrupt(watched) -> None:
    program = "try:\n import megaladder.cli\nexcept KeyboardInterrupt:\n print('its own')"
    done = interrupted_at(watched, "difflib", signal.SIGINT, ["-c", program, "megaladder"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "its own\n", "")


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_of_ascii_reads_paths_and_prints_what_it_can(tmp_path) -> None:
    """Read byte by byte, the two bytes of the ä would be two question marks."""
    (tmp_path / "läuf.yaml").write_text("seed: {", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "megaladder", "--quiet", "check", "läuf.yaml"],
        env=environment() | ASCII,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("megaladder: l?uf.yaml:1: "), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["-X", "utf8=0"]])
def test_what_a_locale_of_ascii_starts_is_in_utf8(watched, options) -> None:
    """Libraries read their own files so: torch cannot be imported otherwise."""
    look = (
        "import os, sys; print(sys.flags.utf8_mode, os.environ['PYTHONUTF8'], sys.stdout.encoding)"
    )
    restarted = f"from megaladder import startup; startup.restart_in_utf8(); {look}"
    done = subprocess.run(
        [sys.executable, *options, "-c", restarted],
        env=environment() | ASCII,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "1 1 ascii\n", done.stderr


def test_collections_wait_for_imports_and_a_callers_own_choice_stays() -> None:
    assert gc.isenabled()
    imports.begin()
    assert not gc.isenabled()
    imports.done()
    assert gc.isenabled()
    gc.disable()
    try:
        imports.done()
        assert not gc.isenabled()
        imports.begin()
        imports.done()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_the_verbs_that_go_on_are_verbs() -> None:
    assert set(RESUMING_VERBS) <= {verb.name for verb in VERBS}
