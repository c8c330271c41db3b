"""What a run folder holds of one step: its settings, its row, and where a replay can begin.

Nothing is written, and no torch is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megaladder.checkpoint import lineage, store
from megaladder.config.grpo import GrpoConfig
from megaladder.config.sections.run import RunConfig
from megaladder.config.sft import SftConfig
from megaladder.errors import CheckpointError, DataError
from megaladder.files.surroundings import environment
from megaladder.log import spans
from megaladder.run_dir import RunDir, read_jsonl, read_object
from megaladder.train.rl.records import stored_steps

# they differ from one computation to the next, or count what lies between two rows
_NOT_OF_THE_STEP = {"memory_bytes", "tokens_per_s", "mfu", "flops_per_s", "total_flops"}
_FIX = "copy the run folder again"
_FIRST = ("loss", "grad_norm", "lr")  # what is compared, and so named, first


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Step `step` as the run recorded it.

    config: the settings of that step. row: its object of metrics.jsonl. checkpoint: the nearest
    earlier one, None for the model that the run began from; `after`: the steps that it has.
    """

    folder: Path
    step: int
    config: RunConfig
    row: Mapping[str, Any]
    checkpoint: Path | None
    after: int


def read_step(folder: Path, step: int) -> RecordedStep:
    """Finds everything that a replay of `step` needs.

    Raises:
        DataError: no run, or no row of that step.
        CheckpointError: nothing is left to begin from, or rollouts are missing; says which steps
        can be replayed.
    """
    row = _row(folder, step)
    since, config = _settings(folder, step)
    begin = _beginning(folder, step, since)
    if begin is None:
        raise CheckpointError(
            f"{folder}: step {step} cannot be replayed: no checkpoint of step {since} to {step - 1}"
            f" is left; steps that can be: {_replayable(folder) or 'none'}; fix: one of them, or"
            " keep more checkpoints next time (checkpoint.keep_steps, keep_last)"
        )
    checkpoint, after = begin
    _check_rollouts(folder, config, range(after + 1, step + 1))
    return RecordedStep(folder, step, config, row, checkpoint, after)


def compared(found: Mapping[str, Any]) -> list[str]:
    """The quantities of a step's row that a replay compares."""
    return [key for key in found if key not in _NOT_OF_THE_STEP and not key.endswith("_s")]


def differences(
    recorded: Mapping[str, Any], found: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(quantity, recorded, found) of each that is not equal to the bit.

    Seconds and memory are not compared, nor what the replay does not compute (evaluations).
    """
    keys = compared(found)
    ordered = [*(key for key in _FIRST if key in keys), *(key for key in keys if key not in _FIRST)]
    missing = object()
    pairs = [(key, recorded.get(key, missing), found[key]) for key in ordered]
    return [
        (key, "not recorded" if then is missing else then, now)
        for key, then, now in pairs
        if then is missing or then != now
    ]


def changed_surroundings(folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """`torch 2.9.0 → 2.10.0`: what the run was made of that is not so now.

    identity: hashes of data and tokenizer as they are now."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        return ["no fingerprint.json to compare with"]
    stored = read_object(path, _FIX)
    before, now = _flat(stored.pop("environment", {})), _flat(environment())
    before |= {key: stored[key] for key in identity if key in stored}
    now |= json.loads(json.dumps(dict(identity)))
    keys = [key for key in now if key != "argv" and before.get(key) != now[key]]
    return [f"{key} {_shown(before.get(key))} → {_shown(now[key])}" for key in keys]


def recorded_threads(folder: Path) -> str | None:
    """OMP_NUM_THREADS of the run's ranks: sums of floats depend on it. None where it was not set."""
    path = folder / "fingerprint.json"
    stored = read_object(path, _FIX).get("environment") if path.is_file() else None
    return stored.get("omp_num_threads") if isinstance(stored, dict) else None


def _row(folder: Path, step: int) -> dict[str, Any]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: not found; fix: the folder of an SFT or GRPO run")
    rows = {row.get("step"): row for row in read_jsonl(path)}
    if step not in rows:
        steps = sorted(number for number in rows if isinstance(number, int))
        has = f"steps {steps[0]} to {steps[-1]}" if steps else "no steps"
        raise DataError(f"{path}: no row of step {step}, it has {has}; fix: --step N of these")
    return rows[step]


def _settings(folder: Path, step: int) -> tuple[int, RunConfig]:
    """The configuration that was in force in `step`, and after which step it began."""
    history = folder / "config_history.jsonl"
    rows = list(read_jsonl(history)) if history.is_file() else []
    if not all(isinstance(row.get("after_step"), int) and "config" in row for row in rows):
        raise DataError(f"{history}: expected rows with after_step and config; fix: {_FIX}")
    rows = [row for row in rows if row["after_step"] < step]
    config = rows[-1]["config"] if rows else RunDir(folder, writer=False).read_config()
    if not isinstance(config, dict):
        raise DataError(f"{folder}: no config.yaml; fix: the folder of an SFT or GRPO run")
    kind = GrpoConfig if "grpo" in config else SftConfig
    try:
        return (rows[-1]["after_step"] if rows else 0), kind.model_validate(config)
    except ValidationError as error:
        raise DataError(
            f"{folder}: its configuration is not valid: {str(error)[:500]}; fix: {_FIX}"
        ) from None


def _beginning(folder: Path, step: int, since: int) -> tuple[Path | None, int] | None:
    """The nearest checkpoint before `step` that has at least `since` steps.

    None as path: the model; None: nothing is left."""
    root = folder / "checkpoints"
    kept = [saved for saved in store.committed_steps(root) if since <= saved < step]
    if kept:
        return store.step_dir(root, kept[-1]), kept[-1]
    line = lineage.read_lineage(folder).current
    if line.origin is None or line.fork != lineage.NOTHING:
        return None if since else (None, 0)
    origin = Path(line.origin)
    if not (origin / store.MARKER).is_file():
        return None
    after = int(store.read_trainer(origin)["step"])
    return (origin, after) if since <= after < step else None


def _replayable(folder: Path) -> str:
    steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if row.get("step", 0) > 0]
    return spans([n for n in steps if _beginning(folder, n, _settings(folder, n)[0]) is not None])


def _check_rollouts(folder: Path, config: RunConfig, steps: range) -> None:
    if not isinstance(config, GrpoConfig):
        return
    if config.grpo.mode == "rollout_only":
        raise DataError(f"{folder}: grpo.mode rollout_only trains nothing; fix: a run that trains")
    if config.rollout.engine == "replay":
        return
    there = set(stored_steps(folder / "rollouts"))
    missing = [step for step in steps if step not in there]
    if missing:
        raise CheckpointError(
            f"{folder / 'rollouts'}: no rollouts of steps {spans(missing)}, which the replay needs;"
            " fix: copy them back, or another --step"
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Package versions beside the rest."""
    if not isinstance(values, Mapping):
        return {}
    rest = {key: value for key, value in values.items() if key != "packages"}
    packages = values.get("packages")
    return {**(packages if isinstance(packages, Mapping) else {}), **rest}


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
