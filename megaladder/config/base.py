"""The base of every verb's configuration.

And the few field types that the command line needs beyond pydantic's.

A verb is a `StrictModel` (its fields are its flags; `Field(description=…)` is its `--help`) and a
function that takes one. Field types: `CommaInts`, `CommaFloats`, `CommaStrs` are written `--k
1,8,64`; `Positional[T]` is an argument without a flag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import tyro
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic.fields import FieldInfo
from tyro.conf import Positional

__all__ = [
    "CommaFloats",
    "CommaInts",
    "CommaStrs",
    "Positional",
    "StrictModel",
    "YamlObject",
    "from_flag",
    "leaf_keys",
    "section_of",
    "to_flag",
    "yaml_flag",
]


# a whole word with a slash that begins with ~ or has a folder that is a variable: ~/x, $HOME/x,
# data/${USER}/x; text such as $x$ is none
_SHELL_PATH = re.compile(
    r"~(?:/\S*)?|\$(?:\w+|\{\w+\})(?:/[^\s$]*|/\S*\$(?:\w+|\{\w+\})\S*)"
    r"|[^\s$]*/\$(?:\w+|\{\w+\})(?:/\S*)?|\$\{\w+\}"
)
_VARIABLES = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


class StrictModel(BaseModel):
    """Unknown keys are errors, values are frozen after validation, defaults are validated too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on the values given (presets).

        They win over the fields' own defaults; what is given wins over them.
        """
        return {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {
            name: expanded(value, name) for name, value in {**cls.defaults(given), **given}.items()
        }


def expanded(value: Any, name: str) -> Any:
    """A path with `~` and `$VAR` put in; every other value as it is. In a list, each item.

    >>> expanded("$HOME/x", "path") == os.environ["HOME"] + "/x", expanded("$x$ is", "suffix")
    (True, '$x$ is')
    """
    if isinstance(value, (list, tuple)):
        return type(value)(expanded(item, name) for item in value)
    if not isinstance(value, str) or not _SHELL_PATH.fullmatch(value):
        return value
    missing = [found for found in _VARIABLES.findall(value) if found not in os.environ]
    if missing:
        raise ValueError(
            f"{name} {value}: the environment has no {missing[0]}; fix: export {missing[0]}=…, or"
            " write the path out"
        )
    return os.path.expanduser(os.path.expandvars(value))


def leaf_keys(config_class: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted key → FieldInfo of every leaf of a config, in declaration order."""
    leaves: dict[str, Any] = {}
    for name, field in config_class.model_fields.items():
        section = section_of(field.annotation)
        leaves.update(
            leaf_keys(section, f"{prefix}{name}.") if section else {f"{prefix}{name}": field}
        )
    return leaves


def is_positional(field: FieldInfo) -> bool:
    """Whether a field is an argument without a flag."""
    return any(part is _POSITIONAL for part in field.metadata)


def section_of(annotation: Any) -> type[StrictModel] | None:
    """The section class where a field is a section; None where it is a leaf."""
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, StrictModel) else None
    )


def _split(value: Any) -> Any:
    """`"1,8"` → `["1", "8"]`.

    YAML lists and tuples pass through; pydantic then converts each item.
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _comma(item: type, metavar: str) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: tuple(item(part) for part in _split(args[0])),
        is_instance=lambda value: (
            isinstance(value, tuple) and all(isinstance(v, item) for v in value)
        ),
        str_from_instance=lambda value: [",".join(str(v) for v in value)],
    )


CommaInts = Annotated[tuple[int, ...], BeforeValidator(_split), _comma(int, "INT,INT,…")]
CommaFloats = Annotated[tuple[float, ...], BeforeValidator(_split), _comma(float, "FLOAT,FLOAT,…")]
CommaStrs = Annotated[tuple[str, ...], BeforeValidator(_split), _comma(str, "NAME,NAME,…")]


def yaml_flag(
    metavar: str, kind: type | tuple[type, ...], read: Callable[[list[str]], Any] | None = None
) -> tyro.constructors.PrimitiveConstructorSpec:
    """How a value that a file spells as a mapping or list stands on the command line.

    In YAML's short form. `kind`: what the field holds; `read`: another reading of the text."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read or from_flag,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=to_flag,
    )


def from_flag(texts: list[str]) -> Any:
    """YAML's short form, as in a file; text that is none stays text for the validation to judge."""
    try:
        return yaml.safe_load(texts[0])
    except yaml.YAMLError:
        return texts[0]


def to_flag(value: Any) -> list[str]:
    """The value as `from_flag` reads it: one word."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, StrictModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    plain = list(value) if isinstance(value, tuple) else value
    return [yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False).strip()]


_POSITIONAL = Positional[str].__metadata__[0]  # type: ignore[attr-defined]
YamlObject = Annotated[dict[str, Any], yaml_flag("{NAME: VALUE}", dict)]
