"""A file of another trainer → a run.yaml of ours, with a line for every key: mapped, without effect
here, refused with the reason, or left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megaladder.config.base import StrictModel, leaf_keys
from megaladder.config.foreign.meanings import TITLES, Meaning, Method, Trainer
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError

Verdict = Literal["mapped", "default", "no effect", "refused", "to do"]
CONFIGS: dict[Method, type[StrictModel]] = {"sft": SftConfig, "grpo": GrpoConfig}
GRPO_KEYS = (
    "num_generations",
    "max_completion_length",
    "reward_funcs",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.model.path",
    "algorithm.adv_estimator",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one key."""

    verdict: Verdict
    key: str
    text: str


@dataclass
class Conversion:
    """What gathers while a file is read: our keys (dotted), the values that belong together with
    others (`parts`), and a finding a key."""

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
        self.say(verdict, of, f"{key}: {_shown(value)}")

    def take(self, name: str, default: Any = None) -> Any:
        """A part, if the file has it."""
        return self.parts.get(name, default)


def method_of(flat: Mapping[str, Any]) -> Method:
    """GRPO where a key says so, else SFT."""
    return "grpo" if any(key in flat for key in GRPO_KEYS) else "sft"


def convert(trainer: Trainer, flat: Mapping[str, Any], gpus: int | None) -> Conversion:
    """Every key of `flat`, then what the other tool takes where the file says nothing, then the
    keys that are computed from several.

    Raises:
        ConfigError: the file is of a method that is not built; all reasons in one message.
    """
    from megaladder.config.foreign.parts import compute

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
            "refused", key, f"{_shown(value)}: no key of {TITLES[work.trainer.name]} known here"
        )
    elif meaning.part is not None:
        work.parts[meaning.part] = value
    elif meaning.to is not None:
        _rename(work, key, value, meaning)
    elif meaning.neutral is not None:
        work.say("no effect", key, meaning.neutral)
    elif value in meaning.unless or (value is False and not meaning.unless):
        work.say("no effect", key, f"{_shown(value)}: as it is here")
    elif meaning.refuse is not None:
        work.say("refused", key, f"{_shown(value)}: {meaning.refuse}")
    else:
        stops.append(
            f"{key} {_shown(value)}: {meaning.stop}; fix: {key}=null after the file name leaves it out"
        )


def _rename(work: Conversion, key: str, value: Any, meaning: Meaning) -> None:
    assert meaning.to is not None
    if not meaning.values:
        work.put(meaning.to, value, key)
        return
    word = _shown(value)
    if word in meaning.values:
        work.put(meaning.to, meaning.values[word], key)
    else:
        known = ", ".join(dict.fromkeys(map(str, meaning.values)))
        work.say("refused", key, f"{word}: here {meaning.to} knows {known}")


def _take_defaults(work: Conversion, flat: Mapping[str, Any]) -> None:
    """Values that the other tool takes by itself, where its file neither sets the key nor another
    key with the same meaning."""
    for key, value in work.trainer.defaults[work.method].items():
        meaning = work.trainer.find(key)
        if key in flat or meaning is None:
            continue
        if meaning.part is not None:
            work.parts.setdefault(meaning.part, value)
        elif meaning.to is not None and meaning.to not in work.ours:
            value = meaning.values.get(_shown(value), value)
            work.put(meaning.to, value, f"{key} ({TITLES[work.trainer.name]}'s default)", "default")


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


def _shown(value: Any) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
