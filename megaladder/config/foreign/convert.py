"""A file of another trainer → a run.yaml of ours, with a line for every key.

Mapped, without effect here, refused with the reason, or left to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megaladder.config.foreign.meanings import TITLES, Meaning, Method, Trainer
from megaladder.config.foreign.parts import compute
from megaladder.config.foreign.work import Conversion, shown
from megaladder.errors import ConfigError

GRPO_KEYS = (
    "num_generations",
    "max_completion_length",
    "reward_funcs",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.model.path",
    "algorithm.adv_estimator",
)

UNKNOWN = re.compile(r"\$(?:[0-9@*#]|\{[0-9@*#]|\(|\{\w+[^\w}])|`")


def method_of(flat: Mapping[str, Any]) -> Method:
    """GRPO where a key says so, else SFT."""
    return "grpo" if any(key in flat for key in GRPO_KEYS) else "sft"


def convert(trainer: Trainer, flat: Mapping[str, Any], gpus: int | None) -> Conversion:
    """Converts every key of `flat`.

    Then what the other tool takes where the file says nothing, then the keys that are computed from
    several.

    Raises:
        ConfigError: the file is of a method that is not built; all reasons in one message.
    """
    work = Conversion(trainer, method_of(flat), gpus)
    stops: list[str] = []
    for key, value in flat.items():
        if value is not None:
            _take(work, key, value, stops)
    if stops:
        raise ConfigError("\n".join(stops))
    _take_defaults(work, flat)
    compute(work)
    return work


def _take(work: Conversion, key: str, value: Any, stops: list[str]) -> None:
    meaning = work.trainer.find(key)
    if meaning is None:
        work.say(
            "refused", key, f"{shown(value)}: no key of {TITLES[work.trainer.name]} known here"
        )
    elif meaning.part is not None:
        work.parts[meaning.part] = value
    elif meaning.to is not None:
        _rename(work, key, value, meaning)
    elif meaning.neutral is not None:
        work.say("no effect", key, meaning.neutral)
    elif _is_usual(value, meaning.unless):
        work.say("no effect", key, f"{shown(value)}: as it is here")
    elif meaning.refuse is not None:
        work.say("refused", key, f"{shown(value)}: {meaning.refuse}")
    else:
        stops.append(
            f"{key} {shown(value)}: {meaning.stop}; fix: {key}=null after the file name leaves it out"
        )


def _is_usual(value: Any, unless: tuple[Any, ...]) -> bool:
    """A value that means what happens here anyway; of a list, each of its values."""
    if isinstance(value, list) and value and unless:
        return all(one in unless for one in value)
    return value in unless or (value is False and not unless)


def _rename(work: Conversion, key: str, value: Any, meaning: Meaning) -> None:
    assert meaning.to is not None
    if isinstance(value, str) and UNKNOWN.search(value):
        raise ConfigError(
            f"{key} {value}: an argument of the script, or what a program prints, and a script is"
            f" read, never run; fix: {key}=VALUE after the file name"
        )
    if not meaning.values:
        work.put(meaning.to, value, key)
        return
    word = shown(value)
    if word in meaning.values:
        work.put(meaning.to, meaning.values[word], key)
    else:
        known = ", ".join(dict.fromkeys(map(str, meaning.values)))
        work.say("refused", key, f"{word}: here {meaning.to} knows {known}")


def _take_defaults(work: Conversion, flat: Mapping[str, Any]) -> None:
    """Values that the other tool takes by itself.

    Where its file neither sets the key nor another key with the same meaning."""
    for key, value in work.trainer.defaults[work.method].items():
        meaning = work.trainer.find(key)
        if key in flat or meaning is None:
            continue
        if meaning.part is not None:
            work.parts.setdefault(meaning.part, value)
        elif meaning.to is not None and meaning.to not in work.ours:
            value = meaning.values.get(shown(value), value)
            work.put(meaning.to, value, f"{key} ({TITLES[work.trainer.name]}'s default)", "default")
