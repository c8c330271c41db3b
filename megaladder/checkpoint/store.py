"""Checkpoint folders of a run.

Written completely or not at all, checked when read, thinned by a retention rule.

`checkpoints/step_N/` holds megatron-core's dist_checkpointing files (readable at any TP·PP·DP),
`trainer.json` (step, loader, metrics), `hf/` (config and tokenizer of the model, so that the folder
converts by itself), `integrity.json` (sha256 and size of every file) and, last of all, `COMMITTED`.
A folder without that marker does not exist for `committed_steps` and is removed by the next start.

The manifest tells damage, not forgery: whoever can write the files can write it too. What runs no
code although it is a pickle: `plain_data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megaladder.errors import CheckpointError, StorageError
from megaladder.files.shapes import as_number
from megaladder.process.faults import fault_point
from megaladder.process.storage import fsync_folder, make_folder, replacing

MARKER = "COMMITTED"
INTEGRITY = "integrity.json"
TRAINER = "trainer.json"
_STEP = re.compile(r"step_(\d+)")
_MAX_NAME = 200  # far more than a file of ours has
_FREE_SPACE_MARGIN = 1.2


@dataclass(frozen=True, slots=True)
class Retention:
    """Which committed steps stay.

    The newest `keep_last`, the listed `keep_steps`, and the `keep_best` lowest held-out losses."""

    keep_last: int = 2
    keep_steps: tuple[int, ...] = ()
    keep_best: int | None = None

    def kept(self, held_out_loss_by_step: dict[int, float | None]) -> set[int]:
        """Steps to keep out of the committed ones.

        None = no held-out loss was measured at that step."""
        steps = sorted(held_out_loss_by_step)
        keep = set(steps[-self.keep_last :]) | (set(self.keep_steps) & set(steps))
        if self.keep_best:
            measured = sorted(
                (loss, step) for step, loss in held_out_loss_by_step.items() if loss is not None
            )
            keep |= {step for _, step in measured[: self.keep_best]}
        return keep


def step_dir(root: Path, step: int) -> Path:
    return root / f"step_{step}"


def committed_steps(root: Path) -> list[int]:
    """Steps with a commit marker, ascending. Links and files that are called so do not count."""
    return sorted(step for path, step in _step_folders(root) if (path / MARKER).is_file())


def _step_folders(root: Path) -> Iterator[tuple[Path, int]]:
    """The real folders `step_N`: a link may lead to somebody else's data."""
    for path in root.iterdir() if root.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            yield path, int(match[1])


def strangers(root: Path) -> list[str]:
    """What is called like a checkpoint and is none of ours: a link, or a plain file."""
    if not root.is_dir():
        return []
    ours = {path for path, _ in _step_folders(root)}
    return sorted(
        f"{path} is a {'link' if path.is_symlink() else 'file'}, not a checkpoint folder: left alone"
        for path in root.iterdir()
        if _STEP.fullmatch(path.name) and path not in ours
    )


def remove_uncommitted(root: Path) -> list[str]:
    """Deletes what a killed save left behind and returns the folders' names. Main rank only."""
    stale = [path for path, _ in _step_folders(root) if not (path / MARKER).is_file()]
    for path in stale:
        shutil.rmtree(path)
    return sorted(path.name for path in stale)


def _delete(path: Path) -> None:
    """Removes a checkpoint, its marker first, on the disk too: what has one is whole."""
    (path / MARKER).unlink(missing_ok=True)
    fsync_folder(path)
    shutil.rmtree(path)


def prepare_folder(path: Path, needed_bytes: int) -> None:
    """Creates an empty `path` for a save. Main rank only.

    Raises:
        StorageError: the disk has less than 1.2 × `needed_bytes` free; the message gives the
        numbers.
    """
    if path.is_symlink() or path.is_file():
        raise CheckpointError(f"{path}: is in the way of a checkpoint; fix: move it elsewhere")
    if path.exists():
        _delete(path)
    make_folder(path)
    free, needed = shutil.disk_usage(path).free, int(needed_bytes * _FREE_SPACE_MARGIN)
    if free < needed:
        path.rmdir()
        raise StorageError(
            f"{path}: the checkpoint needs about {needed:,} bytes, the disk has {free:,} free;"
            " earlier checkpoints are untouched; fix: free space, lower checkpoint.keep_last, or"
            " move run_dir, then start the same command again"
        )


def _files(path: Path) -> list[Path]:
    return sorted(
        p
        for p in path.rglob("*")
        if p.is_file()
        and not p.is_symlink()
        and p.name not in (MARKER, INTEGRITY)
        # notes beside a conversion: an earlier one's is there, and written anew after the commit
        and not any(part.startswith(".") for part in p.relative_to(path).parts[:-1])
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(path: Path) -> None:
    """Hashes and syncs every file of a complete checkpoint and its name, then sets the marker.

    Main rank only, after all ranks wrote."""
    manifest = {}
    files = _files(path)
    for file in files:
        sync_file(file)
        manifest[str(file.relative_to(path))] = {
            "sha256": _sha256(file),
            "bytes": file.stat().st_size,
        }
    for folder in {path.parent, *(file.parent for file in files)}:
        fsync_folder(folder)
    write_json(path / INTEGRITY, manifest)
    fault_point("before_commit")
    write_json(
        path / MARKER,
        {"files": len(manifest), "bytes": sum(entry["bytes"] for entry in manifest.values())},
    )


def write_json(path: Path, value: Any) -> None:
    """Atomic: a reader sees the old file or the new one."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def verify(path: Path, *, part: int = 0, parts: int = 1) -> None:
    """Compares every `parts`-th file, from `part` on, with the manifest.

    Ranks share the work that way.

    Raises:
        CheckpointError: not committed, or a file is missing, truncated or changed; names the file
        and the last good step.
    """
    if not (path / MARKER).is_file():
        raise CheckpointError(
            f"{path}: no {MARKER} marker: the save was cut short; {_way_out(path)}"
        )
    manifest = _read_manifest(path)
    for name in sorted(manifest)[part::parts]:
        file, expected = path / name, manifest[name]
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; {_way_out(path)}")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"{file}: expected {expected['bytes']:,} bytes, found {file.stat().st_size:,};"
                f" {_way_out(path)}"
            )
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(
                f"{file}: its content has changed since it was saved (sha256 differs);"
                f" {_way_out(path)}"
            )


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """File name → sha256 and bytes; names stay in the folder."""
    try:
        manifest = json.loads((path / INTEGRITY).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            parts = PurePosixPath(name).parts
            if not parts or {"..", "/"} & set(parts) or "\0" in name or len(name) > _MAX_NAME:
                raise ValueError(f"the name {name[:80]!r}")
            if not isinstance(entry["sha256"], str) or not isinstance(entry["bytes"], int):
                raise TypeError(f"what it says of {name}")
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path / INTEGRITY}: cannot be read ({type(error).__name__}: {str(error)[:200]});"
            f" {_way_out(path)}"
        ) from None


def _way_out(path: Path) -> str:
    match = _STEP.fullmatch(path.name)
    older = [step for step in committed_steps(path.parent) if match and step < int(match[1])]
    if older:
        return (
            f"last good step before it: {older[-1]}; fix: --checkpoint.resume"
            f" {step_dir(path.parent, older[-1])}"
        )
    return (
        "there is no earlier step; fix: start again in a new run_dir, or with --checkpoint.resume"
        " never"
    )


def read_trainer(path: Path) -> dict[str, Any]:
    """The small plain part of a checkpoint: step, loader state, held-out loss, layout."""
    try:
        found = json.loads((path / TRAINER).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("step"), int):
            raise ValueError("no object with an integer `step`")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path / TRAINER}: cannot be read ({str(error)[:200]}); {_way_out(path)}"
        ) from None


def _held_out_loss(path: Path) -> float | None:
    """None of a damaged checkpoint too: that is told by who would begin with it."""
    try:
        return as_number(read_trainer(path).get("held_out_loss"))
    except CheckpointError:
        return None


def apply_retention(root: Path, retention: Retention) -> list[int]:
    """Deletes committed steps that the rule does not keep; returns them.

    Main rank only. The marker goes first."""
    losses = {step: _held_out_loss(step_dir(root, step)) for step in committed_steps(root)}
    doomed = sorted(set(losses) - retention.kept(losses))
    for step in doomed:
        _delete(step_dir(root, step))
    return doomed


def copy_files(sources: Iterable[Path], target: Path) -> None:
    make_folder(target)
    for source in sources:
        shutil.copyfile(source, target / source.name)
