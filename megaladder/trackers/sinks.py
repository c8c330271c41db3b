"""The trackers.

A run keeps its identity in its folder: a resumed run continues its curve, another run of the same
name, or one that starts anew, never does."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megaladder.config.sections.shared import LogSection
from megaladder.errors import DataError, MissingDependencyError
from megaladder.run_dir import read_object, write_object

IDENTITY = "tracker.json"
STEP = "train_step"


Row = Mapping[str, Any]


class Sink(Protocol):
    """A place outside the run folder that metrics go to.

    Called from one thread (`courier.Courier`); whatever these raise is reported once, then the sink
    is dropped."""

    def start(self, run_name: str, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers after `step` updates; a resumed run may give the last ones again."""

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Rows with the same columns, to read: rollouts, scores."""

    def finish(self, exit_status: int) -> None: ...


def chosen_sinks(log: LogSection, folder: Path, resumed_step: int) -> dict[str, Sink]:
    """The trackers that a run's configuration asks for, by name.

    resumed_step: steps already done; 0 or less = the run starts anew, with a new identity."""
    sinks: dict[str, Sink] = {}
    identity = run_identity(folder, anew=resumed_step <= 0)
    if log.wandb:
        sinks["wandb"] = WandbSink(log, folder, identity)
    if log.tensorboard:
        sinks["tensorboard"] = TensorBoardSink(folder, max(resumed_step, 0) + 1)
    if log.mlflow:
        sinks["mlflow"] = MlflowSink(log, identity)
    if log.trackio:
        sinks["trackio"] = TrackioSink(log, identity)
    return sinks


def run_identity(folder: Path, anew: bool) -> str:
    """16 hex digits kept in the run folder; drawn again where the run starts anew."""
    path = folder / IDENTITY
    if path.is_file() and not anew:
        try:
            return str(read_object(path, "nothing, the curve begins anew")["id"])
        except (DataError, KeyError) as error:  # it costs the old curve, not the run
            print(f"warning: {error}", file=sys.stderr)
    identity = uuid.uuid4().hex[:16]
    write_object(path, {"id": identity})
    return identity


class WandbSink:
    """Weights & Biases.

    Its login comes from its own environment or netrc; a resumed run continues the same curve."""

    def __init__(self, log: LogSection, folder: Path, identity: str):
        self._log, self._folder, self._identity = log, folder, identity

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run = wandb.init(
            project=self._log.project,
            entity=self._log.entity,
            group=self._log.group,
            tags=list(self._log.tags) or None,
            name=run_name,
            id=self._identity,
            resume="allow",
            dir=str(self._folder),
            config=dict(config),
        )
        # W&B drops rows below its own step, which a run that lost its last steps would send again
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, STEP: step})

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        import wandb

        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        self._run.log({name: wandb.Table(columns=columns, data=data), STEP: step})

    def finish(self, exit_status: int) -> None:
        self._run.finish(exit_code=exit_status)


class TensorBoardSink:
    """Event files under run_dir/tensorboard.

    Rows past a resumed step are purged by TensorBoard itself."""

    def __init__(self, folder: Path, first_step: int):
        self._folder, self._first_step = folder, first_step

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=self._first_step or None
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._writer.add_text(name, as_markdown(rows), step)

    def finish(self, exit_status: int) -> None:
        self._writer.close()


class MlflowSink:
    """MLflow, at the address of its own MLFLOW_TRACKING_URI.

    The run's identity is a tag, by which a resumed run is found again."""

    def __init__(self, log: LogSection, identity: str):
        self._log, self._identity = log, identity

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        try:
            import mlflow
        except ImportError:
            raise _missing("mlflow") from None
        self._mlflow = mlflow
        mlflow.set_experiment(self._log.project)
        wanted = f"tags.megaladder_id = '{self._identity}'"
        found = mlflow.search_runs(
            experiment_names=[self._log.project], filter_string=wanted, output_format="list"
        )
        mlflow.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=run_name,
            tags={"megaladder_id": self._identity, **dict.fromkeys(self._log.tags, "")},
        )
        if not found:
            mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._mlflow.log_dict([dict(row) for row in rows], f"{name}/step_{step}.json")

    def finish(self, exit_status: int) -> None:
        self._mlflow.end_run("FAILED" if exit_status else "FINISHED")


class TrackioSink:
    """trackio: local-first, the same calls as Weights & Biases."""

    def __init__(self, log: LogSection, identity: str):
        self._log, self._identity = log, identity

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        try:
            import trackio
        except ImportError:
            raise _missing("trackio") from None
        self._trackio = trackio
        trackio.init(
            project=self._log.project,
            name=f"{run_name}-{self._identity[:6]}",
            group=self._log.group,
            config=dict(config),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackio.log(dict(metrics), step=step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        import pandas

        self._trackio.log({name: self._trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def finish(self, exit_status: int) -> None:
        self._trackio.finish()


def as_markdown(rows: Sequence[Row]) -> str:
    """A table that TensorBoard renders.

    >>> print(as_markdown([{"a": 1, "b": "x|y"}]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [
        [str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"log.{package} needs the package {package}; add it: pip install 'megaladder[{package}]'"
    )
