"""What a benchmark is: the shipped entries (`registry.yaml`) and own ones, by file.

No data is read here.

An own benchmark is a file of rows in any published layout, or a YAML file beside the data with the
keys of an entry and `data: rows.jsonl`. A registry of one's own has `benchmarks:` with an entry a
name, as the shipped one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megaladder.config.base import StrictModel
from megaladder.config.resolve import checked_values, validate
from megaladder.config.strict_yaml import YamlFile, load_yaml
from megaladder.data.sources.find import COMPRESSIONS, SUFFIXES
from megaladder.errors import ConfigError
from megaladder.types import Kind

YAML_SUFFIXES = (".yaml", ".yml")
SPLITS = ("test", "train", "dev", "val", "validation", "eval", "data", "rows")
OWN_PLACE = "own"


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_texts(value: Any) -> Any:
    return tuple(str(item) for item in value) if isinstance(value, list) else value


Places = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Ids = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class HubSource(StrictModel):
    """A data set on the hub."""

    repo: str
    """Repository, owner/name."""
    config: Places | None = None
    """Configuration, where there are several; a list is read in turn."""
    split: str = "test"
    """The split that is scored."""
    files: Places | None = None
    """Files of the repository to read in place of config and split, JSON lines."""
    revision: str | None = None
    """Commit. null = the newest when it is read; which one that was is recorded."""


class Decoding(StrictModel):
    """How answers are drawn; flags of `eval` override it."""

    n: int | None = None
    """Samples per problem."""
    temperature: float | None = None
    """0 = greedy."""
    top_p: float | None = None
    """Nucleus."""
    top_k: int | None = None
    """0 = all tokens."""
    presence_penalty: float | None = None
    """Of tokens that are there already."""
    frequency_penalty: float | None = None
    """Of tokens, by how often they are there."""
    max_tokens: int | None = None
    """Longest answer."""


class BenchmarkSpec(StrictModel):
    """One benchmark; the meaning of each key with examples is at the top of `registry.yaml`."""

    name: str = ""
    """What results are filed under. Own ones: the file's name."""
    title: str = ""
    """A line for `--benchmark list`."""
    runner: Literal["ours", "lm_eval", "judge"] = "ours"
    """Who runs it."""
    shape: Literal["layout", "plain", "options", "gpqa", "yes_no", "code"] = "plain"
    """How a row becomes question and gold answer; layout = as rows of its published layout do."""
    kind: Kind | None = None
    """The verifier. null = by the row (shape layout), else math."""
    data: Places | None = None
    """Own ones: file, folder or glob of the rows, relative to the YAML file."""
    files: tuple[str, ...] = ()
    """Looked for under --data-dir, in this order."""
    hub: HubSource | None = None
    """Where the rows are published."""
    fields: dict[str, Places] = Field(default_factory=dict)
    """Our name: the columns that may hold it; the first that is there counts."""
    prompt: str | None = None
    """{question}, {options} and every name under `fields` may stand in it. null = by the kind."""
    decoding: dict[str, Any] = Field(default_factory=dict)
    """Published decoding."""
    groups: dict[str, Ids] = Field(default_factory=dict)
    """Problem ids per named group, scored separately."""
    option_style: str = "{letter}. {text}"
    """How an option is written."""
    option_separator: str = "\n"
    """Between options."""
    task: str | None = None
    """lm-eval's name, for runner lm_eval."""
    judge: Literal["harm", "reward"] | None = None
    """Who judges, for runner judge."""
    aliases: tuple[str, ...] = ()
    """Names that studies have for it."""


class OwnBenchmark(BenchmarkSpec):
    """An entry that somebody else than us writes: its decoding is checked like everything else."""

    decoding: Decoding = Decoding()  # type: ignore[assignment]


@cache
def registry() -> dict[str, BenchmarkSpec]:
    """The shipped entries by name, in the file's order."""
    return {
        name: _complete(
            name, BenchmarkSpec(**{**_shipped()["defaults"], **entry}), entry.get("decoding", {})
        )
        for name, entry in _shipped()["benchmarks"].items()
    }


@cache
def _shipped() -> dict[str, Any]:
    return load_yaml(Path(__file__).with_name("registry.yaml")).values


def prompt_of(kind: Kind) -> str:
    """The template of a question whose benchmark names none."""
    return _shipped()["prompts"].get(kind, "{question}")


def _complete(name: str, spec: BenchmarkSpec, decoding: Mapping[str, Any]) -> BenchmarkSpec:
    """The entry with its name filled in, and what it leaves open."""
    kind: Kind | None = spec.kind or (None if spec.shape == "layout" else "math")
    by_kind = prompt_of(kind) if kind and spec.shape != "layout" else None
    return spec.model_copy(
        update={
            "name": name,
            "title": spec.title or name,
            "files": tuple(path.replace("{name}", name) for path in spec.files),
            "decoding": {**_shipped()["defaults"]["decoding"], **decoding},
            "kind": kind,
            "prompt": spec.prompt or by_kind,
        }
    )


def find_benchmark(name: str, own_registry: str | None = None) -> BenchmarkSpec:
    """The benchmark that `name` means: a name, an alias, a file of rows or a YAML file.

    Raises:
        ConfigError: nothing of that name, with the nearest ones; or a file that describes none.
    """
    known = {**registry(), **(read_registry(own_registry) if own_registry else {})}
    if name in known:
        return known[name]
    for spec in known.values():
        if name in spec.aliases:
            return spec
    if name.endswith(YAML_SUFFIXES):
        return read_benchmark(name)
    if _is_data(name):
        return _of_rows(name)
    near = difflib.get_close_matches(name.replace("-", "_").lower(), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}" if near else f"one of {', '.join(known)}"
    raise ConfigError(
        f"unknown benchmark {name!r}; fix: {hint}; or a file of your own (problems.jsonl, or a YAML"
        " file that names data and fields)"
    )


def find_benchmarks(names: Sequence[str], own_registry: str | None = None) -> list[BenchmarkSpec]:
    """Each benchmark once, in order. Raises ConfigError for two files of one name."""
    found: dict[str, BenchmarkSpec] = {}
    for name in dict.fromkeys(names):
        spec = find_benchmark(name, own_registry)
        if found.setdefault(spec.name, spec) != spec:
            raise ConfigError(
                f"benchmark {name} has the name {spec.name}, as {found[spec.name].data} has; fix:"
                f" a YAML file with `name: …` and `data: {name}` for one of them"
            )
    return list(found.values())


def local_files(names: Sequence[str], own_registry: str | None, data_dir: str | None) -> list[Path]:
    """The files on this machine that decide what these benchmarks are."""
    files = [Path(name) for name in (*names, own_registry) if name]
    for spec in find_benchmarks([name for name in names if name != "list"], own_registry):
        for place in spec.data or ():
            files += map(
                Path, glob(f"{place}/**" if Path(place).is_dir() else place, recursive=True)
            )
        if data_dir:
            files += [Path(data_dir) / name for name in spec.files]
            files += Path(data_dir).glob(f"{spec.name}*/*")
    return list(dict.fromkeys(path for path in files if path.is_file()))


def _is_data(name: str) -> bool:
    plain = next((name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end)), name)
    return Path(name).exists() or Path(plain).suffix.lower() in SUFFIXES


def _of_rows(path: str) -> BenchmarkSpec:
    """A file (folder, glob) of rows, read as its layout says."""
    return _complete(own_name(path), BenchmarkSpec(shape="layout", data=(path,)), {})


def own_name(path: str) -> str:
    """A name for the benchmark in a file: its stem, with the folder's where the stem says nothing.

    >>> own_name("data/exam.jsonl"), own_name("data/exam/test.jsonl.gz"), own_name("gsm8k.jsonl")
    ('exam', 'exam-test', 'gsm8k-own')
    """
    stem = Path(path).name.split(".")[0] or Path(path).name
    folder = Path(path).absolute().parent.name
    name = f"{folder}-{stem}" if stem in SPLITS and folder else stem
    name = re.sub(r"[^\w.-]+", "_", name).strip("_")
    return f"{name}-{OWN_PLACE}" if name in registry() else name


def read_benchmark(path: str) -> BenchmarkSpec:
    """The one benchmark that a YAML file describes."""
    file = _read_yaml("benchmark", path)
    if "benchmarks" in file.values:
        names = ", ".join(file.values["benchmarks"] or {})
        raise ConfigError(
            f"{path}: holds a registry of benchmarks ({names}), expected one; fix: --registry"
            f" {path} --benchmark NAME"
        )
    return _own_entry(own_name(path), file)


def read_registry(path: str) -> dict[str, BenchmarkSpec]:
    """Own entries by name. Names of shipped ones are refused: a score would not say which it is."""
    file = _read_yaml("registry", path)
    entries = file.values.get("benchmarks")
    if not isinstance(entries, dict) or not entries or len(file.values) > 1:
        raise ConfigError(
            f"{path}: expected the one key `benchmarks` with an entry a name below it, found"
            f" {', '.join(file.values)}; fix: benchmarks: {{my_exam: {{data: exam.jsonl}}}}"
        )
    taken = sorted(entries.keys() & registry().keys())
    if taken:
        raise ConfigError(
            f"{file.where(('benchmarks', taken[0]))}: {taken[0]} is the name of a shipped benchmark;"
            f" fix: another name, such as {taken[0]}_{OWN_PLACE}"
        )
    return {name: _own_entry(name, _part(file, name)) for name in entries}


def _read_yaml(key: str, path: str) -> YamlFile:
    """The file that the key names. Raises ConfigError with the key's name where it is not there."""
    if not Path(path).exists():
        raise ConfigError(f"{key} {path}: no such file; fix: the path of a YAML file")
    return load_yaml(path)


def _part(file: YamlFile, name: str) -> YamlFile:
    """One entry of a registry as a file of its own, on its own lines."""
    values = file.values["benchmarks"][name]
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file.where(('benchmarks', name))}: {name} is a section, found {values!r}; fix: keys"
            " below it, such as `data: exam.jsonl`"
        )
    lines = {key[2:]: line for key, line in file.lines.items() if key[:2] == ("benchmarks", name)}
    return YamlFile(file.path, values, {key: line for key, line in lines.items() if key})


def _own_entry(name: str, file: YamlFile) -> BenchmarkSpec:
    own = validate(OwnBenchmark, checked_values(OwnBenchmark, file), file)
    if not (own.data or own.hub or own.files or own.task):
        raise ConfigError(
            f"{file.path}: {own.name or name} has no rows; fix: data: rows.jsonl (relative to this"
            " file), or hub: {repo: owner/name, split: test}"
        )
    if own.fields and not {"question", "gold"} <= own.fields.keys() and own.runner != "judge":
        raise ConfigError(
            f"{file.where(('fields',))}: fields names {', '.join(own.fields)}; fix: both question and"
            " gold, e.g. {question: Problem, gold: Answer}, or leave fields out (rows of a published"
            " layout are recognised)"
        )
    given = own.model_dump(exclude_unset=True, exclude={"decoding", "data"})
    if "shape" not in given:
        given["shape"] = "plain" if own.fields else "layout"
    if own.data:
        folder = Path(file.path).parent
        given["data"] = tuple(str(folder / Path(path).expanduser()) for path in own.data)
    spec = BenchmarkSpec(**given)
    return _complete(own.name or name, spec, own.decoding.model_dump(exclude_none=True))


def describe_registry(own_registry: str | None = None) -> str:
    """The table that `--benchmark list` prints, and how an own one is named."""
    known = {**registry(), **(read_registry(own_registry) if own_registry else {})}
    rows = [(spec.name, spec.title, _how(spec)) for spec in known.values()]
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width[column]) for column, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    aliases = [f"{alias} = {spec.name}" for spec in known.values() for alias in spec.aliases]
    return "\n".join(
        [
            *lines,
            f"also by these names: {', '.join(aliases)}",
            "own ones: --benchmark problems.jsonl, --benchmark my_exam.yaml (data, fields, prompt,"
            " kind, decoding), --registry my_benchmarks.yaml --benchmark NAME",
        ]
    )


def _how(spec: BenchmarkSpec) -> str:
    decoding = spec.decoding
    drawn = (
        "greedy"
        if not decoding["temperature"]
        else f"T {decoding['temperature']} top-p {decoding['top_p']}"
    )
    verified = f"verified as {spec.kind}" if spec.kind else "verified by the row"
    ours = f"n {decoding['n']}, {drawn}, {decoding['max_tokens']} tokens, {verified}"
    return {
        "ours": ours,
        "lm_eval": f"lm-eval's task {spec.task} on our engine",
        "judge": f"n {decoding['n']}, {drawn}, judged ({spec.judge})",
    }[spec.runner]
