"""Every error that a user can cause or must act on.

A bug is an `assert` or a plain Python exception, never one of these.

The command line prints a `MegaladderError` without a traceback and exits with its `exit_status`: 2
when the input or the configuration is wrong, 3 when a run stopped itself and can be resumed. Each
message says what, the values, and the way out: `train.jsonl:1283: expected …, found …; fix: …`.
"""

from __future__ import annotations


class MegaladderError(Exception):
    """Base of the family.

    `exit_status` is what the process exits with when nobody catches it. `told_elsewhere`: another
    rank of the job raised this, or its cause, and prints it; this one only ends with it. `reason`:
    one word for programs, in the run folder's last word."""

    exit_status = 2
    told_elsewhere = False
    reason = "input"


class ConfigError(MegaladderError, ValueError):
    """A configuration value, or a combination of values, that cannot work.

    The message names the field and the fix."""


class DataError(MegaladderError, ValueError):
    """A data file or row that cannot be used.

    The message starts with `file:line:` (1-based, physical line) where there is one."""


class ModelError(MegaladderError, ValueError):
    """A model folder that cannot be read.

    Missing files, unknown architecture, broken safetensors."""


class ConversionError(MegaladderError, ValueError):
    """Names or shapes that do not map one to one between Hugging Face and Megatron.

    The message lists them."""


class CheckpointError(MegaladderError, RuntimeError):
    """A checkpoint that is missing, corrupt or does not belong to this run.

    The message names the bad file and the last good step."""


class MissingDependencyError(MegaladderError, ImportError):
    """A feature that needs a package which is not installed.

    The message ends with the command that adds it."""


class RunStopped(MegaladderError, RuntimeError):
    """The run stopped itself in good order and can be resumed; see the subclasses for why."""

    exit_status = 3
    reason = "stopped"


class StopRequested(RunStopped):
    """A signal asked for a stop; the run is saved."""

    reason = "signal"


class RankLostError(RunStopped):
    """Another rank of the job was killed, so this one cannot go on."""

    reason = "rank_died"


class NonFiniteError(RunStopped):
    """Too many steps in a row whose loss or gradient was not finite."""

    reason = "not_finite"


class StorageError(RunStopped):
    """A disk failed: full, read-only, a quota, an input/output error. Names path, meaning, fix."""

    reason = "storage"


class EngineError(RunStopped):
    """The generation engine failed more often than it may be restarted.

    Carries the engine's own message."""

    reason = "engine"


class RewardError(MegaladderError, RuntimeError):
    """A user's reward function raised or returned something that is no finite number.

    Names the sample; never counted as reward 0."""
