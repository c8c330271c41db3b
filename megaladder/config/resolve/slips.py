"""What people type in the manner of other programs: hydra's key=value, one dash, a flag for the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from megaladder.config.base import StrictModel, section_of
from megaladder.errors import ConfigError
from megaladder.files.typed import typed

YAML_SUFFIXES = (".yaml", ".yml", ".json")
FILE_FLAGS = ("c", "f", "config", "config_file", "config_path", "yaml", "file")
RANKS = "fix: here it is parallel.ranks (GPUs in all); layouts: parallel.tp, pp, cp"
OTHER_WORDS = {
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus", "nproc", "nproc_per_node", "world_size"), RANKS),
    **dict.fromkeys(("dry_run", "dryrun"), "fix: megaladder check run.yaml starts nothing"),
    **dict.fromkeys(
        ("verbose", "debug", "log_level"),
        "fix: leave it out: log.txt in the run folder has every line; --quiet says less",
    ),
}
# what a file is that stands where a run.yaml is expected
OTHER_FILES = {
    **dict.fromkeys(
        (".jsonl", ".parquet", ".csv", ".tsv", ".gz", ".zst", ".arrow"),
        "is data; fix: data.path: {file} in a run.yaml, or --data.path {file}",
    ),
    **dict.fromkeys(
        (".sh", ".bash", ".py"), "is a script; fix: megaladder import-config {file} --out run.yaml"
    ),
    **dict.fromkeys(
        (".safetensors", ".gguf", ".bin", ".pt", ".pth"),
        "holds weights; fix: model.path: FOLDER in a run.yaml (a Hugging Face folder)",
    ),
    **dict.fromkeys((".toml", ".ini", ".cfg"), "is no YAML; fix: the same keys as YAML or JSON"),
}


def refuse_other_manners(args: Sequence[str], own: Sequence[str], takes_yaml: bool) -> None:
    """Raises ConfigError for words that are neither a file, a flag nor its value, with what to type.

    own: the verb's flags without dashes, in YAML's spelling."""
    problems = [said for i in range(len(args)) if (said := _manner(args, i, own, takes_yaml))]
    if problems:
        raise ConfigError("\n".join(problems))


def _manner(args: Sequence[str], i: int, own: Sequence[str], takes_yaml: bool) -> str | None:
    word = args[i]
    name, equals, value = word.partition("=")
    flag = name.lstrip("-").replace("-", "_")
    if takes_yaml and word.startswith("-") and flag in FILE_FLAGS:
        file = value or next(iter(args[i + 1 : i + 2]), "run.yaml")
        known = flag in own or not file.endswith(YAML_SUFFIXES)
        return (
            None
            if known
            else f"'{word}': the file has no flag; fix: {typed(file)} right after the verb"
        )
    if word.startswith("-") and not word.startswith("--") and flag in own:
        return f"'{word}' has one dash; fix: --{flag}{equals}{value}"
    if word.startswith("-") or _may_be_a_value(args, i):
        return None
    if equals and flag in own:
        return f"'{word}' is no flag; fix: --{flag} {value}"
    if takes_yaml and i > 0 and word.endswith((".yaml", ".yml")):
        return f"'{word}': one file is read; fix: `base: {word}` on top of {args[0]}"
    return None


def _may_be_a_value(args: Sequence[str], i: int) -> bool:
    """Whether the last flag before a word takes it: `--set seed=5`, or one more of a list."""
    flags = [word for word in args[:i] if word.startswith("-")]
    return bool(flags) and "=" not in flags[-1]


def refuse_other_file(path: str) -> None:
    """Raises ConfigError where a run.yaml was expected and the name says that it is something else."""
    file = Path(path)
    told = OTHER_FILES.get(file.suffix)
    if file.is_dir() and (file / "config.json").is_file():
        told = "is a model's folder, expected a YAML file; fix: model.path: {file} in a run.yaml"
    elif file.is_dir() and (file / "config.yaml").is_file():
        told = "is a run folder, expected a YAML file; fix: {file}/config.yaml goes on with it"
    elif told is None and "=" in path and re.fullmatch(r"[\w.]+=.*", path) and not file.exists():
        key, _, value = path.partition("=")
        told = f"is no file; fix: run.yaml first, keys as flags: --{key} {value}"
    if told is not None:
        raise ConfigError(f"{path}: {told.format(file=typed(path))}")


def meant_flag(key: str, config_class: type[StrictModel], own: Sequence[str]) -> str:
    """What an unknown flag may have meant: a section, a word of other programs, a near spelling."""
    field = config_class.model_fields.get(key)
    if field is not None and (section := section_of(field.annotation)):
        first = next(iter(section.model_fields))
        return f"fix: {key} is a section: a key of it, such as --{key}.{first}"
    if key in OTHER_WORDS and "parallel.ranks" in own:
        return OTHER_WORDS[key]
    near = difflib.get_close_matches(key, own, n=1, cutoff=0.6)
    last = [known for known in own if known.rpartition(".")[2] == key.rpartition(".")[2]]
    chosen = [*near, *last][:1]
    return f"fix: did you mean '--{chosen[0]}'?" if chosen else "fix: --help lists the flags"
