"""Where training rows come from: one source, or a mixture of several by weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megaladder.config.base import StrictModel, from_flag, yaml_flag

Duplicates = Literal["drop", "keep", "error"]


def _path_from_flag(texts: list[str]) -> Any:
    """A path as it stands; a list in YAML's short form, [a.jsonl, b.jsonl]."""
    return tuple(from_flag(texts)) if texts[0].startswith("[") else texts[0]


Paths = Annotated[str | tuple[str, ...], yaml_flag("PATH|[PATH,…]", (str, tuple), _path_from_flag)]
FieldMap = Annotated[dict[str, str], yaml_flag("{NAME: COLUMN}", dict)]


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
    MixturePart, BeforeValidator(_as_part), yaml_flag("{source: PATH, weight: FLOAT}", MixturePart)
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
