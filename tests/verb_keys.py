"""Every verb's configuration classes and keys, with values for the required ones: for tests that
walk them all."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from megaladder.cli import VERBS, load
from megaladder.config.base import StrictModel, leaf_keys, section_of

# what a verb must be given, as on its command line
REQUIRED: dict[str, dict[str, Any]] = {
    "sft": {"model.path": "m", "data.path": "d"},
    "grpo": {"model.path": "m", "data.path": "d"},
    "import-config": {"file": "f"},
    "chat": {"model": "m"},
    "serve": {"model": "m"},
    "push": {"model": "m", "to": "o"},
    "convert hf-to-megatron": {"hf": "h", "out": "o"},
    "convert megatron-to-hf": {"megatron": "c", "out": "o"},
    "convert adapter": {"megatron": "c", "out": "o"},
    "convert merge": {"hf": "h", "adapter": "a", "out": "o"},
    "convert verify": {"hf": "h", "megatron": "c"},
    "plan": {"model": "Qwen3-14B", "gpus": 8, "seq_length": 8192, "global_batch_size": 64},
    "bench train": {"data": "d"},
    "bench rollout": {"model": "m"},
    "eval": {"model.path": "m", "benchmark": ["aime24"]},
    "grade": {"input": "i", "output": "o"},
    "analyze pass-at-k": {"runs": ["i"]},
    "analyze transfer": {"runs": ["r"]},
    "analyze scaling": {"runs": ["r"]},
    "analyze ladder": {"runs": ["r"]},
    "analyze predict": {"runs": ["r"]},
    "analyze trajectory": {"runs": ["r"]},
    "analyze shift": {"base": "b", "tuned": "t", "data": "d"},
    "analyze budget": {"runs": ["i"], "budgets": [1]},
    "analyze compare": {"runs": ["r"]},
    "report": {"run_dirs": ["r"]},
    "watch": {"run_dirs": ["r"]},
    "study": {"name": "list"},
    "power": {"effect": 2.0},
    "replay": {"run_dir": "r", "step": 1},
    "data get": {"names": ["gsm8k"]},
    "data stats": {"path": "p"},
    "data decontaminate": {"path": "p", "against": ["a"], "out": "o"},
    "data score": {"path": "p", "out": "o"},
    "data select": {"path": "p", "recipe": "r", "out": "o"},
    "data sample": {"path": "p", "out": "o", "model.path": "m"},
    "data make arithmetic": {"kind": "arithmetic", "rows": 2, "out": "o"},
    "data make countdown": {"kind": "countdown", "rows": 2, "out": "o"},
    "check sft": {"model.path": "m", "data.path": "d"},
    "check grpo": {"model.path": "m", "data.path": "d"},
    "check recipe": {"recipe": "r"},
    "dryrun sft": {"model.path": "m", "data.path": "d"},
    "dryrun grpo": {"model.path": "m", "data.path": "d"},
}


@dataclass(frozen=True)
class VerbConfig:
    """A verb, or one of the forms that a verb has by its arguments."""

    name: str
    config_class: type[StrictModel]
    run: str
    takes_yaml: bool

    @property
    def keys(self) -> dict[str, Any]:
        """Dotted key → field."""
        return leaf_keys(self.config_class)

    @property
    def required(self) -> dict[str, Any]:
        return REQUIRED.get(self.name, {})


def verb_configs() -> Iterator[VerbConfig]:
    """All of them. `check`, `dryrun` and `data make` have a class for each kind of argument."""
    forms = {
        "check": {
            "sft": "megaladder.preflight.check:CheckSft",
            "grpo": "megaladder.preflight.check:CheckGrpo",
            "recipe": "megaladder.preflight.check_recipe:CheckRecipe",
        },
        "dryrun": {
            "sft": "megaladder.dryrun.verb:DryrunSft",
            "grpo": "megaladder.dryrun.verb:DryrunGrpo",
        },
        "data make": {
            "arithmetic": "megaladder.config.verbs.data:MakeArithmeticConfig",
            "countdown": "megaladder.config.verbs.data:MakeCountdownConfig",
        },
    }
    for verb in VERBS:
        for form, target in forms.get(verb.name, {}).items():
            yield VerbConfig(f"{verb.name} {form}", load(target), verb.run, form in ("sft", "grpo"))
        if verb.name not in forms:
            found = load(verb.config)
            config_class = found if isinstance(found, type) else found([])
            yield VerbConfig(verb.name, config_class, verb.run, verb.takes_yaml)


def choices(annotation: Any) -> list[Any]:
    """The values of a field that names them: literals and enum members, None apart."""
    origin = get_origin(annotation)
    if origin is Literal:
        return list(get_args(annotation))
    if origin in (Union, types.UnionType, Annotated):
        return [value for part in get_args(annotation) for value in choices(part)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return list(annotation)
    return []


def another_value(verb: VerbConfig, key: str, given: dict[str, Any]) -> Any:
    """A value that the field takes and that differs from what is given, or from its default."""
    field = verb.keys[key]
    now = given.get(key, field.get_default(call_default_factory=True))
    named = [value for value in choices(field.annotation) if value != now]
    if named:
        return getattr(named[0], "value", named[0])
    kinds = {field.annotation, *get_args(field.annotation)}
    if bool in kinds:
        return not now
    if isinstance(now, (tuple, list)) or any(str(kind).startswith("tuple") for kind in kinds):
        return _another_list(str(field.annotation), now)
    if kinds & {int, float} or any("int" in str(kind) or "float" in str(kind) for kind in kinds):
        return _another_number(now, float in kinds or "float" in str(kinds))
    return "another"


def _another_list(kind: str, now: Any) -> list[Any]:
    if "float" in kind:
        return [0.5, 0.6] if len(now or ()) == 2 else [0.5]
    return [7] if "int" in kind else ["another"]


def _another_number(now: Any, fraction: bool) -> Any:
    if fraction:
        return now / 2 if now else 0.5
    return now * 2 if now else 7


def spelled(value: Any) -> str:
    """The value as `--print-config` writes it."""
    plain = value.value if isinstance(value, Enum) else value
    if isinstance(plain, dict):  # one word on the command line
        return yaml.safe_dump(plain, default_flow_style=True, width=10**6).strip()
    return yaml.safe_dump({"value": plain}, width=10**6).removeprefix("value: ").strip()


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys → sections."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return values


def positionals(config_class: type[StrictModel]) -> list[str]:
    """Fields without a flag, in order."""
    from tyro.conf import _markers

    return [
        name
        for name, field in config_class.model_fields.items()
        if _markers.Positional in field.metadata and not section_of(field.annotation)
    ]


def command_line(config_class: type[StrictModel], flat: dict[str, Any]) -> list[str]:
    """The values as arguments of the verb."""
    first = positionals(config_class)
    args: list[str] = []
    for name in first:
        value = flat.get(name, ())  # an empty tuple: an argument that may be left out
        args += [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
    for key, value in flat.items():
        if key not in first:
            args += [flag_of(config_class, key), *_words(config_class, key, value)]
    return args


def flag_of(config_class: type[StrictModel], key: str) -> str:
    """`--a.b-c`, or the shorter name that the field gives itself."""
    field = leaf_keys(config_class)[key]
    own = [getattr(part, "name", None) for part in field.metadata]
    section, dot, leaf = key.rpartition(".")
    leaf = next((name for name in own if isinstance(name, str)), leaf)
    return f"--{section}{dot}{leaf}".replace("_", "-")


def _words(config_class: type[StrictModel], key: str, value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        field = leaf_keys(config_class)[key]
        # a list of values that each have a spelling of their own is words, not one word
        kind = "" if str(field.annotation).startswith("tuple[") else f"{field.annotation}"
        commas = "PrimitiveConstructorSpec" in f"{kind}{field.metadata}"
        words = [spelled(one).strip("'\"") for one in value]
        return [",".join(words)] if commas else words
    text = spelled(value)
    return [value if isinstance(value, str) else text]
