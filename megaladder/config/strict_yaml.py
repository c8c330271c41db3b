"""YAML as people expect it, with the line of every key.

The core schema of YAML 1.2; duplicate keys are errors.

PyYAML's own loader reads `1e-5` as a string, `no` as false, `1:30` as 90 and lets a repeated key
win silently. No model knowledge here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from megaladder.errors import ConfigError

KeyPath = tuple[str, ...]
_PLAIN_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
# far more than any file that people write
MAX_VALUES, MAX_DEPTH = 100_000, 50
_TOO_DEEP = f"values inside values, more than {MAX_DEPTH} deep; fix: write them flat"
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_TAGS_ARE_NOT_READ = "tags such as !!python are not read"


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: `values` as plain dicts, lists and scalars.

    `lines[("optim", "lr")]` = 1-based line of that key.
    """

    path: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, key: KeyPath) -> str:
        """`run.yaml:12` for the key, or of its nearest ancestor that stands in the file.

        The file name alone otherwise.
        """
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return self.path


# implicit types of the YAML 1.2 core schema: tag, pattern, first characters
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


def _decimal_int(loader: Any, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # `010` is ten, as in YAML 1.2


def _core_loader(base: Any) -> Any:
    """A safe loader of PyYAML with the implicit types of the core schema only.

    No dates, no yes/no, no sexagesimals, no merge keys.
    """
    loader: Any = type("CoreLoader", (base,), {"yaml_implicit_resolvers": {}})
    for tag, pattern, first in _CORE_SCHEMA:
        loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first
        )
    loader.add_constructor("tag:yaml.org,2002:int", _decimal_int)
    return loader


def _quick_loader() -> Any:
    """The same around libyaml's parser, where PyYAML was built with it.

    Its events are put together in Python: libyaml's own composer goes as deep as the values lie,
    and ends the process where its stack ends."""
    if not yaml.__with_libyaml__:
        return _PLAIN
    libyaml: Any = yaml.CSafeLoader

    class Composed(Composer, libyaml):
        def __init__(self, text: str) -> None:
            libyaml.__init__(self, text)
            Composer.__init__(self)

    return _core_loader(Composed)


class _Bounded(yaml.SafeLoader):
    """The time of its scanner grows with the square of the depth of brackets."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > MAX_DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token)


_PLAIN = _core_loader(_Bounded)
_QUICK = _quick_loader()


def load_yaml(path: str | Path) -> YamlFile:
    """Reads a file whose top level is a mapping.

    Every fault is a ConfigError that starts with `file:line:`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; fix: the path of a run.yaml; flags begin with two dashes"
            " (--data.path …)"
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path}: is a folder, expected a YAML file; fix: give the file itself"
        ) from None
    except PermissionError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); fix: its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {error.start}); fix: save it as UTF-8"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, path: str) -> YamlFile:
    """`load_yaml` for text in hand; `path` only names it in messages."""
    try:
        loader, root = _composed(text)
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {error.problem}; fix: the syntax at that line"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: not valid YAML: {str(error).splitlines()[0]}; fix: remove the character"
        ) from None
    if root is None:
        raise ConfigError(
            f"{path}: is empty, expected keys such as `model:` and `data:`; fix:"
            " `megaladder examples` lists files to begin with"
        )
    lines: dict[KeyPath, int] = {}
    values = _Builder(loader, path, lines).build(root, ())
    if not isinstance(values, dict):
        found = type(values).__name__
        raise ConfigError(
            f"{path}:{root.start_mark.line + 1}: expected a mapping (`key: value` lines) at the"
            f" top, found a {found}; fix: `megaladder examples` lists files to begin with"
        )
    return YamlFile(path, values, lines)


def _composed(text: str) -> tuple[Any, Any]:
    """A loader and the node of the one document in `text`, None for an empty one.

    libyaml reads it several times as fast; what that refuses, the parser in Python accepts, or
    refuses in its words.
    """
    try:
        loader = _QUICK(text)
        return loader, loader.get_single_node()
    except (yaml.YAMLError, UnicodeError):
        loader = _PLAIN(text)
        return loader, loader.get_single_node()


def parse_value(text: str) -> Any:
    """A value as a file would hold it; text that is no YAML stays text, `None` is nothing."""
    try:
        loader, root = _composed(text)
        value = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return None if value == "None" else value


@dataclass
class _Builder:
    """Turns YAML nodes into values and notes their lines.

    Refuses duplicate or non-string keys and self-containing anchors.
    """

    loader: Any
    path: str
    lines: dict[KeyPath, int]

    def __post_init__(self) -> None:
        self.open_nodes: set[int] = set()
        self.num_values = 0

    def build(self, node: yaml.Node, key: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self._bound(line, len(key))
        if id(node) in self.open_nodes:
            raise ConfigError(
                f"{self.path}:{line}: an anchor contains itself; fix: write the value out"
            )
        self.open_nodes.add(id(node))
        try:
            if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_COLLECTIONS:
                raise ConfigError(
                    f"{self.path}:{line}: tag {node.tag}; fix: a plain value ({_TAGS_ARE_NOT_READ})"
                )
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*key, str(i))) for i, item in enumerate(node.value)]
            return self._scalar(node, line)
        finally:
            self.open_nodes.discard(id(node))

    def _bound(self, line: int, depth: int) -> None:
        """A few anchors inside each other stand for more values than any memory holds."""
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise ConfigError(
                f"{self.path}:{line}: more than {MAX_VALUES:,} values once its anchors are written"
                " out; fix: fewer of them"
            )
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self.path}:{line}: {_TOO_DEEP}")

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(
                    f"{self.path}:{line}: a key must be a plain word, found a {key_node.id}; fix:"
                    " quote it"
                )
            name = self._whole(key_node.value, line)
            if name in first_line:
                dotted = ".".join((*key, name))
                before = first_line[name]
                raise ConfigError(
                    f"{self.path}:{line}: key '{dotted}' stands in line {before} already; fix: keep"
                    " one of them"
                )
            first_line[name] = line
            self.lines[(*key, name)] = line
            values[name] = self.build(value_node, (*key, name))
        return values

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
            raise ConfigError(
                f"{self.path}:{line}: {reason}; fix: a plain value ({_TAGS_ARE_NOT_READ})"
            ) from None
        return self._whole(value, line)

    def _whole(self, value: Any, line: int) -> Any:
        """Half of a surrogate pair (`"\\ud800"`) is no text, and could not be written again."""
        if isinstance(value, str) and not value.isascii() and _HALF_PAIR.search(value):
            raise ConfigError(
                f"{self.path}:{line}: half of a UTF-16 surrogate pair; fix: the character itself"
            )
        return value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; two mappings under one key are merged.

    >>> merge({"optim": {"lr": 1.0, "eps": 2.0}, "a": 1}, {"optim": {"lr": 3.0}})
    {'optim': {'lr': 3.0, 'eps': 2.0}, 'a': 1}
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
