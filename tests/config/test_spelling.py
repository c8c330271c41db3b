"""One spelling: what `--print-config` and `--help` write can be typed back, in YAML and on the
command line."""

from __future__ import annotations

import re

import pytest
import yaml
from verb_keys import VerbConfig, choices, command_line, nested, spelled, verb_configs

from megaladder.config.resolve import resolve, to_yaml
from megaladder.errors import ConfigError

VERBS = {verb.name: verb for verb in verb_configs()}
# a section's field that several verbs share is tried with the last of them
ENUMS = list(
    {
        (id(field), spelled(value)): (name, key, value)
        for name, verb in VERBS.items()
        for key, field in verb.keys.items()
        for value in choices(field.annotation)
    }.values()
)


def outcome(verb: VerbConfig, args: list[str], takes_yaml: bool = True) -> str:
    """The configuration as printed, or the rules' refusal, without the origin of a value."""
    try:
        return to_yaml(resolve(verb.config_class, args, "test", takes_yaml=takes_yaml))
    except ConfigError as error:
        return re.sub(rf"(?m)^{re.escape(args[0])}:(\d+:)? ", "", str(error))


@pytest.mark.parametrize(
    ("name", "key", "value"), ENUMS, ids=[f"{name}:{key}={spelled(v)}" for name, key, v in ENUMS]
)
def test_a_named_value_is_spelled_alike_everywhere(tmp_path, name: str, key: str, value) -> None:
    verb, word = VERBS[name], spelled(value)
    assert word == word.lower() or word.isdigit()
    plain = yaml.safe_load(f"value: {word}")["value"]
    flat = {**verb.required, key: plain}
    typed = outcome(verb, command_line(verb.config_class, flat), takes_yaml=False)
    if verb.takes_yaml:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(nested(flat)))
        assert outcome(verb, [str(file)]) == typed
    if typed.startswith(next(iter(verb.config_class.model_fields))):
        assert f"{key.rpartition('.')[2]}: {word}" in typed


LONGEST_LINE = 70  # of a list of choices in one column of the help


@pytest.mark.parametrize("name", VERBS)
def test_help_shows_the_spellings(name: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    verb = VERBS[name]
    with pytest.raises(SystemExit):
        resolve(verb.config_class, ["--help"], "test", takes_yaml=False)
    text = capsys.readouterr().out.replace(" ", "")
    for field in verb.keys.values():
        words = [spelled(value) for value in choices(field.annotation)]
        listed = ",".join(words)
        if len(listed) > LONGEST_LINE:  # goes on in further lines, beside another column
            assert all(word in text for word in words), words
        else:
            assert listed in text, words
    assert "{None}" not in text
    assert "{True,False}" not in text


@pytest.mark.parametrize("name", VERBS)
def test_a_printed_configuration_reads_back_and_can_be_typed(name: str, tmp_path) -> None:
    verb = VERBS[name]
    args = command_line(verb.config_class, verb.required)
    printed = outcome(verb, args, takes_yaml=False)
    values = yaml.safe_load(printed)
    if verb.takes_yaml:
        file = tmp_path / "run.yaml"
        file.write_text(printed)
        assert outcome(verb, [str(file)]) == printed
    flat = {key: _at(values, key) for key in verb.keys}
    assert outcome(verb, command_line(verb.config_class, flat), takes_yaml=False) == printed


def _at(values: dict, key: str) -> object:
    for part in key.split("."):
        values = values[part]
    return values
