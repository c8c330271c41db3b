"""Every command that a text of ours tells to type is one that its verb takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from megaladder.cli.dispatch import config_class_of, find_verb, resolve_words
from megaladder.cli.table import VERBS
from megaladder.cli.wanted import WANTED
from megaladder.errors import ConfigError

ROOT = Path(__file__).parents[2]
GLOBAL = {"help", "version", "print-config", "quiet"}
# one command in prose or in a fix: up to what cannot belong to it
COMMAND = re.compile(r"megaladder ([a-z][^,;()`|#<>]*)")


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
SHELL = re.compile(r"```(?:bash|sh|console)[^\n]*\n(.*?)```", re.DOTALL)
# one that is typed has more than a verb: `megaladder sft` alone names it
IN_PROSE = re.compile(r"`megaladder ([a-z][^`]*?)`")
TYPED = re.compile(r"(?:^|[\s;&|(])megaladder ([a-z][^;&|>]*)")


def commands_in_pages() -> Iterator[tuple[str, str]]:
    """(where, command) of every page: its shell blocks, and what its sentences tell to type."""
    for page in PAGES:
        text = page.read_text("utf-8")
        blocks = "\n".join(SHELL.findall(text)).replace("\\\n", " ")
        for line in blocks.splitlines():
            for command in TYPED.findall(line.partition(" #")[0]):
                yield page.name, command.strip()
        for command in IN_PROSE.findall(SHELL.sub("", text)):
            yield page.name, command.partition(" | ")[0].partition(" > ")[0].replace("\n", " ")


def all_commands() -> list[tuple[str, str]]:
    wanted = [
        (f"wanted {word}", found) for word, fix in WANTED.items() for found in COMMAND.findall(fix)
    ]
    examples = [(f"example of {v.name}", f"{v.name} {v.example}") for v in VERBS if v.example]
    return [*dict.fromkeys([*wanted, *examples, *commands_in_pages()])]


@pytest.mark.parametrize(("where", "command"), all_commands())
def test_a_command_that_is_told_is_one_that_its_verb_takes(
    where: str, command: str, tmp_path, monkeypatch, capsys
) -> None:
    """Verb, keys, values, and nothing left out that it needs. Files and models are not there."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.rpartition(" or ")[0] or command)
    if words[0].startswith("-") or "VERB" in words:
        return
    verb, rest = find_verb(words)
    rest = ["1" if word == "N" else word for word in rest if word.strip("-") not in GLOBAL]
    # a verb's name alone says nothing to type; brackets and variables stand for what may follow
    if not rest or set("$[…") & set("".join(rest)):
        return
    try:
        resolve_words(verb, config_class_of(verb, rest), rest)
    except ConfigError as error:
        assert "no such file" in str(error), f"{where}: {error}"
    except SystemExit:
        pytest.fail(f"{where}: {capsys.readouterr().err}")


# what else a page tells to start: modules, scripts, targets
MODULE = re.compile(r"python3? -m (megaladder(?:\.[a-z_]+)*)(?![\w.])")
SCRIPT = re.compile(
    r"(?:python3?|bash|sbatch[^\n`]*?|torchrun[^\n`]*?) ((?:examples|tools)/[\w/.-]+)"
)
TARGET = re.compile(r"(?:^|`)make ([a-z][a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_scripts_and_targets_of_a_page_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    missing = [name for name in MODULE.findall(text) if find_spec(name) is None]
    missing += [path for path in SCRIPT.findall(text) if not (ROOT / path).is_file()]
    assert missing + sorted(set(TARGET.findall(text)) - set(targets)) == []
