"""Every command that a text of ours tells to type: its verb exists, its flags are keys of that verb."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaladder.cli.dispatch import config_class_of, find_verb
from megaladder.cli.table import VERBS
from megaladder.cli.wanted import WANTED
from megaladder.config.base import leaf_keys
from megaladder.errors import ConfigError

ROOT = Path(__file__).parents[2]
GLOBAL = {"help", "version", "print-config", "quiet"}
# one command in prose or in a fix: up to what cannot belong to it
COMMAND = re.compile(r"megaladder ([a-z][^,;()`|#<>]*)")


def commands_in_pages() -> Iterator[tuple[str, str]]:
    """(where, command) of the fenced shell blocks of README and docs."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("megaladder "):
                    yield page.name, line.partition(" #")[0].removeprefix("megaladder ")


def all_commands() -> list[tuple[str, str]]:
    wanted = [
        (f"wanted {word}", found) for word, fix in WANTED.items() for found in COMMAND.findall(fix)
    ]
    examples = [(f"example of {v.name}", f"{v.name} {v.example}") for v in VERBS if v.example]
    return [*dict.fromkeys([*wanted, *examples, *commands_in_pages()])]


@pytest.mark.parametrize(("where", "command"), all_commands())
def test_a_command_that_is_told_has_a_verb_and_keys_that_exist(where: str, command: str) -> None:
    words = shlex.split(command.rpartition(" or ")[0] or command)
    if words and words[0].startswith("-"):
        return
    verb, rest = find_verb(words)
    flags = [word.partition("=")[0][2:].replace("-", "_") for word in rest if word[:2] == "--"]
    try:
        config_class = config_class_of(verb, rest)
    except ConfigError:
        return  # the class depends on a file that is not here
    known = {key.replace("-", "_") for key in leaf_keys(config_class)}
    unknown = [
        flag
        for flag in flags
        if flag not in known
        and flag.replace("_", "-") not in GLOBAL
        and not any(key.endswith(f".{flag}") for key in known)
    ]
    assert unknown == [], f"{where}: {verb.name} has no {unknown}"
