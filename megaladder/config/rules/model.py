"""What a `model` section may name: a folder, or a hub id with its commit."""

from __future__ import annotations

from pathlib import Path

from megaladder.errors import ModelError
from megaladder.files.models import no_model


def require_model(path: str, revision: str | None) -> None:
    """Raises ModelError where `path` is neither a folder nor a hub id with its commit."""
    if other := no_model(path):
        raise ModelError(f"{path}: {other}")
    if Path(path).is_dir():
        if revision is None:
            return
        raise ModelError(
            f"model.revision {revision} is a commit of a hub repository, model.path {path} a folder"
            " here; fix: model.revision null, or model.path a hub id"
        )
    get = (
        "fix: make or download it (the comments on top of the run.yaml say how; hf download"
        " OWNER/NAME --local-dir FOLDER)"
    )
    here = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ModelError(
            f"{path}: no such folder{here}; {get}, or model.path a hub id like Qwen/Qwen3-14B-Base"
        )
    if revision is None:
        raise ModelError(
            f"{path}: no such folder{here}; {get}; as a hub id it needs model.revision (a commit), so"
            " that the run can be repeated"
        )
