"""Commands that a page tells to type: resolved as the command line does, or run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megaladder.cli.dispatch import config_class_of, find_verb, resolve_words

ROOT = Path(__file__).resolve().parents[1]
# what it makes is looked at where the script is run
NOT_RESOLVED = ("data make",)
SAY_INSTEAD = """
hf() { :; }
head() { :; }
python() { :; }
ls() { echo runs/some/hf/step_60; }
megaladder() { printf 'CALL'; printf '\\t%s' "$@"; echo; }
"""


def resolved_verbs(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs of a script in its order, with keys, values and files that each takes.

    Nothing starts. `folder` becomes the working folder. What the script exports that files read
    (`MODEL`, `TRAIN`, `PROBLEMS`) is set. Raises ConfigError for what a verb refuses."""
    script = SAY_INSTEAD + script + "\nenv -0 > environment"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    for pair in (folder / "environment").read_text().split("\0"):
        name, _, value = pair.partition("=")
        if name in ("MODEL", "TRAIN", "PROBLEMS"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    calls = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("CALL")]
    resolved = []
    for words in calls:
        verb, rest = find_verb(words)
        if verb.name not in NOT_RESOLVED:
            resolve_words(verb, config_class_of(verb, rest), rest)
            resolved.append(verb.name)
    return resolved


def run_commands(script: str, folder: Path, typed: str = "") -> str:
    """Runs a script in folder/work as it stands; its standard output.

    typed: what its commands read. A command that fails ends the script and the test."""
    bin_folder, work = folder / "bin", folder / "work"
    bin_folder.mkdir()
    work.mkdir(exist_ok=True)
    for name, words in {"megaladder": "-m megaladder", "python": ""}.items():
        program = bin_folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        input=typed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
