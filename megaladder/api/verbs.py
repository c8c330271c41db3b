"""The functions of the API, one a verb: configuration in, verb run, result read from its folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from megaladder.api.results import Evaluation
from megaladder.api.start import run_verb
from megaladder.config.base import StrictModel
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml, validate
from megaladder.config.sft import SftConfig
from megaladder.config.verbs.analysis import ReportConfig
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.errors import MegaladderError
from megaladder.events.callback import Callback
from megaladder.events.follower import Follower
from megaladder.events.run import Run, Score, score_of
from megaladder.files.steps import step_folders, step_of

Config = TypeVar("Config", bound=StrictModel)
Keys = Mapping[str, Any]


def sft(config: SftConfig | Keys | str | Path, *, callbacks: Sequence[Callback] = ()) -> Run:
    """Supervised fine-tuning: `megaladder sft`. A run that is there is resumed, a finished one read.

    config: a run.yaml, its keys as a mapping, or an `SftConfig`.

    Raises:
        ConfigError, MegaladderError: input or configuration is wrong; the message names the fix.
        RunStopped: stopped in good order; the same call goes on.
    """
    return _train("sft", _resolved(SftConfig, config), callbacks)


def grpo(config: GrpoConfig | Keys | str | Path, *, callbacks: Sequence[Callback] = ()) -> Run:
    """GRPO and its relatives: `megaladder grpo`. Engine and ranks are started as there.

    config: a run.yaml, its keys as a mapping, or a `GrpoConfig`. Raises as `sft` does.
    """
    return _train("grpo", _resolved(GrpoConfig, config), callbacks)


def evaluate(config: EvalConfig | Keys | str | Path) -> Evaluation:
    """Benchmarks of a model, or of every kept step of a run: `megaladder eval`.

    config: its keys, of which `model: {path: …}` (or `run_dir`) and `benchmark` are needed. Samples
    that are there already are not drawn again. Raises as `sft` does.
    """
    resolved = _resolved(EvalConfig, config)
    run_verb("eval", resolved, lambda: None)
    return Evaluation(resolved.results, tuple(_scores(resolved)))


def report(folders: Sequence[str | Path], out: str | Path = "report.html", title: str = "") -> Path:
    """One self-contained page over run and evaluation folders: `megaladder report`.

    Returns the page; a CSV of the same name beside it has every number.
    """
    from megaladder.analysis.report.verb import run_report

    names = tuple(str(folder) for folder in folders)
    run_report(validate(ReportConfig, {"run_dirs": names, "out": str(out), "title": title}))
    return Path(out)


def _train(verb: str, config: SftConfig | GrpoConfig, callbacks: Sequence[Callback]) -> Run:
    folder = Path(config.run_dir)
    named = {f"callback {type(told).__name__} ({i})": told for i, told in enumerate(callbacks)}
    follower = Follower(folder, named, partial(warnings.warn, stacklevel=2))
    status = 1
    try:
        run_verb(verb, config, follower.look)
        status = 0
    except MegaladderError as error:
        status = error.exit_status
        raise
    finally:
        follower.end(status)
    return Run(folder)


def _resolved(config_class: type[Config], given: Config | Keys | str | Path) -> Config:
    """The validated configuration. Raises ConfigError."""
    if isinstance(given, config_class):
        return given
    if isinstance(given, Mapping):
        return validate(config_class, dict(given))
    return from_yaml(config_class, str(given))


def _scores(config: EvalConfig) -> list[Score]:
    """The headline of each benchmark that this call asked, by rising step."""
    from megaladder.evaluation.benchmarks.job import score_row

    found: list[Score] = []
    for folder in _model_folders(config):
        step = step_of(folder) if config.run_dir else None
        text = (folder / "summary.json").read_text(encoding="utf-8")
        for name, summary in json.loads(text)["benchmarks"].items():
            found.append(score_of({**score_row(step or 0, name, summary), "step": step}))
    return found


def _model_folders(config: EvalConfig) -> list[Path]:
    from megaladder.evaluation.lm_eval_format import sanitized

    if config.run_dir is None:
        name = config.name or sanitized(Path(config.model.path).name or config.rollout.engine)
        return [config.results / name]
    return list(step_folders(config.results, "summary.json").values())
