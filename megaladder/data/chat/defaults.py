"""Arguments and the date of a chat template, written into its text.

The text is all that decides a rendering then: it is hashed with the data, exported with the weights,
and whoever renders it later, on another day or in another program, gets the tokens of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import Any

from megaladder.errors import ConfigError

# of strftime; a frozen day begins at midnight
_DIRECTIVES = (*(f"%{letter}" for letter in "aAbBdjmyYeFDHIMSp"), "%-d", "%-m")
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")


def with_defaults(template: str, arguments: Mapping[str, Any], day: date) -> str:
    """`template` with `arguments` as what it reads where none are given, and with `day` as today.

    A template that reads no clock and no arguments stays as it is, and so does one whose day was
    frozen before. Raises ConfigError for an argument that the template does not read.
    """
    head = "".join(_default(template, name, value) for name, value in sorted(arguments.items()))
    if "strftime_now" in template and "macro strftime_now" not in template:
        head += _frozen_clock(template, day)
    return head + template


@lru_cache(maxsize=16)
def names_in(template: str) -> frozenset[str]:
    """Every name in the expressions of a Jinja text; its plain text does not count.

    Raises ConfigError for text that is none."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return frozenset(value for _, kind, value in Environment().lex(template) if kind == "name")
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"expected a chat template in Jinja, found one that breaks off at line {error.lineno}:"
            f" {error.message}; fix: model.chat_template: a Jinja file"
        ) from error


def _default(template: str, name: str, value: Any) -> str:
    if name in _RESERVED or name not in names_in(template):
        raise ConfigError(
            f"model.chat_template_kwargs: expected arguments that the chat template reads, found"
            f" {name!r}; fix: correct the name, or remove it"
        )
    # `+%}}`: what follows keeps its line breaks
    return f"{{% set {name} = {name} if {name} is defined else {_literal(value)} +%}}"


def _literal(value: Any) -> str:
    """A JSON value as Jinja spells it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return json.dumps(value)


def _frozen_clock(template: str, day: date) -> str:
    """A macro in the place of the clock that renderers offer under this name."""
    used = [directive for directive in _DIRECTIVES if directive in template]
    replaced = "".join(f" | replace({name!r}, {day.strftime(name)!r})" for name in used)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro +%}}"
