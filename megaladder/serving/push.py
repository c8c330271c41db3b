"""`megaladder push`: a model folder with its card, to a folder or to the hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from megaladder.config.rules.unread import ReadIf, unread_problems
from megaladder.data.sources.hub import hub_failures, limit_patience
from megaladder.errors import ConfigError, StorageError
from megaladder.files.models import ModelFolder, find_model
from megaladder.files.sums import write_sums
from megaladder.files.typed import typed
from megaladder.run_dir import atomic_write
from megaladder.serving.card import model_card
from megaladder.serving.settings import PushConfig

CARD = "README.md"
HUB_ID = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
SUMS = "SHA256SUMS"


def run_push(config: PushConfig) -> None:
    """The verb.

    Raises ConfigError for a target that is taken, StorageError where the hub or its network fails
    (the same command goes on: files that are there are not sent twice)."""
    repository = hub_id(config.to)
    _refuse_unread(config, repository is not None)
    folder = find_model(config.model)
    if not any(folder.hf.glob("*.safetensors")):
        raise ConfigError(f"{folder.hf}: has no *.safetensors; fix: a folder with weights")
    card = model_card(folder, config.evals, config.license)
    if repository is not None:
        _to_hub(folder, card, repository, config)
    else:
        _to_folder(folder, card, config)


def _refuse_unread(config: PushConfig, to_hub: bool) -> None:
    """Raises ConfigError for changed keys that this kind of target does not read."""
    table: tuple[ReadIf[PushConfig], ...] = (
        ReadIf(("private", "message"), lambda _run: to_hub, "--to hf://OWNER/NAME"),
        ReadIf(("force",), lambda _run: not to_hub, "--to FOLDER"),
    )
    if problems := unread_problems(config, table):
        raise ConfigError("\n".join(problems))


def hub_id(target: str) -> str | None:
    """OWNER/NAME where the hub is asked for by name; None for a folder.

    Never guessed from the words: a folder that is not there yet must not become an upload.

    >>> hub_id("hf://some-owner/some-model"), hub_id("published/model")
    ('some-owner/some-model', None)

    Raises:
        ConfigError: no repository's name after hf://.
    """
    found = HUB_ID.fullmatch(target)
    if found is None and "://" in target:
        raise ConfigError(
            f"to {target}: no repository of the hub; fix: hf://OWNER/NAME, or a folder"
        )
    return found[1] if found else None


def _to_folder(folder: ModelFolder, card: str, config: PushConfig) -> None:
    out = Path(config.to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not config.force:
        raise ConfigError(f"to {out}: not empty; fix: another folder, or --force")
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in folder.hf.iterdir() if path.is_file())
    for name in (name for name in names if name not in (CARD, SUMS)):
        partial = out / f".{name}.partial"
        shutil.copyfile(folder.hf / name, partial)
        partial.replace(out / name)
    atomic_write(out / CARD, card)
    write_sums(out, [name for name in (*names, CARD) if name != SUMS])
    print(f"{out}: {len(names)} files and {CARD}")
    print(f"next: megaladder chat {typed(out)}")


def _to_hub(folder: ModelFolder, card: str, repository: str, config: PushConfig) -> None:
    from huggingface_hub import HfApi

    limit_patience()
    api = HfApi()
    print(f"{folder.hf} → https://huggingface.co/{repository}", flush=True)
    try:
        api.create_repo(repository, private=config.private, exist_ok=True)
        api.upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo=CARD,
            repo_id=repository,
            commit_message=config.message,
        )
        done = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder.hf),
            ignore_patterns=[CARD],
            commit_message=config.message,
        )
    except hub_failures() as error:
        raise StorageError(
            f"the hub did not take {repository}: {type(error).__name__}: {error}; fix: hf auth login"
            " (or HF_TOKEN), network, then the same command; or --to FOLDER"
        ) from error
    print(f"done: {done.commit_url if hasattr(done, 'commit_url') else done}")
