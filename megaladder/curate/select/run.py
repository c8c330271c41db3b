"""The verb `data select`.

Recipe → pool → stages → file, with the count after every stage printed and stored.

Beside `--out F`: `F.stages.json` (recipe, seed, counts, reasons, notes, hash of the ids) and
`F.dropped.jsonl` (id, place, stage and reason of every row that was dropped). A recipe with a grid
writes one set of files per combination into the folder `--out`.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder.config.sections.data import Duplicates
from megaladder.curate.rows import Row, RowWriter
from megaladder.curate.select import choose, derive, diversity, filters, similar
from megaladder.curate.select.pool import Context, PoolRow, columns_of, load_pool, written_rows
from megaladder.curate.select.recipe import Recipe, Stage, load_recipes
from megaladder.data.repeats import repeats_line
from megaladder.errors import ConfigError, DataError
from megaladder.run_dir import atomic_write, to_json

if TYPE_CHECKING:
    from megaladder.config.verbs.data import SelectConfig

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        filters.DropMissing,
        filters.Drop,
        filters.Keep,
        filters.Mark,
        filters.Dedup,
        filters.Decontaminate,
        derive.Length,
        derive.Score,
        derive.StripReasoning,
        choose.Sample,
        choose.Take,
        choose.Top,
        choose.OnePer,
        choose.Levels,
        diversity.Diverse,
        similar.Similar,
    )
}


@dataclass(frozen=True)
class StageRecord:
    """One line of the table: rows in and out of a stage, and why the others went."""

    name: str
    rows_in: int
    rows_out: int
    reasons: dict[str, int]
    published: int | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """What a recipe chose, in a seeded order, and how."""

    recipe: Recipe
    num_read: int
    rows: list[PoolRow]
    records: list[StageRecord]
    dropped: list[tuple[PoolRow, str, str]]  # row, stage, reason

    @property
    def ids_hash(self) -> str:
        """sha256 over the sorted ids: equal for equal selections."""
        return hashlib.sha256(
            "\n".join(sorted(row.id for row in self.rows)).encode("utf-8")
        ).hexdigest()


def run_select(config: SelectConfig) -> None:
    """The verb `data select`."""
    recipes = load_recipes(
        config.recipe,
        [*config.set, *([] if config.seed is None else [f"seed={config.seed}"])],
        STAGES,
    )
    single = len(recipes) == 1 and not config.only
    if config.only:
        recipes = [recipe for recipe in recipes if fnmatch.fnmatchcase(recipe.name, config.only)]
        if not recipes:
            raise ConfigError(
                f"--only {config.only}: no selection of {config.recipe} has such a name; fix: a"
                " pattern like '*_1k_*'"
            )
    targets = [
        Path(config.out) if single else Path(config.out) / f"{recipe.name}.jsonl"
        for recipe in recipes
    ]
    if not single and Path(config.out).suffix:
        raise ConfigError(
            f"--out {config.out}: {len(recipes)} selections need a folder; fix: --out FOLDER, or"
            " --set to narrow the grid"
        )
    pool, repeats = read_pool(config.path, recipes, config.duplicates)
    if repeats:
        print(repeats_line(repeats, config.duplicates))
    for recipe, target in zip(recipes, targets, strict=True):
        selection = select(config.path, [copy_row(row) for row in pool], recipe, config.workers)
        write_selection(config.path, selection, target)
        print("\n".join([*table(selection), f"→ {target} ({selection.ids_hash[:12]})"]), flush=True)


def read_pool(
    path: str, recipes: Sequence[Recipe], duplicates: Duplicates = "drop"
) -> tuple[list[PoolRow], int]:
    """The columns that the recipes need, and how many rows repeat an earlier one.

    A column that no row has is an error naming its stage."""
    needed = [
        (column, recipe, index) for recipe in recipes for column, index in recipe.needed_columns()
    ]
    columns = list(dict.fromkeys(column for column, _, _ in needed))
    pool, repeats = load_pool(path, columns, recipes[0].id_column, duplicates)
    present = {column for row in pool for column in row.values}
    for column, recipe, index in needed:
        if column not in present:
            have = ", ".join(columns_of(path))
            raise DataError(
                f"{path}: no column '{column}', which {recipe.label(index)} needs; fix: add it; the"
                f" rows have {have}"
            )
    return pool, repeats


def copy_row(row: PoolRow) -> PoolRow:
    """An independent record: selections of a grid do not see each other's added columns."""
    fresh = copy(row)
    fresh.values, fresh.added, fresh.edits = dict(row.values), {}, []
    return fresh


def select(path: str, pool: list[PoolRow], recipe: Recipe, workers: int = 1) -> Selection:
    """Runs the stages. `pool` is sorted by id. A stage that leaves nothing is an error."""
    rows, records, dropped = pool, [], []
    seen: dict[str, int] = {}
    for index, stage in enumerate(recipe.stages):
        seen[stage.name] = seen.get(stage.name, 0) + 1
        context = Context(
            path,
            recipe.seed,
            recipe.label(index),
            f"{stage.name}#{seen[stage.name]}",
            pool,
            workers,
        )
        outcome = stage.apply(rows, context)
        reasons = dict(sorted(outcome.reasons.items()))
        assert len(outcome.kept) + len(outcome.dropped) == len(rows), f"{context.label} lost rows"
        if not outcome.kept:
            raise DataError(
                f"{context.label} leaves none of {len(rows):,} rows; dropped: {reasons or 'none'};"
                " fix: that stage, or the input"
            )
        records.append(
            StageRecord(
                stage.name, len(rows), len(outcome.kept), reasons, stage.published, outcome.notes
            )
        )
        dropped += [(row, f"{index + 1} {stage.name}", reason) for row, reason in outcome.dropped]
        rows = outcome.kept
    final = Context(path, recipe.seed, "output", "output order", pool)
    return Selection(recipe, len(pool), final.shuffled(rows), records, dropped)


def write_selection(path: str, selection: Selection, target: Path) -> None:
    """The rows and the two files beside them."""
    with RowWriter(target) as writer:
        for row in written_rows(path, selection.rows):
            writer.write_fetched(row)
    with RowWriter(f"{target}.dropped.jsonl") as writer:
        writer.write_all(_dropped_rows(selection))
    atomic_write(
        f"{target}.stages.json", to_json(record(path, selection), sort_keys=True, indent=2) + "\n"
    )


def _dropped_rows(selection: Selection) -> Iterator[Row]:
    for row, stage, reason in selection.dropped:
        yield {"id": row.id, "where": row.where, "stage": stage, "reason": reason}


def record(path: str, selection: Selection) -> Row:
    """What `F.stages.json` holds: enough to run the selection again and to compare two of them."""
    recipe = selection.recipe
    return {
        "recipe": recipe.file,
        "name": recipe.name,
        "seed": recipe.seed,
        "params": dict(recipe.values),
        "file": str(path),
        "rows_read": selection.num_read,
        "rows": len(selection.rows),
        "ids_sha256": selection.ids_hash,
        "stages": [
            {
                "stage": entry.name,
                "params": stage.model_dump(mode="json", exclude_unset=True),
                "rows_in": entry.rows_in,
                "rows_out": entry.rows_out,
                "dropped": entry.reasons,
                "published": entry.published,
                "notes": entry.notes,
            }
            for entry, stage in zip(selection.records, recipe.stages, strict=True)
        ],
    }


def table(selection: Selection) -> list[str]:
    """`  drop            54,116 → 51,607   (published 51,607)`, with the reasons under it."""
    lines = [
        f"{selection.recipe.name} (seed {selection.recipe.seed}): {selection.num_read:,} rows read"
    ]
    for index, entry in enumerate(selection.records, start=1):
        published = "" if entry.published is None else f"   (published {entry.published:,})"
        notes = ", ".join(
            f"{name} {value}"
            for name, value in entry.notes.items()
            if isinstance(value, (int, float, str))
        )
        lines.append(
            f"  {index}. {entry.name:<16}{entry.rows_in:>9,} →"
            f" {entry.rows_out:,}{published}{'   ' + notes if notes else ''}"
        )
        lines += [
            f"       {count:>9,}  {reason}"
            for reason, count in sorted(entry.reasons.items(), key=lambda item: (-item[1], item[0]))
        ]
    return lines
