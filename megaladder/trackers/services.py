"""The trackers that there are.

A resumed run continues its curve by the identity in its folder; another run of the same name, or
one that starts anew, never does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megaladder.config.sections.shared import LogSection
from megaladder.errors import MissingDependencyError
from megaladder.events.run import Run
from megaladder.trackers.tracker import Row, Tracker, run_identity

STEP = "train_step"


def chosen_trackers(log: LogSection, folder: Path, resumed_step: int) -> dict[str, Tracker]:
    """The trackers that a run's configuration asks for, by name.

    resumed_step: steps already done; 0 or less = the run starts anew, with a new identity."""
    identity = run_identity(folder, anew=resumed_step <= 0)
    found: dict[str, Tracker] = {}
    if log.wandb:
        found["wandb"] = WandbTracker(log, identity)
    if log.tensorboard:
        found["tensorboard"] = TensorBoardTracker(max(resumed_step, 0) + 1)
    if log.mlflow:
        found["mlflow"] = MlflowTracker(log, identity)
    if log.trackio:
        found["trackio"] = TrackioTracker(log, identity)
    return found


class WandbTracker(Tracker):
    """Weights & Biases.

    Its login comes from its own environment or netrc; a resumed run continues the same curve."""

    def __init__(self, log: LogSection, identity: str):
        self._config, self._identity = log, identity

    def on_start(self, run: Run) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=self._config.group,
            tags=list(self._config.tags) or None,
            name=run.folder.name,
            id=self._identity,
            resume="allow",
            dir=str(run.folder),
            config=run.config,
        )
        # W&B drops rows below its own step, which a run that lost its last steps would send again
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, STEP: step})

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        import wandb

        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        self._run.log({name: wandb.Table(columns=columns, data=data), STEP: step})

    def on_end(self, run: Run, exit_status: int) -> None:
        self._run.finish(exit_code=exit_status)


class TensorBoardTracker(Tracker):
    """Event files under run_dir/tensorboard.

    Rows past a resumed step are purged by TensorBoard itself."""

    def __init__(self, first_step: int):
        self._first_step = first_step

    def on_start(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=self._first_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._writer.add_text(name, as_markdown(rows), step)

    def on_end(self, run: Run, exit_status: int) -> None:
        self._writer.close()


class MlflowTracker(Tracker):
    """MLflow, at the address of its own MLFLOW_TRACKING_URI.

    The run's identity is a tag, by which a resumed run is found again."""

    def __init__(self, log: LogSection, identity: str):
        self._config, self._identity = log, identity

    def on_start(self, run: Run) -> None:
        try:
            import mlflow
        except ImportError:
            raise _missing("mlflow") from None
        self._mlflow = mlflow
        mlflow.set_experiment(self._config.project)
        wanted = f"tags.megaladder_id = '{self._identity}'"
        found = mlflow.search_runs(
            experiment_names=[self._config.project], filter_string=wanted, output_format="list"
        )
        mlflow.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=run.folder.name,
            tags={"megaladder_id": self._identity, **dict.fromkeys(self._config.tags, "")},
        )
        if not found:
            mlflow.log_dict(run.config, "config.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._mlflow.log_dict([dict(row) for row in rows], f"{name}/step_{step}.json")

    def on_end(self, run: Run, exit_status: int) -> None:
        self._mlflow.end_run("FAILED" if exit_status else "FINISHED")


class TrackioTracker(Tracker):
    """trackio: local-first, the same calls as Weights & Biases."""

    def __init__(self, log: LogSection, identity: str):
        self._config, self._identity = log, identity

    def on_start(self, run: Run) -> None:
        try:
            import trackio
        except ImportError:
            raise _missing("trackio") from None
        self._trackio = trackio
        trackio.init(
            project=self._config.project,
            name=f"{run.folder.name}-{self._identity[:6]}",
            group=self._config.group,
            config=run.config,
            resume="allow",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        import pandas

        self._trackio.log({name: self._trackio.Table(dataframe=pandas.DataFrame(rows))}, step=step)

    def on_end(self, run: Run, exit_status: int) -> None:
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
