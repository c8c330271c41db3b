"""Runs a verb with one key changed at a time, and compares what it did with what it does without
the change.

    walk(Walk("data make arithmetic", {"rows": 20, "out": "o"}), inputs)   key → Finding

A key is `changed` where what the run printed or wrote differs, echoes of the configuration apart;
`refused` where the run said no and named the key; `called` where a function that `probes` lists was
called with other arguments: for what only time, memory or a GPU would show; else `same`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verb_keys import VerbConfig, another_value, command_line, verb_configs

# names of numbers that no two runs share, in JSON and in text
_VOLATILE_KEY = re.compile(
    r"(seconds|_s$|_ms$|^s$|per_s|time|memory|bytes_peak|peak|mfu|pid|host|_gib$|date|took|started|attempt)"
)
_VOLATILE_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\S*|\d\d:\d\d:\d\d\S*|[\d.,]+ ?(s|ms|min|seconds|MiB|GiB|tokens/s|tok/s|rows/s|/s)\b"
)
# echoes of the configuration: they differ by themselves
_ECHOES = {"config", "settings", "settings_sha256", "options", "command", "argv", "hint"}
_ECHO_FILES = re.compile(
    r"(config.*\.yaml|fingerprint\.json|history.*|finished\.json|integrity\.json|\.metadata|\.lock)$"
)


@dataclass(frozen=True)
class Walk:
    """How a verb's keys are changed.

    values: another value for a key, instead of the one made up from its type. beside: what a key
    needs to have a meaning; the run that it is compared with has it too. together: values that
    have to change with a key. probes: "module:attribute" of functions and classes whose arguments
    count as something that the run did.
    """

    verb: str
    base: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    together: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    probes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What changing a key did, and for `refused` what was said."""

    kind: Literal["changed", "called", "refused", "same"]
    said: str = ""


@dataclass(frozen=True)
class Deed:
    """What a run did: exit status, text, files, calls of the probes."""

    status: int
    text: str
    files: dict[str, Any]
    calls: list[str]


def walk(how: Walk, folder: Path, keys: list[str] | None = None) -> dict[str, Finding]:
    """Changes every key of the verb (or those of `keys`), one run each, in `folder`."""
    verb = next(one for one in verb_configs() if one.name == how.verb)
    found, plain = {}, {}
    for key in keys or list(verb.keys):
        beside = dict(how.beside.get(key, {}))
        name = json.dumps(beside, sort_keys=True, default=str)
        flat = {**how.base, **beside}
        if name not in plain:
            plain[name] = _act(verb, how, flat, folder / f"plain_{len(plain)}")
            if plain[name].status != 0:
                raise AssertionError(f"{how.verb} with {flat}: {plain[name].text}")
            if len(plain) == 1:
                assert _act(verb, how, flat, folder / "again") == plain[name], "two runs differ"
        value = how.values[key] if key in how.values else another_value(verb, key, flat)
        changed = {**flat, key: value, **how.together.get(key, {})}
        found[key] = _judge(key, plain[name], _act(verb, how, changed, folder / f"changed_{key}"))
    return found


def _judge(key: str, plain: Deed, changed: Deed) -> Finding:
    if changed.status != 0:
        leaf = key.rpartition(".")[2].removesuffix("_file").removesuffix("_path")
        named = leaf in changed.text.replace("-", "_") and "fix:" in changed.text
        return Finding("refused" if named and changed.status == 2 else "same", changed.text)
    if (changed.text, changed.files) != (plain.text, plain.files):
        return Finding("changed")
    return Finding("called" if changed.calls != plain.calls else "same")


def _act(verb: VerbConfig, how: Walk, flat: dict[str, Any], folder: Path) -> Deed:
    """One run in a folder of its own, in this process."""
    from megaladder.cli import main

    folder.mkdir(parents=True)
    before, said, calls = os.getcwd(), io.StringIO(), []
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            _listening(how.probes, calls),
        ):
            words = verb.name.split()
            # the last word of these is an argument, or is found from the sections
            told = words[0] in ("check", "dryrun") or words[:2] == ["data", "make"]
            words = words[:-1] if told else words
            status = main([*words, *command_line(verb.config_class, flat)])
    finally:
        os.chdir(before)
        if "megaladder.parallel" in sys.modules:  # a run that failed leaves its groups alone
            sys.modules["megaladder.parallel"].shutdown()
    text = _VOLATILE_TEXT.sub("#", said.getvalue().replace(str(folder), "."))
    return Deed(status, text, dict(_files(folder)), calls)


@contextlib.contextmanager
def _listening(probes: tuple[str, ...], calls: list[str]) -> Iterator[None]:
    """Notes the arguments of every call of the probes."""
    with contextlib.ExitStack() as stack:
        for probe in probes:
            module_name, _, path = probe.partition(":")
            owner: Any = importlib.import_module(module_name)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            original = getattr(owner, name)
            setattr(owner, name, _noting(original, path, calls))
            stack.callback(setattr, owner, name, original)
        yield


def _noting(original: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        plain = [_plain(one) for one in args] + [f"{k}={_plain(kwargs[k])}" for k in sorted(kwargs)]
        calls.append(f"{name}({', '.join(plain)})")
        return original(*args, **kwargs)

    return call


def _plain(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:2000]


def _files(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or _ECHO_FILES.search(name):
            continue
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            yield name, len(data)
            continue
        try:
            yield name, [_stable(json.loads(line)) for line in text.splitlines() if line.strip()]
        except ValueError:
            try:
                yield name, _stable(json.loads(text))
            except ValueError:
                yield name, _VOLATILE_TEXT.sub("#", text.replace(str(folder), "."))


def _stable(value: Any) -> Any:
    """Without numbers that no two runs share and without echoes of the configuration."""
    if isinstance(value, dict):
        return {
            key: _stable(inner)
            for key, inner in value.items()
            if key not in _ECHOES and not _VOLATILE_KEY.search(key)
        }
    return [_stable(inner) for inner in value] if isinstance(value, list) else value
