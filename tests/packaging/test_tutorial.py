"""The tutorial's commands are taken from the page and run, in its CPU variant."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megaladder.cli.dispatch import config_class_of, find_verb, resolve_words

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```bash title="(CPU|GPU|both)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def commands(variant: str) -> str:
    """The blocks that a reader of this variant types, in the page's order."""
    found = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return "\n".join(text for title, text in found if title in (variant, "both"))


def test_every_command_belongs_to_a_variant() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == text.count("```bash") >= 6


def test_both_variants_say_what_the_common_blocks_read() -> None:
    common = set(re.findall(r"\$\{?([A-Z_]+)", commands("none")))
    for variant in ("CPU", "GPU"):
        set_here = set(re.findall(r"\b([A-Z_]+)=", commands(variant)))
        assert common <= set_here


SAY_INSTEAD = """
hf() { :; }
head() { :; }
python() { :; }
ls() { echo runs/some/hf/step_60; }
megaladder() { printf 'CALL'; printf '\\t%s' "$@"; echo; }
"""


@pytest.mark.parametrize("variant", ["CPU", "GPU"])
def test_every_command_of_a_variant_is_one_that_the_verb_takes(
    variant, tmp_path, monkeypatch
) -> None:
    """Keys, values and files of the page, resolved as the command line does; nothing starts."""
    script = SAY_INSTEAD + commands(variant) + "\nenv -0 > environment"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for pair in (tmp_path / "environment").read_text().split("\0"):
        name, _, value = pair.partition("=")
        if name in ("MODEL", "TRAIN", "PROBLEMS"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    calls = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("CALL")]
    resolved = []
    for words in calls:
        verb, rest = find_verb(words)
        if verb.name == "data make":
            continue  # run by the test below
        resolve_words(verb, config_class_of(verb, rest), rest)
        resolved.append(verb.name)
    assert [resolved.count(name) for name in ("sft", "grpo", "eval", "report")] == [1, 1, 3, 1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_cpu_variant_runs_as_it_stands(tmp_path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    starts = {"megaladder": "-m megaladder", "python": ""}
    for name, words in starts.items():
        program = bin_folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands("CPU")],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ended = {
        name: json.loads((work / "runs" / name / "last_word.json").read_text())["reason"]
        for name in ("sft", "grpo")
    }
    assert ended == {"sft": "finished", "grpo": "finished"}
    for name in ("base", "sft", "grpo"):
        summary = json.loads((work / "runs" / "eval" / name / "summary.json").read_text())
        assert summary["benchmarks"]["arithmetic"]["num_problems"] == 32
    assert "arithmetic" in (work / "report.html").read_text(encoding="utf-8")
