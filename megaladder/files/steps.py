"""Folders called step_N: checkpoints, exports and scores of a run."""

from __future__ import annotations

import re
from pathlib import Path

STEP = re.compile(r"step_(\d+)")


def step_of(path: Path) -> int | None:
    """N of a folder called step_N, else None."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def step_folders(folder: Path, complete: str) -> dict[int, Path]:
    """step → folder, by rising step; of those that hold the file which is written last."""
    found = {step_of(path): path for path in folder.glob("step_*") if (path / complete).is_file()}
    return dict(sorted((step, path) for step, path in found.items() if step is not None))


def committed(run: Path) -> dict[int, Path]:
    """step → complete checkpoint of a run, by rising step."""
    return step_folders(run / "checkpoints", "COMMITTED")


def exported(run: Path) -> dict[int, Path]:
    """step → complete Hugging Face folder of a run, by rising step."""
    return step_folders(run / "hf", "config.json")
