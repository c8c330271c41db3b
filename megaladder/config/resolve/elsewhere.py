"""Which verbs have a key, for the message about one that this verb does not have."""

from __future__ import annotations

from functools import cache

from megaladder.config.base import StrictModel, leaf_keys, section_of
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.config.verbs.data import SampleConfig
from megaladder.config.verbs.evaluation import EvalConfig

VERBS: dict[str, type[StrictModel]] = {
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "eval": EvalConfig,
    "data sample": SampleConfig,
}


def verbs_with(key: str, config_class: type[StrictModel]) -> str | None:
    """What to say of a key or section that other verbs have; None where no verb has it.

    >>> verbs_with("rollout.lag_behind", SftConfig)
    >>> verbs_with("data.holdout", GrpoConfig)
    'only `megaladder sft` reads it; fix: leave it out, or run that'
    """
    if not issubclass(config_class, tuple(VERBS.values())):
        return None
    names = [
        name for name in VERBS if key in _keys(name) and not issubclass(config_class, VERBS[name])
    ]
    if not names:
        return None
    text = ", ".join(f"`megaladder {name}`" for name in names)
    which = "that" if len(names) == 1 else "one of those"
    return f"only {text} reads it; fix: leave it out, or run {which}"


@cache
def _keys(verb: str) -> frozenset[str]:
    """Dotted keys and sections of a verb."""
    sections = (
        name for name, field in VERBS[verb].model_fields.items() if section_of(field.annotation)
    )
    return frozenset((*leaf_keys(VERBS[verb]), *sections))
