"""A file of samples or results → its scores, and which weights they are of.

Whose results are read: ours (`results_*.json` with a `protocol`, `summary.json` beside it),
lm-eval's and evalchemy's `results_*.json`; samples alone in any layout of `samples.rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaladder.analysis.runs.find import ScoreFile
from megaladder.analysis.runs.record import Score
from megaladder.analysis.samples.files import read_object, section, text
from megaladder.analysis.samples.rows import NoVerdictError, row_verdicts, sample_rows
from megaladder.errors import DataError

# what a program's results call the score, the first that is there
HEADLINES = (
    *("exact_match", "accuracy_avg", "accuracy", "acc", "pass@1", "prompt_level_strict_acc"),
    *("f1", "em", "solved_avg"),
)


@dataclass(frozen=True)
class Weights:
    """Which model was scored, as far as the file says.

    Its folder or hub name, and the digest that an evaluation of ours records
    (`run_dir.model_fingerprint`)."""

    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of one file. Their step is not known yet."""

    file: ScoreFile
    weights: Weights
    scores: list[Score] = field(default_factory=list)


def read_scores(file: ScoreFile) -> Scored:
    """Reads what stands beside the samples, or in the results file itself."""
    if file.benchmark is None:
        results = read_object(file.path)
        return Scored(file, _weights(results, file.path.parent), _all_tasks(results))
    results = _results_beside(file)
    protocol = results.get("protocol")
    score = _from_ours(file, results) if isinstance(protocol, dict) else _from_others(file, results)
    return Scored(file, _weights(results, file.path.parent), [score])


def _results_beside(file: ScoreFile) -> dict[str, Any]:
    """The results file of the same folder that has this benchmark; {} where there is none."""
    if file.benchmark == "":
        return {}
    own = file.path.parent / f"results_{file.benchmark}.json"
    others = sorted(file.path.parent.glob("results_*.json"), reverse=True)
    for path in (own, *others):
        found = read_object(path)
        if file.benchmark in section(found, "results"):
            return found
    return {}


def _weights(results: Mapping[str, Any], folder: Path) -> Weights:
    protocol, config = section(results, "protocol"), section(results, "config")
    sha256 = text(section(protocol, "model"), "sha256")
    summary = read_object(folder.parent / "summary.json")
    named = (summary.get("model"), _pretrained(config.get("model_args")), results.get("model_name"))
    path = next((value for value in named if isinstance(value, str) and value), None)
    return Weights(path, sha256)


def _pretrained(model_args: Any) -> str | None:
    """lm-eval's `pretrained=FOLDER,dtype=…`, as text or as an object."""
    if isinstance(model_args, dict):
        return text(model_args, "pretrained") or text(model_args, "model")
    parts = str(model_args or "").split(",")
    found = [part.split("=", 1)[1] for part in parts if part.startswith(("pretrained=", "model="))]
    return found[0] if found else None


def _means(table: Mapping[str, Any]) -> dict[str, float]:
    """Metric (and `metric_stderr`) → mean of one task; the first filter of a metric counts."""
    found: dict[str, float] = {}
    for key, value in table.items():
        name = key.partition(",")[0]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer beyond every float is no mean
                found.setdefault(name, float(value))
    return found


def _headline(means: Mapping[str, float]) -> str | None:
    return next((name for name in HEADLINES if name in means), None)


def _from_ours(file: ScoreFile, results: Mapping[str, Any]) -> Score:
    name = str(file.benchmark)
    means = _means(section(section(results, "results"), name))
    summary = read_object(file.path.parent / "summary.json")
    headline = summary.get("headline") or f"avg@{results['protocol'].get('n')}"
    known = headline if headline in means else None
    return Score(name, 0, file.path, known, means, results["protocol"])


def _from_others(file: ScoreFile, results: Mapping[str, Any]) -> Score:
    """lm-eval's samples, or samples of another program.

    Their verdicts are the score; the results file's is, where the rows have none."""
    name = str(file.benchmark)
    protocol: dict[str, Any] = dict(section(results, "config"))
    if file.budget is not None:
        protocol["budget"] = {"cut_at": file.budget}
    if _has_verdicts(file.path):
        return Score(name, 0, file.path, None, {}, protocol)
    means = _means(section(section(results, "results"), name))
    return Score(name, 0, file.path, _headline(means), means, protocol)


def _has_verdicts(path: Path) -> bool:
    """By the first row. A broken one counts: whoever reads it all says what is wrong."""
    where, row = next(sample_rows(path))
    try:
        row_verdicts(row, where)
    except NoVerdictError:
        return False
    except DataError:
        pass
    return True


def _all_tasks(results: Mapping[str, Any]) -> list[Score]:
    """One score a task of a results file that has no samples beside it."""
    scores = []
    for task, table in section(results, "results").items():
        means = _means(table) if isinstance(table, dict) else {}
        if headline := _headline(means):
            protocol = dict(section(results, "config"))
            scores.append(Score(task, 0, None, headline, means, protocol))
    return scores
