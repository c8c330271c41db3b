"""The command in a shell script that starts a training of TRL, LLaMA-Factory or axolotl.

Their flags are the keys of their YAML files (`--learning_rate 1e-5`), beside or in place of such a
file. Read, not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.config.strict_yaml import load_yaml, parse_value
from megaladder.errors import ConfigError

# program → the words behind it that train
TRAINS = {
    "trl": ("sft", "grpo"),
    "llamafactory-cli": ("train",),
    "lmf": ("train",),
    "axolotl": ("train",),
}
TRL_OTHERS = ("dpo", "kto", "reward", "rloo", "cpo", "orpo", "bco", "online_dpo", "nash_md", "ppo")
SWIFT = {"swift": ("sft", "rlhf", "pt"), "megatron": ("sft", "rlhf", "pt")}
LAUNCHERS = ("accelerate", "torchrun", "python", "python3", "deepspeed")
FILES = (".yaml", ".yml", ".json")
# where a shell's command ends: at another one, or where its output goes
ENDS = re.compile(r"[|;&]|&&|\|\||[\d&]?>.*|<+")
# of a launcher: how many processes, each with a GPU
PROCESSES = ("--num_processes", "--nproc_per_node", "--nproc-per-node", "--num_gpus")
ALL_ARGUMENTS = ("$@", "$*", "${@}", "${*}")
# TRL's own default: what makes flags without a key of GRPO a GRPO run
GRPO_DEFAULT = {"num_generations": 8}


@dataclass(frozen=True, slots=True)
class Launched:
    """A training that a command starts: its YAML file, and its flags under the file's names."""

    program: str
    file: str | None
    flags: dict[str, Any]


def launched(words: Sequence[str]) -> Launched | None:
    """The training that the words of a command start; None for another command.

    Raises:
        ConfigError: of a tool or a method that is not known here; an argument that the script does
            not set.
    """
    words = list(_of_one_command(words))
    for at, word in enumerate(words[:-1]):
        behind = words[at + 1]
        if behind in TRAINS.get(Path(word).name, ()):
            return _parsed(f"{Path(word).name} {behind}", words[at + 2 :])
        if behind in SWIFT.get(word, ()):
            raise ConfigError(
                f"{word} {behind}: a command of ms-swift, whose flags are not known here; fix: write"
                " the run as a file of ours: `megaladder examples` lists some to begin with"
            )
        if word == "trl" and behind in TRL_OTHERS:
            raise ConfigError(f"trl {behind}: not built here; fix: trl sft and trl grpo are")
    return _of_a_script(words)


def _of_a_script(words: Sequence[str]) -> Launched | None:
    """`accelerate launch … train.py --model_name_or_path …`; other programs are no training."""
    if not any(Path(word).name in LAUNCHERS for word in words):
        return None
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        return None
    found = _parsed(Path(words[at]).name, words[at + 1 :])
    if found.file is None and "model_name_or_path" not in found.flags:
        return None
    # the name that a TRL file has for it
    processes = _processes(words[:at])
    if processes is not None and "stage" not in found.flags:
        found.flags.setdefault("num_processes", processes)
    return found


def _processes(words: Sequence[str]) -> int | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in PROCESSES and (value or following).isdecimal():
            return int(value or following)
    return None


def _of_one_command(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if ENDS.fullmatch(word):
            return
        yield word


def _parsed(program: str, words: Sequence[str]) -> Launched:
    """Flags as transformers' HfArgumentParser reads them, `key=value` as LLaMA-Factory does."""
    file, flags = None, {}
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            while not equals and at < len(words) and not words[at].startswith("--"):
                values.append(words[at])
                at += 1
            flags[key.replace("-", "_")] = _value([one for one in values if not _is_all(one)])
        elif word.endswith(FILES) and file is None:
            file = word
        elif "=" in word:
            key, _, value = word.partition("=")
            flags[key] = parse_value(value)
        elif not _is_all(word):
            raise ConfigError(
                f"{program} … {word}: expected --key value, key=value or a YAML file; fix: write"
                " the script's own value in its place"
            )
    return Launched(program, flags.pop("config", file), flags)


def _is_all(word: str) -> bool:
    return word in ALL_ARGUMENTS


def _value(values: Sequence[str]) -> Any:
    """None given: a switch that is on. Several: a list."""
    found = [parse_value(value.rstrip(",")) for value in values]
    return True if not found else found[0] if len(found) == 1 else found


def keys_of(script: Path, found: Launched) -> dict[str, Any]:
    """Keys of the command's YAML file, as sections, with its flags over them.

    Raises:
        ConfigError: the file is not below the folder, nor beside the script or above it.
    """
    values: dict[str, Any] = {}
    if found.file is not None:
        folders = (Path(), *script.resolve().parents)
        file = next((path for path in (f / found.file for f in folders) if path.is_file()), None)
        if file is None:
            raise ConfigError(
                f"{script}: {found.program} reads {found.file}, which is not there; fix: go to the"
                " folder that the script is started from, or give that file itself"
            )
        values = dict(load_yaml(str(file)).values)
    named = {key.removeprefix("no_"): value for key, value in found.flags.items()}
    off = {key.removeprefix("no_") for key in found.flags if key.startswith("no_")}
    values |= {key: False if key in off else value for key, value in named.items()}
    is_grpo = "grpo" in found.program
    return {**(GRPO_DEFAULT if is_grpo else {}), **values}
