"""`registry.yaml` as typed, checked values. No data is read here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError
from megaladder.types import Kind

SHAPES = ("plain", "options", "gpqa", "yes_no", "code")
RUNNERS = ("ours", "lm_eval", "judge")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set on the hub. `revision` None: the registry pins no commit, the user has to."""

    repo: str
    config: str | None
    split: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """One entry of the registry; the meaning of each field is at the top of `registry.yaml`."""

    name: str
    title: str
    runner: str
    shape: str
    kind: Kind
    files: tuple[str, ...]
    fields: dict[str, tuple[str, ...]]
    prompt: str
    decoding: dict[str, Any]
    hub: HubSource | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    option_style: str = "{letter}. {text}"
    option_separator: str = "\n"
    task: str | None = None  # lm-eval's name, for runner lm_eval
    judge: str | None = None  # harm or reward, for runner judge


@cache
def registry() -> dict[str, BenchmarkSpec]:
    """All entries by name, in the file's order."""
    values = load_yaml(Path(__file__).with_name("registry.yaml")).values
    return {
        name: _spec(name, entry, values["defaults"]) for name, entry in values["benchmarks"].items()
    }


def find_benchmark(name: str) -> BenchmarkSpec:
    """The entry, or a ConfigError with the nearest names."""
    known = registry()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.replace("-", "_").lower(), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
    raise ConfigError(f"unknown benchmark {name!r}; fix: {hint}")


def _spec(name: str, entry: dict[str, Any], defaults: dict[str, Any]) -> BenchmarkSpec:
    unknown = entry.keys() - {f.name for f in fields(BenchmarkSpec)}
    assert not unknown, f"registry.yaml: {name}: unknown keys {sorted(unknown)}"
    merged = {
        **defaults,
        "runner": "ours",
        **entry,
        "decoding": {**defaults["decoding"], **entry.get("decoding", {})},
    }
    assert merged["shape"] in SHAPES and merged["runner"] in RUNNERS, (
        f"registry.yaml: {name}: shape or runner"
    )
    merged["files"] = tuple(path.replace("{name}", name) for path in merged["files"])
    merged["fields"] = {key: tuple(places) for key, places in merged["fields"].items()}
    merged["groups"] = {
        key: tuple(str(item) for item in ids) for key, ids in merged.get("groups", {}).items()
    }
    merged["hub"] = HubSource(**merged["hub"]) if merged.get("hub") else None
    return BenchmarkSpec(name=name, **merged)


def describe_registry() -> str:
    """The table that `--benchmark list` prints."""
    rows = [(spec.name, spec.title, _how(spec)) for spec in registry().values()]
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width[column]) for column, cell in enumerate(row)).rstrip()
        for row in rows
    )


def _how(spec: BenchmarkSpec) -> str:
    decoding = spec.decoding
    drawn = (
        "greedy"
        if not decoding["temperature"]
        else f"T {decoding['temperature']} top-p {decoding['top_p']}"
    )
    ours = f"n {decoding['n']}, {drawn}, {decoding['max_tokens']} tokens, verified as {spec.kind}"
    return {
        "ours": ours,
        "lm_eval": f"lm-eval's task {spec.task} on our engine",
        "judge": f"n {decoding['n']}, {drawn}, judged ({spec.judge})",
    }[spec.runner]
