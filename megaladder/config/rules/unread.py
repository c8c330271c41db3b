"""Keys that only some settings read: changed where nothing reads them, they are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class ReadIf(Generic[Config]):
    """A setting under which keys are read.

    `keys` (dotted) are read where `holds` is true of the configuration; `needs` says that as a
    setting, e.g. "train.recompute selective".
    """

    keys: tuple[str, ...]
    holds: Callable[[Config], bool]
    needs: str


def raise_all(problems: list[str]) -> None:
    """One ValueError with every problem on its own line, or nothing."""
    if problems:
        raise ValueError("\n".join(problems))


def unread_problems(config: Config, table: Iterable[ReadIf[Config]]) -> list[str]:
    """A line for each key that was changed from its default and that nothing reads."""
    return [
        f"{key} {_shown(value)} is read with {entry.needs} only; fix: leave it out, or set that"
        for entry, key, value in _unread(config, table)
    ]


def unread_notes(config: Config, table: Iterable[ReadIf[Config]]) -> list[str]:
    """The keys that were changed and are not read here, as notes instead of errors.

    For a run file that is tried with another engine or mode: it keeps its keys, and is told which
    of them count.
    """
    return [
        f"{key} {_shown(value)} is not read here: it needs {entry.needs}"
        for entry, key, value in _unread(config, table)
    ]


def _unread(
    config: Config, table: Iterable[ReadIf[Config]]
) -> Iterator[tuple[ReadIf[Config], str, Any]]:
    """Changed keys that nothing reads, with the entry that says so."""
    for entry in table:
        if entry.holds(config):
            continue
        for key in entry.keys:
            value = _value(config, key)
            if value != _default(config, key):
                yield entry, key, value


def _value(root: object, key: str) -> Any:
    value: Any = root
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _default(root: object, key: str) -> Any:
    """The field's default, as its section's presets have it."""
    *sections, leaf = key.split(".")
    section: Any = _value(root, ".".join(sections)) if sections else root
    given = {name: getattr(section, name) for name in type(section).model_fields}
    field = type(section).model_fields[leaf]
    return type(section).defaults(given).get(leaf, field.get_default(call_default_factory=True))


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
