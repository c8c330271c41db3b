"""The tutorial's commands are taken from the page and run, in its CPU variant."""

from __future__ import annotations

import json
import re

import pytest
from page_commands import ROOT, resolved_verbs, run_commands

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


@pytest.mark.parametrize("variant", ["CPU", "GPU"])
def test_every_command_of_a_variant_is_one_that_the_verb_takes(
    variant, tmp_path, monkeypatch
) -> None:
    """Keys, values and files of the page, resolved as the command line does; nothing starts."""
    resolved = resolved_verbs(commands(variant), tmp_path, monkeypatch)
    assert [resolved.count(name) for name in ("sft", "grpo", "eval", "report")] == [1, 1, 3, 1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_cpu_variant_runs_as_it_stands(tmp_path) -> None:
    run_commands(commands("CPU"), tmp_path)
    work = tmp_path / "work"
    ended = {
        name: json.loads((work / "runs" / name / "last_word.json").read_text())["reason"]
        for name in ("sft", "grpo")
    }
    assert ended == {"sft": "finished", "grpo": "finished"}
    for name in ("base", "sft", "grpo"):
        summary = json.loads((work / "runs" / "eval" / name / "summary.json").read_text())
        assert summary["benchmarks"]["arithmetic"]["num_problems"] == 32
    assert "arithmetic" in (work / "report.html").read_text(encoding="utf-8")
