"""Where training rows come from: one source, or a mixture of several by weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import BeforeValidator, Field

from megaladder.config.base import StrictModel

Duplicates = Literal["drop", "keep", "error"]


def _from_flag(texts: list[str]) -> Any:
    """YAML's short form, as in a file; text that is none stays text for the validation to judge."""
    try:
        return yaml.safe_load(texts[0])
    except yaml.YAMLError:
        return texts[0]


def _to_flag(value: Any) -> list[str]:
    plain = (
        value.model_dump(mode="json", exclude_defaults=True)
        if isinstance(value, StrictModel)
        else list(value)
        if isinstance(value, tuple)
        else value
    )
    if isinstance(plain, str):
        return [plain]
    return [yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()]


def _path_from_flag(texts: list[str]) -> Any:
    """A path as it stands; a list in YAML's short form, [a.jsonl, b.jsonl]."""
    return tuple(_from_flag(texts)) if texts[0].startswith("[") else texts[0]


Paths = Annotated[
    str | tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|[PATH,…]",
        instance_from_str=_path_from_flag,
        is_instance=lambda value: isinstance(value, (str, tuple)),
        str_from_instance=_to_flag,
    ),
]
FieldMap = Annotated[
    dict[str, str],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{NAME: COLUMN}",
        instance_from_str=_from_flag,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_to_flag,
    ),
]


class MixturePart(StrictModel):
    """One source of a mixture."""

    source: Paths
    """As data.path."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Its share of every epoch is weight / sum of weights. null (then in all parts) = its number
    of samples: the parts in their own proportions."""
    config: str | None = None
    """As data.config."""
    split: str | None = None
    """As data.split."""
    revision: str | None = None
    """As data.revision."""
    format: str = "auto"
    """As data.format."""
    fields: FieldMap = Field(default_factory=dict)
    """As data.fields."""


def _as_part(value: Any) -> Any:
    if isinstance(value, str):
        return MixturePart(source=value)
    return MixturePart.model_validate(value) if isinstance(value, Mapping) else value


AnyPart = Annotated[
    MixturePart,
    BeforeValidator(_as_part),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{source: PATH, weight: FLOAT}",
        instance_from_str=_from_flag,
        is_instance=lambda value: isinstance(value, MixturePart),
        str_from_instance=_to_flag,
    ),
]


class SourceSection(StrictModel):
    """Which rows are read, and how."""

    path: Paths = ""
    """File (.jsonl, .json, .csv, .parquet, .arrow, .txt; each also .gz, .zst), folder of shards,
    glob, URL or hub id, or a list of them. Required without data.mixture."""
    config: str | None = None
    """Configuration of a hub data set that has several, e.g. main of openai/gsm8k."""
    split: str | None = None
    """Split of a folder or hub data set. null = train, else the only one."""
    revision: str | None = None
    """Commit of the hub data set; required for a hub id."""
    mixture: tuple[AnyPart, ...] = ()
    """Several sources in place of data.path, e.g. {source: a.jsonl, weight: 0.7}. Every epoch has
    as many samples as all parts together and takes each part's share of them, exact to a row; a
    part starts again when all of it has been seen."""
    format: str = "auto"
    """Row layout: auto = recognise it (two that fit are an error naming both), or one of the names
    that `megaladder data stats` and that error list."""
    fields: FieldMap = Field(default_factory=dict)
    """Columns under other names than the layouts have: {question: problem} takes `question` from
    the column `problem`; a column inside another is written with a dot."""
    duplicates: Duplicates = "drop"
    """Rows that repeat an earlier one (same id, same content): left out, kept, or an error.
    Counted in each case."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A malformed row: stop with file:line, or skip it, count it by reason, and stop above 1 % of
    the rows."""

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The sources with their settings: the mixture's, else the one of `path`."""
        if self.mixture:
            return self.mixture
        return (
            MixturePart(
                source=self.path,
                config=self.config,
                split=self.split,
                revision=self.revision,
                format=self.format,
                fields=self.fields,
            ),
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is named, in order."""
        sources = [part.source for part in self.parts]
        return tuple(
            path for one in sources for path in ((one,) if isinstance(one, str) else one) if path
        )
