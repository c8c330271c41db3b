"""Typed reading of a config.json: every wrong value is a ModelError that names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.errors import ModelError

MOST, LARGEST = 10**12, 1e100  # no size or rate of a model is larger
MOST_LAYERS = 100_000  # each of them has entries of its own in what is made of them


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object, and what an absent key of it means.

    `where` leads a nested object's keys in messages."""

    raw: Mapping[str, Any]
    defaults: Mapping[str, Any]
    where: str = ""

    def get(self, key: str) -> Any:
        """The value as written (null included), else the family's default, else None."""
        return self.raw[key] if key in self.raw else self.defaults.get(key)

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number ≥ 1; `default` where it is null, or absent and the family has none."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST:
            raise self._wrong(key, "a whole number above 0")
        if value > most:
            raise self._wrong(key, f"at most {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0.

        `default` where it is null, or absent and the family has none."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf or value > LARGEST:
            raise self._wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; absent and null count as false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def object(self, key: str) -> dict[str, Any]:
        """A nested object; absent and null count as empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return dict(value or {})

    def one_of(self, key: str, allowed: Sequence[Any], why: str) -> Any:
        """A value out of `allowed`, compared with its type: 1 is not true."""
        value = self.get(key)
        if not any(value == one and type(value) is type(one) for one in allowed):
            known = " or ".join(_spelled(one) for one in allowed)
            raise ModelError(
                f"config.json: {self.where}{key} {_spelled(value)} is not supported ({why});"
                f" supported: {known}; fix: use a model that has it so"
            )
        return value

    def _wrong(self, key: str, expected: str) -> ModelError:
        found = repr(self.raw[key]) if key in self.raw else "nothing"
        return ModelError(f"config.json: {self.where}{key} should be {expected}, found {found}")


def _spelled(value: Any) -> str:
    """As JSON spells it."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, repr(value))
        if (value is None or isinstance(value, bool))
        else repr(value)
    )
