"""Which verbs have a key, for the message about one that this verb does not have."""

from __future__ import annotations

from functools import cache

from megaladder.config.base import StrictModel, leaf_keys, section_of
from megaladder.config.foreign.meanings import MANY, TITLES, find_key, recognise
from megaladder.config.foreign.read import flattened
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.config.strict_yaml import YamlFile
from megaladder.config.verbs.data import SampleConfig
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.files.typed import typed

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


def meant_elsewhere(key: str, config_class: type[StrictModel]) -> str | None:
    """What to say of a key that another trainer's files have; None for a key of none of them.

    >>> meant_elsewhere("learning_rate", SftConfig)
    'fix: here it is optim.lr'
    """
    found = find_key(key) or find_key(key.rpartition(".")[2])
    if found is None or not issubclass(config_class, tuple(VERBS.values())):
        return None
    ours = found[1].to
    if ours and ours not in _names(config_class):
        only = verbs_with(ours, config_class) or "no verb reads it; fix: leave it out"
        return f"here it is {ours}, and {only}"
    return f"fix: {found[1].fix}"


def renamed_here(key: str, config_class: type[StrictModel]) -> str | None:
    """The hint for another trainer's name of a key that this very verb has; else None."""
    found = find_key(key)
    has_it = found is not None and found[1].to in _names(config_class)
    return meant_elsewhere(key, config_class) if has_it else None


def hint_of(key: str, config_class: type[StrictModel]) -> str | None:
    """What to say of a key that this verb lacks and that is known elsewhere; None for no such."""
    return (
        renamed_here(key, config_class)
        or verbs_with(key, config_class)
        or meant_elsewhere(key, config_class)
    )


def other_kind(file: YamlFile, config_class: type[StrictModel]) -> str | None:
    """The line that a file gets which is for another verb, or for another trainer altogether."""
    if not issubclass(config_class, tuple(VERBS.values())):
        return None
    flat = flattened(file.values)
    own, path = _names(config_class), file.path
    if all(key in own for key in flat):
        return None
    if {"stages", "vary"} & file.values.keys():
        return f"{path}: is a recipe of data select; fix: megaladder data select FILE --recipe {typed(path)}"
    fits = [name for name in VERBS if flat and all(key in _keys(name) for key in flat)]
    if fits and not issubclass(config_class, VERBS[fits[0]]):
        return (
            f"{path}: is a file for `megaladder {fits[0]}`; fix: megaladder {fits[0]} {typed(path)}"
        )
    if sum(key in own for key in flat) > len(flat) / 2:  # ours, with some key that is none
        return None
    name = recognise(flat)
    foreign = [key for key in flat if key not in own and find_key(key)]
    if name is not None and (len(foreign) >= MANY or name == "verl"):
        fix = f"megaladder import-config {typed(path)} --out run.yaml"
        return f"{path}: looks like a file of {TITLES[name]}; fix: {fix}, or the keys below"
    return None


def _names(config_class: type[StrictModel]) -> frozenset[str]:
    return frozenset(leaf_keys(config_class))


@cache
def _keys(verb: str) -> frozenset[str]:
    """Dotted keys and sections of a verb."""
    sections = (
        name for name, field in VERBS[verb].model_fields.items() if section_of(field.annotation)
    )
    return frozenset((*leaf_keys(VERBS[verb]), *sections))
