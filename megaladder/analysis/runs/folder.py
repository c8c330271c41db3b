"""The small files of a training run's folder, as an analysis reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaladder.analysis.tables import Warnings, read_growing
from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError, DataError
from megaladder.files.shapes import as_number
from megaladder.run_dir import refuse_changed_yaml


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.yaml as plain values; {} where there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        refuse_changed_yaml(path)
        return load_yaml(path).values
    except ConfigError as error:
        raise DataError(str(error)) from None


def read_held_out(folder: Path, warnings: Warnings) -> dict[int, float]:
    """Step → held-out loss, nats a token; {} where none was measured."""
    path = folder / "held_out.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return {}
    rows, note = read_growing(path)
    if note:
        warnings.add(note)
    return {
        row["step"]: loss
        for _, row in rows
        if isinstance(row.get("step"), int)
        and (loss := as_number(row.get("held_out_loss"))) is not None
    }
