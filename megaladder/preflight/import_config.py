"""`megaladder import-config`: a file of TRL, LLaMA-Factory, axolotl or verl as a run.yaml of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import Positional, StrictModel
from megaladder.config.foreign.convert import convert
from megaladder.config.foreign.meanings import TITLES, recognise, trainers
from megaladder.config.foreign.read import read_foreign
from megaladder.config.foreign.work import CONFIGS, Conversion, Finding, nested
from megaladder.config.resolve import validate
from megaladder.config.resolve.resolver import dump_yaml
from megaladder.errors import ConfigError
from megaladder.files.typed import typed
from megaladder.run_dir import atomic_write

ORDER = ("to do", "refused", "mapped", "default", "no effect")


class ImportConfig(StrictModel):
    """A file of another trainer as a run.yaml that `check` takes, with a line for every key.

    Mapped, refused and why, without effect here, left to do. Example: megaladder import-config
    trl_sft.yaml --out run.yaml --gpus 8"""

    file: Positional[str]
    """YAML file of TRL, LLaMA-Factory, axolotl or verl; or the shell script that starts one of
    them (it is read, not run)."""
    overrides: Positional[tuple[str, ...]] = ()
    """key=value in the other tool's names, put over the file's, e.g. trainer.nnodes=2."""
    out: str | None = None
    """File to write. null = the YAML goes to standard output, the lines about it to standard
    error."""
    source: Literal["auto", "trl", "llamafactory", "axolotl", "verl"] = "auto"
    """Whose file it is. auto = by its keys."""
    gpus: Annotated[int, Field(ge=1)] | None = None
    """GPUs that train, which batches per device are multiplied by. null = as the file says."""
    force: bool = False
    """Replace an existing file."""


def run_import_config(config: ImportConfig) -> None:
    """The verb.

    Raises ConfigError for a file of none of these tools, or of a method that is not built."""
    if config.out and Path(config.out).exists() and not config.force:
        raise ConfigError(f"out {config.out}: there already; fix: --force, or another name")
    flat = read_foreign(config.file, config.overrides)
    name = recognise(flat) if config.source == "auto" else config.source
    if name is None:
        known = ", ".join(title for key, title in TITLES.items() if key != "transformers")
        raise ConfigError(
            f"{config.file}: has no keys of {known}; fix: --source NAME, or `megaladder check"
            f" {config.file}` if it is a run.yaml of ours"
        )
    work = convert(trainers()[name], flat, config.gpus)
    text = _as_yaml(config, work)
    lines = _lines(work)
    if config.out is None:
        print(text, end="")
        print("\n".join(lines), file=sys.stderr)
        return
    atomic_write(Path(config.out), text)
    print(
        "\n".join([*lines, f"{config.out}: written", f"next: megaladder check {typed(config.out)}"])
    )


def _as_yaml(config: ImportConfig, work: Conversion) -> str:
    values = nested(work.ours, work.method)
    try:
        validate(CONFIGS[work.method], values)
    except ConfigError as error:
        raise ConfigError(
            f"{config.file} is read, and what it says does not go together here; fix: an override"
            f" in its own names (key=value) for\n{error}"
        ) from None
    head = (
        f"# From {Path(config.file).name} ({TITLES[work.trainer.name]}) by megaladder import-config."
        f"\n#   megaladder {work.method} FILE\n"
    )
    todo = "".join(f"# to do: {one.text}\n" for one in work.findings if one.verdict == "to do")
    return head + todo + dump_yaml(values)


def _lines(work: Conversion) -> list[str]:
    counts = {verdict: sum(one.verdict == verdict for one in work.findings) for verdict in ORDER}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    listed = sorted(work.findings, key=lambda one: ORDER.index(one.verdict))
    return [f"a {TITLES[work.trainer.name]} file for {work.method}: {summary}", *map(_line, listed)]


def _line(finding: Finding) -> str:
    return f"  {finding.verdict:<10} {finding.key}  →  {finding.text}"
