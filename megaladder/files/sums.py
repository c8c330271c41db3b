"""`SHA256SUMS` in folders of ours: what `sha256sum -c` reads, written last.

A folder from elsewhere has none, and nothing to compare with. No torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megaladder.errors import DataError, ModelError
from megaladder.process.storage import fsync_folder
from megaladder.run_dir import atomic_write

SUMS = "SHA256SUMS"


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """The digests of the files `names`, hashed on all cores."""
    ordered = sorted(names)
    digests = _hash_all([folder / name for name in ordered])
    lines = (f"{digest}  {name}\n" for digest, name in zip(digests, ordered, strict=True))
    atomic_write(folder / SUMS, "".join(lines))


def forget_sums(folder: Path) -> None:
    """A file that they list is about to be written anew."""
    if (folder / SUMS).exists():
        (folder / SUMS).unlink()
        fsync_folder(folder)


def refuse_changed(file: str | Path) -> None:
    """Raises DataError where the folder's list names this file, which is another one now."""
    file = Path(file)
    written = read_sums(file.parent).get(file.name) if file.is_file() else None
    if written is not None and written != _sha256(file):
        raise DataError(
            f"{file}: its content has changed since it was written ({SUMS}); fix: evaluate again,"
            " or copy the folder again"
        )


def read_sums(folder: Path) -> dict[str, str]:
    """File name → digest; empty where the folder has none."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(maxsplit=1) for line in text.splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and "/" not in pair[1]}


def export_damage(folder: Path) -> str | None:
    """The first file that is not what was exported, in words; None for a good folder."""
    sums = read_sums(folder)
    # a damaged name may be longer than any file's: Path.is_file would raise
    missing = next((name for name in sums if not os.path.isfile(folder / name)), None)
    if missing is not None:
        return f"{folder / missing}: missing, though {SUMS} lists it"
    found = _hash_all([folder / name for name in sums])
    for (name, written), digest in zip(sums.items(), found, strict=True):
        if digest != written:
            return f"{folder / name}: its content has changed since the export ({SUMS})"
    return None


def refuse_damaged(folder: Path) -> None:
    """Raises ModelError where a file of an exported folder is missing or has changed."""
    problem = export_damage(folder)
    if problem is not None:
        raise ModelError(
            f"{problem}; fix: export or copy the folder again, or delete {folder / SUMS} if you"
            " changed the file yourself"
        )


def _hash_all(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_sha256, files))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
