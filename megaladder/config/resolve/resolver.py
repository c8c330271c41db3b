"""`[run.yaml] --a.b.c value …` → one validated, frozen config.

YAML first, then a few overrides; validated once, at the end.

tyro parses the flags and prints `--help`; pydantic validates; `strict_yaml` knows the lines. Errors
are `ConfigError`s naming the key, the value, the file and line it came from, and the fix. Nothing
is read but the YAML file.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from tyro.constructors import (
    MISSING,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from megaladder.config.base import StrictModel, leaf_keys, section_of
from megaladder.config.resolve.elsewhere import hint_of, other_kind
from megaladder.config.resolve.overlay import load_layered as load_yaml
from megaladder.config.resolve.slips import meant_flag, refuse_other_manners
from megaladder.config.strict_yaml import KeyPath, YamlFile
from megaladder.errors import ConfigError

Config = TypeVar("Config", bound=StrictModel)


def resolve(
    config_class: type[Config], args: Sequence[str], prog: str, takes_yaml: bool = True
) -> Config:
    """The config that `prog args…` means.

    `--help` prints and exits 0, an unknown flag exits 2 with a suggestion (both tyro's).
    """
    rest = list(args)
    file = None
    refuse_other_manners(rest, _flags(config_class), takes_yaml)
    if takes_yaml and rest and not rest[0].startswith("-"):
        file = load_yaml(rest.pop(0))
    defaults = checked_values(config_class, file) if file else {}
    _refuse_unknown_flags(config_class, rest)
    flags = _as_tyro_flags(config_class, rest)
    _take_preset_flags(config_class, flags, defaults)
    default = _unvalidated(config_class, defaults)
    silent = _silent_sections(default, flags)
    registry = ConstructorRegistry()
    registry.struct_rule(functools.partial(_model_as_dict, whole=config_class, silent=silent))
    registry.primitive_rule(_yaml_words)
    usage = f"{prog} [run.yaml]" if takes_yaml else prog
    with registry, _a_fix_at_the_end(prog):
        # the parsed sections are dicts, see `_model_as_dict`
        values: Any = tyro.cli(
            config_class,
            args=flags,
            prog=usage,
            default=default,
            description=config_class.__doc__,
            config=(tyro.conf.EnumChoicesFromValues,),
        )
    return validate(config_class, {**silent, **values}, file)


def _silent_sections(default: StrictModel, flags: list[str]) -> dict[str, Any]:
    """Sections that no flag names and that lack nothing, with their values.

    tyro need not learn their flags, which is most of what a start without `--help` waits for."""
    if any(flag.partition("=")[0] in ("-h", "--help") for flag in flags):
        return {}
    spoken = {flag.removeprefix("--").partition(".")[0].replace("-", "_") for flag in flags}
    sections = {
        name: _as_dict(value)
        for name in type(default).model_fields
        if isinstance(value := getattr(default, name), StrictModel) and name not in spoken
    }
    return {name: values for name, values in sections.items() if not _lacks(values)}


def _lacks(values: dict[str, Any]) -> bool:
    """Whether something that is required was not given."""
    return any(
        _lacks(value) if isinstance(value, dict) else value is MISSING for value in values.values()
    )


@contextmanager
def _a_fix_at_the_end(prog: str) -> Iterator[None]:
    """tyro says what is wrong with a flag; this says what to do about it."""
    try:
        yield
    except SystemExit as end:
        if end.code == 2:
            what = "the flag or argument named above"
            print(f"megaladder: fix: {what}; `{prog} --help` explains each", file=sys.stderr)
        raise


def from_yaml(config_class: type[Config], path: str) -> Config:
    """The config that a file alone means (no command line)."""
    file = load_yaml(path)
    return validate(config_class, checked_values(config_class, file), file)


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that resolves to an equal config; keys in declaration order."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that reads back the same."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    # PyYAML writes some line separators (U+0085, U+2028) bare, and reads them back as line breaks;
    # escaped they survive
    if text.isascii() or yaml.safe_load(text) == values:
        return text
    return yaml.safe_dump(values, sort_keys=False, width=120)


def validate(
    config_class: type[Config], values: dict[str, Any], file: YamlFile | None = None
) -> Config:
    """pydantic's validation with our messages.

    Every violation on a line, with its key, its value and where it came from.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, file, values)) from None


def checked_values(config_class: type[StrictModel], file: YamlFile) -> dict[str, Any]:
    """The file's values, each converted to its field's type.

    Unknown keys and wrong types are all reported, with their lines.
    """
    problems: list[str] = []
    values = _check_section(config_class, file.values, (), _Reading(file, config_class, problems))
    if problems:
        whole = other_kind(file, config_class)
        raise ConfigError("\n".join([*([whole] if whole else []), *problems]))
    return values


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file that is being checked against a config class; what is wrong gathers in `problems`."""

    file: YamlFile
    config_class: type[StrictModel]
    problems: list[str]


def _check_section(
    model: type[StrictModel], found: Any, key: KeyPath, reading: _Reading
) -> dict[str, Any]:
    file, problems = reading.file, reading.problems
    dotted = ".".join(key)
    if not isinstance(found, dict):
        problems.append(
            f"{file.where(key)}: {dotted} is a section, found {found!r}; fix: keys below it, such"
            f" as {_example_key(model)}"
        )
        return {}
    values: dict[str, Any] = {}
    for name, value in found.items():
        here = (*key, name)
        field = model.model_fields.get(name)
        if field is None:
            problems.append(
                f"{file.where(here)}: unknown key '{'.'.join(here)}';"
                f" {_unknown(reading.config_class, model, here)}"
            )
        elif section := section_of(field.annotation):
            values[name] = _check_section(section, value, here, reading)
        else:
            try:
                values[name] = TypeAdapter(_kind(field)).validate_python(value)
            except ValidationError as error:
                said = f"{file.where(here)}: {'.'.join(here)}: {_sentence(error)}"
                problems.append(_with_fix(said))
    return values


def _unknown(config_class: type[StrictModel], model: type[StrictModel], key: KeyPath) -> str:
    """What an unknown key may have meant: one of another verb, of another trainer, a misspelt one."""
    return hint_of(".".join(key), config_class) or _suggest(model, key[:-1], key[-1])


def _with_fix(line: str) -> str:
    """A line about a value that says what to do, where the reason does not say it already."""
    known = "fix:" in line
    return line if known else f"{line}; fix: what it should be (--help shows each default)"


def _kind(field: FieldInfo) -> Any:
    """The field's type with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _example_key(model: type[StrictModel]) -> str:
    return f"`{next(iter(model.model_fields))}:`"


def _suggest(model: type[StrictModel], key: KeyPath, name: str) -> str:
    """Spellings that an unknown key may have meant.

    Near ones in this section first, then the same name in another section, then the list.
    """
    near = difflib.get_close_matches(name, list(model.model_fields), n=1, cutoff=0.6)
    if near:
        return f"fix: did you mean '{'.'.join((*key, near[0]))}'?"
    where = f"in '{'.'.join(key)}'" if key else "at the top"
    return f"fix: the keys {where} are {', '.join(model.model_fields)}"


def _sentence(error: ValidationError) -> str:
    """One clause for a leaf: what was expected, what was found.

    Of a union's several complaints the first of each kind is kept.
    """
    errors = error.errors(include_url=False, include_context=False)
    clauses = list(
        dict.fromkeys(
            item["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
            for item in errors
        )
    )
    return f"{' or '.join(clauses)}; found {errors[0]['input']!r}"


def _explain(error: ValidationError, file: YamlFile | None, values: dict[str, Any]) -> str:
    """ValidationError of the whole config → lines.

    Cross-field rules come as they are; leaves get their key and origin.
    """
    lines: list[str] = []
    for item in error.errors(include_url=False):
        key = tuple(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not key:
            lines += [_with_origin(line, file, values) for line in message.splitlines()]
            continue
        dotted = ".".join(key)
        if item["type"] == "missing":
            lines.append(f"{dotted} is required; fix: --{dotted} VALUE")
        elif item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{dotted}'")
        elif item["type"] == "value_error" and isinstance(item["input"], dict):
            lines.append(f"{dotted}.{message}")
        else:
            origin = (
                f"{file.where(key)}: "
                if file and key in file.lines and _at(file.values, key) == item["input"]
                else ""
            )
            said = f"{dotted}: {message.replace('Input should be', 'should be')}"
            lines.append(_with_fix(f"{origin}{said}{_found(item['input'])}"))
    return "\n".join(dict.fromkeys(lines))


def _found(value: Any) -> str:
    """What stood there; nothing for a section or list, whose parts the message names itself."""
    return "" if isinstance(value, (dict, list)) else f"; found {value!r}"


def _with_origin(line: str, file: YamlFile | None, values: dict[str, Any]) -> str:
    """Prefixes a rule's message with the line of the key that it starts with.

    Where the key's value comes from the file.
    """
    key = tuple(line.split(" ", 1)[0].rstrip(":").split("."))
    if not file or key not in file.lines or _at(file.values, key) != _at(values, key):
        return line
    return f"{file.where(key)}: {line}"


def _at(values: Any, key: KeyPath) -> Any:
    for part in key:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _unvalidated(model: type[StrictModel], given: dict[str, Any]) -> StrictModel:
    """An instance that may lack what is required.

    It holds the file's values, the defaults, and MISSING for what is required and not given yet."""
    values: dict[str, Any] = {}
    given = {**model.defaults(given), **given}
    for name, field in model.model_fields.items():
        if section := section_of(field.annotation):
            base = (
                {}
                if field.is_required()
                else _as_dict(field.get_default(call_default_factory=True))
            )
            values[name] = _unvalidated(
                section,
                {
                    **base,
                    **section.defaults({**base, **given.get(name, {})}),
                    **given.get(name, {}),
                },
            )
        elif name in given:
            values[name] = given[name]
        else:
            values[name] = (
                MISSING if field.is_required() else field.get_default(call_default_factory=True)
            )
    return model.model_construct(**values)


def _take_preset_flags(
    config_class: type[StrictModel], flags: list[str], values: dict[str, Any]
) -> None:
    """Puts `--section.preset NAME` among the file's values.

    It decides defaults, so it has to be known before tyro sees them.
    """
    for name, field in config_class.model_fields.items():
        section = section_of(field.annotation)
        if section is None or "preset" not in section.model_fields:
            continue
        for i, flag in enumerate(flags):
            key, equals, value = flag.partition("=")
            wanted = value if equals else "".join(flags[i + 1 : i + 2])
            # an unknown one is tyro's to refuse
            if key == f"--{name}.preset" and section.defaults({"preset": wanted}):
                values[name] = {**values.get(name, {}), "preset": wanted}


def _as_dict(model: StrictModel) -> dict[str, Any]:
    """Field → value, sections as dicts too."""
    return {
        name: _as_dict(value) if isinstance(value, StrictModel) else value
        for name in type(model).model_fields
        for value in (getattr(model, name),)
    }


def _model_as_dict(
    info: StructTypeInfo, whole: type[StrictModel], silent: Collection[str]
) -> StructConstructorSpec | None:
    """The tyro rule by which a section's flags come from its fields.

    `whole`, the configuration, is parsed without its `silent` sections.

    The parsed section is a dict, so that validation happens once, at the end."""
    model = section_of(info.type)
    if model is None:
        return None
    fields = []
    for name, field in model.model_fields.items():
        if model is whole and name in silent:
            continue
        fields.append(
            StructFieldSpec(
                name=name,
                type=_kind(field),
                default=getattr(info.default, name),
                helptext=field.description or "",
            )
        )

    def instantiate(**values: Any) -> dict[str, Any]:
        return values

    instantiate.__doc__ = model.__doc__
    return StructConstructorSpec(instantiate=instantiate, fields=tuple(fields))


# words of YAML that tyro would spell in Python's way
_WORDS: dict[Any, dict[str, Any]] = {
    type(None): {"null": None},
    bool: {"true": True, "false": False},
}


def _yaml_words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """The tyro rule for `null` and `true` on the command line.

    As in YAML, there and in `--help`."""
    words = _WORDS.get(info.type)
    if words is None:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(words) + "}",
        choices=tuple(words),
        instance_from_str=lambda args: words[args[0]],
        is_instance=lambda value: any(value is one for one in words.values()),
        str_from_instance=lambda value: [next(w for w, one in words.items() if one is value)],
    )


def _refuse_unknown_flags(config_class: type[StrictModel], args: list[str]) -> None:
    """Flags that this verb lacks, each with what it may have meant.

    A key of another verb, another trainer's name for one, a misspelt one."""
    own = _flags(config_class)
    problems = []
    for arg in args:
        name = arg.partition("=")[0]
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or key in own or name in ("--", "--help"):
            continue
        is_section = key in config_class.model_fields
        hint = None if is_section else hint_of(key, config_class)
        problems.append(f"unknown key '{key}'; {hint or meant_flag(key, config_class, own)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _flags(config_class: type[StrictModel]) -> list[str]:
    """Every flag without its dashes, in YAML's spelling.

    Keys, names that fields give themselves, the `no_` form of switches."""
    flags: list[str] = []
    for key, field in leaf_keys(config_class).items():
        section, dot, leaf = key.rpartition(".")
        given = [getattr(part, "name", None) for part in field.metadata]
        names = [leaf, *(name for name in given if isinstance(name, str))]
        names += [f"no_{leaf}"] if field.annotation is bool else []
        flags += [f"{section}{dot}{name}".replace("-", "_") for name in names]
    return flags


def _as_tyro_flags(config_class: type[StrictModel], args: list[str]) -> list[str]:
    """Turns YAML's spelling of a switch into tyro's.

    `--data.packing false` → `--data.no-packing`.
    """
    leaves = leaf_keys(config_class)
    out: list[str] = []
    i = 0
    while i < len(args):
        name, equals, value = args[i].partition("=")
        field = (
            leaves.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        )
        if field is None:
            out.append(args[i])
        elif field.annotation is bool:
            if not equals and i + 1 < len(args) and args[i + 1].lower() in ("true", "false"):
                i += 1
                value, equals = args[i], "="
            out.append(_switch(name, value.lower() if equals else "true"))
        else:
            out.append(args[i])
        i += 1
    return out


def _switch(name: str, value: str) -> str:
    """tyro's flag for a boolean: `--a.b` or `--a.no-b`."""
    if value not in ("true", "false"):
        raise ConfigError(f"{name}: should be true or false; found {value!r}")
    head, dot, leaf = name.removeprefix("--").rpartition(".")
    return f"--{head}{dot}{'' if value == 'true' else 'no-'}{leaf}"
