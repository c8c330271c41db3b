"""Runs a verb with one key changed at a time, and compares what it did with what it does without
the change.

    walk(Walk("data make arithmetic", {"rows": 20, "out": "o"}), inputs)   key → Finding

A key is `changed` where what the run printed or wrote differs, echoes of the configuration apart;
`refused` where the run said no and named the key; `noted` where it went on and said that the key
is not read here; `called` where a function that `probes` lists was
called with other arguments: for what only time, memory or a GPU would show; else `same`. What this
machine may lack (a real engine, a hub, further ranks) has a stand-in, whose calls are probed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from clean_fork import run_in_fork
from verb_keys import VerbConfig, another_value, command_line, verb_configs

# names of numbers that no two runs share (digests: of a row with its seconds), in JSON and in text
_VOLATILE_KEY = re.compile(
    r"(seconds|_s$|_ms$|^s$|per_s|time|memory|bytes_peak|peak|mfu|pid|host|_gib$|date|took|started|attempt"
    r"|wall|share_outside|^sha256$|^own_sha256$)"
)
_VOLATILE_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\S*|\d\d:\d\d:\d\d\S*|[\d.,]+ ?(s|ms|min|seconds|MiB|GiB|tokens/s|tok/s|rows/s|.FLOP/s|.B/s|/s)\b"
    r"|[\d.]+% of it outside"
)
# echoes of the configuration: they differ by themselves
_ECHOES = frozenset(
    (
        *("config", "settings", "settings_sha256", "options", "command", "argv", "hint"),
        *("protocol", "fingerprint", "changes"),
    )
)
_ECHO_FILES = re.compile(
    r"(config.*\.yaml|fingerprint\.json|history.*|finished\.json|integrity\.json|tracker\.json|\.metadata|\.lock)$|\.finished/"
)

# of a key that nothing reads in this run
_NOTE = r"is not read here"
# exit status of a run that stopped itself, and would go on
STOPPED = 3


@dataclass(frozen=True)
class Walk:
    """How a verb's keys are changed.

    values: another value for a key, instead of the one made up from its type. beside: what makes a
    key's work visible; the run that it is compared with has it too. needs: the same, for settings
    without which nothing reads the key: changed without them it is to be refused. together: values
    that have to change with a key. refuses: what a refusal says that is the key's very work.

    probes: "module:attribute" of functions and classes whose arguments count as something that the
    run did. stand_ins: what takes the place of such an attribute, or of a whole "module". unseen: lines that only repeat
    the configuration; echoes: such keys of JSON.

    shown_by: the verb whose walk shows a key that this one's runs cannot. shares: the verb whose
    keys this one has too, and of whose runs it tells; keys: which of them are changed here as well.

    slow: more than a few seconds of runs. forks: each run in a process of its own, for what leaves
    threads behind.
    """

    verb: str
    base: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    together: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    probes: tuple[str, ...] = ()
    stand_ins: Mapping[str, Any] = field(default_factory=dict)
    shown_by: Mapping[str, str] = field(default_factory=dict)
    shares: str | None = None
    keys: tuple[str, ...] = ()
    unseen: str = _NOTE
    echoes: frozenset[str] = frozenset()
    slow: bool = False
    forks: bool = False


@dataclass(frozen=True)
class Finding:
    """What changing a key did, and for `refused` what was said."""

    kind: Literal["changed", "called", "refused", "noted", "same"]
    said: str = ""


@dataclass(frozen=True)
class Deed:
    """What a run did: exit status, text, files, calls of the probes; and all that it told."""

    status: int
    text: str
    files: dict[str, Any]
    calls: list[str]
    told: str = field(compare=False)


def walk(
    how: Walk, folder: Path, keys: list[str] | None = None, plain: dict[str, Deed] | None = None
) -> dict[str, Finding]:
    """Changes every key of the verb (or those of `keys`), one run each, in `folder`.

    plain: the verb's runs without the change, by what they were given, of earlier walks; those that
    this one makes are added.

    What a key did is found under its name; what it did without what it `needs`, where that was
    neither refused nor noted, under its name and "alone".
    """
    verb = next(one for one in verb_configs() if one.name == how.verb)
    runs = _Runs(verb, how, folder, {} if plain is None else plain)
    found = {}
    for key in keys or list(runs.verb.keys):
        needs = how.needs.get(key, {})
        flat = {**how.base, **how.beside.get(key, {}), **needs}
        found[key] = runs.changed(key, flat, key)
        if needs:
            alone = runs.changed(key, {**how.base, **how.beside.get(key, {})}, f"{key} alone")
            if alone.kind not in ("refused", "noted"):
                found[f"{key} alone"] = Finding("same", f"taken without {needs}: {alone}")
    return found


class _Runs:
    """The runs of a walk; those that others are compared with happen once."""

    def __init__(self, verb: VerbConfig, how: Walk, folder: Path, plain: dict[str, Deed]) -> None:
        self.verb, self._how, self._folder, self._plain = verb, how, folder, plain

    def changed(self, key: str, flat: dict[str, Any], name: str) -> Finding:
        """What another value of `key` does beside the values of `flat`."""
        how = self._how
        value = how.values[key] if key in how.values else another_value(self.verb, key, flat)
        changed = {**flat, key: value, **how.together.get(key, {})}
        deed = _act(self.verb, how, changed, self._folder / f"changed_{name}")
        if refused := _refusal(key, deed, how.refuses.get(key)):
            return refused
        found = _compared(self._plain_run(flat), deed)
        noted = re.search(rf"{re.escape(key)} .* is not read here: it needs ", deed.told)
        return Finding("noted") if noted and found.kind != "changed" else found

    def _plain_run(self, flat: dict[str, Any]) -> Deed:
        name = json.dumps(flat, sort_keys=True, default=str)
        if name in self._plain:
            return self._plain[name]
        deed = _act(self.verb, self._how, flat, self._folder / f"plain_{len(self._plain)}")
        assert deed.status == 0, f"{self._how.verb} with {flat}: {deed.text}"
        if not self._plain:
            again = _act(self.verb, self._how, flat, self._folder / "again")
            assert deed == again, f"two runs differ: {_difference(deed, again)}"
        self._plain[name] = deed
        return deed


def _difference(one: Deed, other: Deed) -> str:
    """What two runs that should be the same did differently."""
    files = [
        name for name in one.files | other.files if one.files.get(name) != other.files.get(name)
    ]
    lines = set(one.text.splitlines()) ^ set(other.text.splitlines())
    return f"files {files}, lines {sorted(lines)}, calls {sorted({*one.calls} ^ {*other.calls})}"


def _refusal(key: str, deed: Deed, asked_for: str | None) -> Finding | None:
    """What was said instead of a run; None where there was one, or one that stopped itself."""
    if deed.status in (0, STOPPED):
        return None
    if asked_for is not None:
        return Finding("refused" if asked_for in deed.text else "same", deed.text)
    leaf = key.rpartition(".")[2].removesuffix("_file").removesuffix("_path")
    named = leaf in deed.text.replace("-", "_") and "fix:" in deed.text
    return Finding("refused" if named and deed.status == 2 else "same", deed.text)


def _compared(plain: Deed, changed: Deed) -> Finding:
    if (changed.text, changed.files) != (plain.text, plain.files):
        return Finding("changed", _difference(plain, changed))
    return Finding("called" if changed.calls != plain.calls else "same")


def _act(verb: VerbConfig, how: Walk, flat: dict[str, Any], folder: Path) -> Deed:
    """One run in a folder of its own."""
    if not how.forks:
        return _act_here(verb, how, flat, folder)
    found = folder.parent / f"{folder.name}.deed"
    status = run_in_fork(_write_deed, verb, how, flat, folder, found)
    assert status == 0, f"{how.verb} with {flat}: the walk itself ended with {status}"
    return pickle.loads(found.read_bytes())


def _write_deed(verb: VerbConfig, how: Walk, flat: dict[str, Any], folder: Path, out: Path) -> None:
    out.write_bytes(pickle.dumps(_act_here(verb, how, flat, folder)))


def _act_here(verb: VerbConfig, how: Walk, flat: dict[str, Any], folder: Path) -> Deed:
    """The run, in this process."""
    from megaladder.cli import main

    folder.mkdir(parents=True)
    before, said, calls = os.getcwd(), io.StringIO(), []
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            _replacing(how.stand_ins),
            _listening(how.probes, folder, calls),
        ):
            words = verb.name.split()
            # the last word of these is an argument, or is found from the sections
            told = words[0] in ("check", "dryrun") or words[:2] == ["data", "make"]
            words = words[:-1] if told else words
            status = main([*words, *command_line(verb.config_class, flat)])
    finally:
        os.chdir(before)
    told = said.getvalue().replace(str(folder), ".")
    lines = told.splitlines()
    text = "\n".join(line for line in lines if not re.search(how.unseen, line))
    return Deed(
        status, _VOLATILE_TEXT.sub("#", text), dict(_files(folder, how)), sorted(calls), told
    )


@contextlib.contextmanager
def _listening(probes: tuple[str, ...], folder: Path, calls: list[str]) -> Iterator[None]:
    """Notes the arguments of every call of the probes."""
    noted = {}
    for probe in probes:
        owner, name = _place(probe)
        noted[probe] = _noting(getattr(owner, name), probe, folder, calls)
    with _replacing(noted):
        yield


@contextlib.contextmanager
def _replacing(stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Puts each stand-in in its place, and what was there back at the end."""
    with contextlib.ExitStack() as stack:
        for target, stand_in in stand_ins.items():
            if ":" not in target:
                stack.enter_context(mock.patch.dict(sys.modules, {target: stand_in}))
                continue
            owner, name = _place(target)
            stack.callback(setattr, owner, name, inspect.getattr_static(owner, name))
            setattr(owner, name, stand_in)
        yield


def _place(target: str) -> tuple[Any, str]:
    """The owner of the attribute that "module:path" names, and the attribute's name."""
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def _noting(
    original: Callable[..., Any], name: str, folder: Path, calls: list[str]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        words = [_plain(one, folder) for one in args]
        words += [f"{key}={_plain(kwargs[key], folder)}" for key in sorted(kwargs)]
        calls.append(f"{name}({', '.join(words)})")
        return original(*args, **kwargs)

    return call


def _plain(value: Any, folder: Path) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value)).replace(str(folder), ".")
    return text if len(text) < 500 else hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path, how: Walk) -> Iterator[tuple[str, Any]]:
    """Name → content of what was written; of what is not text, the size."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not _ECHO_FILES.search(name):
            yield name, _content(path, folder, _ECHOES | how.echoes)


def _content(path: Path, folder: Path, echoes: frozenset[str]) -> Any:
    if path.suffix == ".gz":  # a profile
        return None
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return len(data)
    for parts in (text.splitlines(), [text]):
        with contextlib.suppress(ValueError):
            return [_stable(json.loads(part), echoes) for part in parts if part.strip()]
    lines = [line for line in text.splitlines() if not re.search(_NOTE, line)]
    return _VOLATILE_TEXT.sub("#", "\n".join(lines).replace(str(folder), "."))


def _stable(value: Any, echoes: frozenset[str]) -> Any:
    """Without numbers that no two runs share and without echoes of the configuration."""
    if isinstance(value, dict):
        return {
            key: _stable(inner, echoes)
            for key, inner in value.items()
            if key not in echoes and not _VOLATILE_KEY.search(key)
        }
    return [_stable(inner, echoes) for inner in value] if isinstance(value, list) else value
