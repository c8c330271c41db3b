"""Files of other trainers as flat, dotted keys.

YAML, and shell scripts with verl's overrides or with flags of the others. Nothing is executed: a
script's assignments are read, not run."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megaladder.config.foreign.launched import Launched, keys_of, launched
from megaladder.config.strict_yaml import load_yaml, parse_value
from megaladder.errors import ConfigError

ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
OVERRIDE = re.compile(r"[+~]{0,2}([A-Za-z_][\w]*(?:\.\w+)+)=(.*)", re.DOTALL)
ARITHMETIC = re.compile(r"\$\(\(((?:[^()]|\([^()]*\)|\(\([^()]*\)\))*)\)\)")
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-((?:[^{}]|\{[^{}]*\})*))?\}|([A-Za-z_]\w*))")
INTERPOLATION = re.compile(r"\$\{(?:oc\.select:)?(\w[\w.]*)(?:,\s*([^{}]*))?\}")
HERE_DOCUMENT = re.compile(r"(?<!<)<<-?\s*['\"]?(\w+)")
LONGEST_QUOTE = 100  # lines that one open quote may take
MAX_LINE = 100_000
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def read_foreign(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Dotted key → value of a YAML file or a script, the overrides (`key=value`) on top.

    Raises:
        ConfigError: no such file, no YAML, a script without overrides, an override without `=`.
    """
    if Path(path).suffix == ".toml":
        raise ConfigError(
            f"{path}: TOML, and files of the tools known here are YAML or scripts; fix: `megaladder"
            " examples` lists run files to begin with"
        )
    if Path(path).suffix in (".sh", ".bash"):
        flat = read_script(Path(path))
    else:
        flat = flattened(load_yaml(path).values)
    for word in overrides:
        match = re.fullmatch(r"[+~]{0,2}([\w.]+)=(.*)", word, re.DOTALL)
        if match is None:
            raise ConfigError(f"{word}: expected key=value; fix: e.g. trainer.nnodes=2")
        flat[match[1]] = parse_value(match[2])
    return {key: _interpolated(value, flat) for key, value in flat.items()}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections as dotted keys; lists and empty sections stay values.

    >>> flattened({"a": {"b": 1, "c": [2]}, "d": None})
    {'a.b': 1, 'a.c': [2], 'd': None}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_script(path: Path) -> dict[str, Any]:
    """The overrides or flags of a shell script, its own variables and sums put in."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; fix: the path of a YAML file or a script")
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8", errors="replace"))
    variables: dict[str, str] = {}
    flat: dict[str, Any] = {}
    trainings: list[Launched] = []
    for line in _commands(text.splitlines()):
        try:
            words = shlex.split(_expanded(line, variables), comments=True)
        except ValueError:
            continue  # a here-document: no override stands there
        if len(words) <= 2 and words and (match := ASSIGNMENT.fullmatch(words[-1])):
            variables[match[1]] = match[2]
            continue
        flat |= {
            match[1]: parse_value(match[2]) for word in words if (match := OVERRIDE.fullmatch(word))
        }
        trainings += filter(None, [launched(words)])
    return flat or _of_the_training(path, trainings)


def _of_the_training(path: Path, trainings: Sequence[Launched]) -> dict[str, Any]:
    """The keys of the one training that a script without dotted overrides starts."""
    if not trainings:
        raise ConfigError(
            f"{path}: expected a script with overrides such as data.train_files=…, or one that"
            " starts TRL, LLaMA-Factory or axolotl with --learning_rate …, found none; fix: the"
            " script that starts the training"
        )
    if len(trainings) > 1:
        programs = ", ".join(one.program for one in trainings)
        raise ConfigError(
            f"{path}: expected one training, found {len(trainings)} ({programs}); fix: a script for"
            " each"
        )
    return flattened(keys_of(path, trainings[0]))


def _commands(lines: Sequence[str]) -> Iterator[str]:
    """The lines, those that an open quote holds together as one.

    A quote that never closes, and the lines of a here-document, stay as they are."""
    start, here = 0, ""
    while start < len(lines):
        end = start + 1
        last = start + 1 if here else min(len(lines), start + LONGEST_QUOTE)
        while end < last and not _closes(lines[start:end]):
            end += 1
        if not _closes(lines[start:end]):
            end = start + 1
        line = "\n".join(lines[start:end])
        yield line
        begun = HERE_DOCUMENT.search(line)
        here = "" if line.strip() == here else here or (begun[1] if begun else "")
        start = end


def _closes(lines: Sequence[str]) -> bool:
    try:
        shlex.split("\n".join(lines), comments=True)
    except ValueError:
        return False
    return True


def _expanded(line: str, variables: Mapping[str, str]) -> str:
    """Variables of the script, then sums. What the script does not set stays as it is ($HOME)."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        given = variables.get(name)
        given = match[2] if not given and match[2] is not None else given
        return match[0] if given is None else given.strip("\"'")

    def total(match: re.Match[str]) -> str:
        names = {name: int(text) for name, text in variables.items() if text.isdigit()}
        try:
            return str(_sum(ast.parse(match[1].replace("$", "").strip(), mode="eval").body, names))
        # no sum, or one that nobody meant: nested, or of digits, without end
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, SyntaxError):
            return match[0]

    for _ in range(3):  # values may hold variables and sums themselves
        line = ARITHMETIC.sub(total, VARIABLE.sub(value, line))
        if len(line) > MAX_LINE:
            raise ConfigError(
                f"a line of more than {MAX_LINE:,} characters once its variables are put in; fix:"
                " variables that do not hold each other"
            )
    return line


def _sum(node: ast.expr, names: Mapping[str, int]) -> int:
    """A whole-number sum; KeyError for an unknown name, TypeError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_sum(node.left, names), _sum(node.right, names))
    raise TypeError(ast.dump(node))


def _interpolated(value: Any, flat: Mapping[str, Any]) -> Any:
    """OmegaConf's `${a.b}` with the value of that key."""
    if not isinstance(value, str):
        return value
    whole = INTERPOLATION.fullmatch(value)
    if whole and whole[1] in flat:
        return flat[whole[1]]
    if whole and whole[2] is not None:
        return parse_value(whole[2])
    return INTERPOLATION.sub(lambda match: str(flat.get(match[1], match[0])), value)
