"""What gathers while a file of another trainer is read.

Our keys, parts of computed ones, and a finding a key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megaladder.config.base import StrictModel, leaf_keys
from megaladder.config.foreign.meanings import Method, Trainer
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError

Verdict = Literal["mapped", "default", "no effect", "refused", "to do"]
MOST = 10**9  # no batch, length or number of ranks is larger
CONFIGS: dict[Method, type[StrictModel]] = {"sft": SftConfig, "grpo": GrpoConfig}


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one key."""

    verdict: Verdict
    key: str
    text: str


@dataclass
class Conversion:
    """What gathers while a file is read.

    Our keys (dotted), the values that belong together with others (`parts`), and a finding a key.
    """

    trainer: Trainer
    method: Method
    gpus: int | None = None
    ours: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def say(self, verdict: Verdict, key: str, text: str) -> None:
        """One more finding."""
        self.findings.append(Finding(verdict, key, text))

    def put(self, key: str, value: Any, of: str, verdict: Verdict = "mapped") -> None:
        """One of our keys gets a value; a key that this verb does not have is refused."""
        if key not in leaf_keys(CONFIGS[self.method]):
            self.say("refused", of, f"{key} is no key of `megaladder {self.method}`")
            return
        self.ours[key] = value
        self.say(verdict, of, f"{key}: {shown(value)}")

    def take(self, name: str, default: Any = None) -> Any:
        """A part, if the file has it."""
        return self.parts.get(name, default)

    def whole(self, name: str, default: int, least: int = 1) -> int:
        """A part that is a whole number. Raises ConfigError for one that is not."""
        return _whole(name, self.parts.get(name, default), least)

    def own(self, key: str, default: int) -> int:
        """One of our keys that is a whole number of at least 1. Raises ConfigError otherwise."""
        found = self.ours.get(key)
        return _whole(key, default if found is None else found, 1)

    def number(self, name: str, default: float) -> float:
        """A part that is a number. Raises ConfigError for one that is not."""
        value = self.parts.get(name, default)
        try:
            found = float(value)
        except (ValueError, TypeError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            raise ConfigError(f"{name} {shown(value)[:60]}: expected a number; fix: correct it")
        return found


def _whole(name: str, value: Any, least: int) -> int:
    try:
        found = int(value)
    except (ValueError, TypeError, OverflowError):
        found = -1
    if not least <= found <= MOST:
        raise ConfigError(
            f"{name} {shown(value)[:60]}: expected a whole number from {least} to {MOST:,}; fix:"
            " correct it"
        )
    return found


def nested(flat: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Dotted keys as sections, in the order that our configuration declares."""
    values: dict[str, Any] = {}
    for key in leaf_keys(CONFIGS[method]):
        if key in flat:
            *sections, leaf = key.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
            place[leaf] = flat[key]
    return values


def shown(value: Any) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_list(value: Any) -> list[Any]:
    """A list, or the one value as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
