"""`megaladder push`: a model folder with its card, to a folder or to the hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from megaladder.config.rules.unread import ReadIf, unread_problems
from megaladder.errors import ConfigError, StorageError
from megaladder.run_dir import atomic_write, write_sums
from megaladder.serving.card import model_card
from megaladder.serving.folder import ModelFolder, find_model
from megaladder.serving.settings import PushConfig

CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SUMS = "SHA256SUMS"


def run_push(config: PushConfig) -> None:
    """The verb.

    Raises ConfigError for a target that is taken, StorageError where the hub or its network fails
    (the same command goes on: files that are there are not sent twice)."""
    to_hub = is_hub_id(config.to)
    _refuse_unread(config, to_hub)
    folder = find_model(config.model)
    if not any(folder.hf.glob("*.safetensors")):
        raise ConfigError(f"{folder.hf}: has no *.safetensors; fix: a folder with weights")
    card = model_card(folder, config.evals, config.license)
    if to_hub:
        _to_hub(folder, card, config)
    else:
        _to_folder(folder, card, config)


def _refuse_unread(config: PushConfig, to_hub: bool) -> None:
    """Raises ConfigError for changed keys that this kind of target does not read."""
    table: tuple[ReadIf[PushConfig], ...] = (
        ReadIf(("private", "message"), lambda _run: to_hub, "--to OWNER/NAME of the hub"),
        ReadIf(("force",), lambda _run: not to_hub, "--to FOLDER"),
    )
    if problems := unread_problems(config, table):
        raise ConfigError("\n".join(problems))


def is_hub_id(target: str) -> bool:
    """OWNER/NAME where no folder OWNER is here.

    >>> is_hub_id("some-owner/some-model"), is_hub_id("./a/b"), is_hub_id("/tmp/b")
    (True, False, False)
    """
    return HUB_ID.fullmatch(target) is not None and not Path(target).parent.exists()


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
    print(f"next: megaladder chat {out}")


def _to_hub(folder: ModelFolder, card: str, config: PushConfig) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    print(f"{folder.hf} → https://huggingface.co/{config.to}", flush=True)
    try:
        api.create_repo(config.to, private=config.private, exist_ok=True)
        api.upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo=CARD,
            repo_id=config.to,
            commit_message=config.message,
        )
        done = api.upload_folder(
            repo_id=config.to,
            folder_path=str(folder.hf),
            ignore_patterns=[CARD],
            commit_message=config.message,
        )
    # ValueError: an answer that is no JSON, a card that the hub refuses
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise StorageError(
            f"the hub did not take {config.to}: {type(error).__name__}: {error}; fix: hf auth login"
            " (or HF_TOKEN), network, then the same command; or --to FOLDER"
        ) from error
    print(f"done: {done.commit_url if hasattr(done, 'commit_url') else done}")
