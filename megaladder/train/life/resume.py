"""Checks that a later start in a run folder is still the same run.

The folder remembers its configuration; a start compares it with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaladder import parallel, platform
from megaladder.config.resolve import to_yaml
from megaladder.config.resume import compare_for_resume
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import ModelSection
from megaladder.errors import ConfigError
from megaladder.finished import forget_finished
from megaladder.run_dir import RunDir, model_fingerprint


def check_same_run(config: RunConfig, run: RunDir, *, resuming: bool) -> list[str]:
    """Compares with the run folder's `config.yaml`.

    Returns the allowed changes, as text. Collective.

    Raises:
        ConfigError: a key that must match differs (model, data, seed …); the message lists key, old
        and new value.
    """
    verdict: tuple[list[str], list[str]] = ([], [])
    if parallel.is_main() and resuming:
        old = run.read_config()
        if old is not None:
            verdict = compare_for_resume(old, config.model_dump(mode="json"))
    errors, changes = parallel.broadcast(verdict)
    if errors:
        raise ConfigError(
            f"{config.run_dir} was started with other settings and cannot be resumed with"
            " these:\n  " + "\n  ".join(errors) + "\nfix: restore them, or choose another run_dir"
        )
    return changes


def write_run_identity(
    config: RunConfig, run: RunDir, identity: dict[str, Any], step: int, changes: Sequence[str]
) -> None:
    """Stores the resolved configuration and the hashes of what went in. Main rank writes.

    `config.yaml` is the configuration of now; `config_history.jsonl` keeps every one that a start
    after `step` steps began with, and what had changed.
    """
    if parallel.is_main():
        forget_finished(run)
        if changes or run.read_config() is None:
            run.append_history(step, changes, config.model_dump(mode="json"))
        run.write_config(to_yaml(config))
        run.write_fingerprint(
            {
                **identity,
                "model": _start_of(config.model),
                "device": platform.device_name() or "CPU",
            }
        )


def _start_of(model: ModelSection) -> dict[str, Any]:
    """The weights that the run began with: by their content, and where they lay."""
    found = model_fingerprint(model.path, model.revision)
    here = Path(model.path).is_dir()
    return found | ({"path": str(Path(model.path).resolve())} if here else {})
