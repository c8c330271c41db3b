"""What a training run cost, from its run folder.

Tokens, FLOPs, GPU-hours, summed over metrics.jsonl; and scores at equal cost.

FLOPs: all that the model learned from, by the run's ledger: training, log-prob passes, generation,
and a teacher's work on the data of an SFT run (`data sample` leaves it beside its rows); held-out
losses and evaluations only measure. `train_flops`: forward and backward alone. Rows without a
ledger count 6·parameters·tokens for both. GPU-hours: wall-clock seconds · ranks.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.folder import read_config
from megaladder.analysis.samples.files import read_object
from megaladder.analysis.studies.trajectory import Point
from megaladder.analysis.tables import Warnings, read_growing
from megaladder.errors import DataError
from megaladder.files.shapes import OTHER_KIND, as_number
from megaladder.ledger.book import Phase, add_up, read_work, row_of, training_flops
from megaladder.ledger.folder import run_ledger
from megaladder.ledger.sampled import read_sampled_ledger, teacher_ledger
from megaladder.ledger.work import Work

MEASURES = ("tokens", "train_flops", "flops", "gpu_hours")
PARAMETER_KEYS = ("num_parameters", "num_params", "parameters")
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
SECOND_KEYS = ("step_s", "step_seconds", "wall_s")


@dataclass(frozen=True)
class Compute:
    """Cumulative cost after each step: `steps` int64 [S].

    Each of `cumulative` float64 [S], or None where the folder does not say. at_start: FLOPs before
    the first step (a teacher's). ledger: the work of each phase, evaluations included."""

    steps: np.ndarray
    cumulative: dict[str, np.ndarray | None]
    at_start: float = 0.0
    ledger: Mapping[Phase, Work] = field(default_factory=dict)

    def totals(self) -> dict[str, float | None]:
        out = {
            name: None if values is None else float(values[-1])
            for name, values in self.cumulative.items()
        }
        generation = self.ledger.get("generation")
        generated = None if generation is None else generation.tokens - generation.prompt_tokens
        return {**out, "generated_tokens": None if generated is None else float(generated)}

    def at(self, measure: str, step: int) -> float | None:
        """Cost of the first `step` steps; None beyond the run's end or where it is not known."""
        values = self.cumulative[measure]
        if values is None or step > self.steps[-1]:
            return None
        first = self.at_start if measure == "flops" else 0.0
        steps, costs = np.concatenate([[0], self.steps]), np.concatenate([[first], values])
        return float(np.interp(step, steps, costs))


def read_compute(folder: str | Path, warnings: Warnings) -> Compute:
    """Sums a run folder's metrics.jsonl. Says which measure it cannot know, and why."""
    path = Path(folder) / "metrics.jsonl"
    lines, note = read_growing(path)
    if note:
        warnings.add(note)
    rows: dict[int, dict[str, Any]] = {}
    for where, row in lines:
        if _has_step(row, where):
            rows.setdefault(row["step"], {}).update(row)
    if not rows:
        raise DataError(f"{path}: has no training steps; fix: the folder of a run that made some")
    steps = np.array(sorted(rows))
    ordered = [rows[step] for step in steps]
    tokens, seconds = _sum(ordered, ("tokens",)), _sum(ordered, SECOND_KEYS)
    teacher = _teacher(Path(folder))
    at_start, ledger = training_flops(teacher), {**run_ledger(folder, ordered), **teacher}
    train_flops, flops = _flops(Path(folder), ordered, tokens)
    found: dict[str, np.ndarray | None] = {
        "tokens": tokens,
        "train_flops": train_flops,
        "flops": None if flops is None else at_start + flops,
        "gpu_hours": None if seconds is None else seconds * _ranks(Path(folder)) / 3600,
    }
    for name, values in found.items():
        if values is None:
            why = (
                "no parameter count in fingerprint.json and no weights at model.path"
                if name.endswith("flops")
                else "not in metrics.jsonl"
            )
            warnings.add(f"{folder}: {name} not known ({why})")
    return Compute(steps, found, at_start, ledger)


def _flops(
    folder: Path, rows: list[dict[str, Any]], tokens: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Cumulative FLOPs of training proper, and of all that the model learned from."""
    works = [read_work(row) for row in rows]
    if all("train" in work for work in works):
        trained = np.cumsum([work["train"].flops for work in works])
        return trained, np.cumsum([training_flops(work) for work in works])
    parameters = _parameters(folder, rows)
    flops = _sum(rows, ("flops",))
    if flops is None and tokens is not None and parameters:
        flops = 6.0 * parameters * tokens
    return flops, flops


def _teacher(folder: Path) -> dict[Phase, Work]:
    """What a teacher's work on the run's data cost, where `data sample` left it beside them."""
    config = read_config(folder)
    data = config.get("data") or {}
    parts = [data, *(part for part in data.get("mixture") or [] if isinstance(part, dict))]
    paths = (
        {str(part["path"]) for part in parts if part.get("path")} if "grpo" not in config else ()
    )
    return add_up(row_of(read_sampled_ledger(teacher_ledger(path))) for path in sorted(paths))


def _has_step(row: Mapping[str, Any], where: str) -> bool:
    step = row.get("step")
    if step is None:
        return False
    if not isinstance(step, int) or isinstance(step, bool):
        raise DataError(
            f"{where}: 'step' is {step!r}, expected a whole number; fix: delete that line"
        )
    return step > 0


def _sum(rows: list[dict[str, Any]], names: tuple[str, ...]) -> np.ndarray | None:
    for name in names:
        values = [value for row in rows if (value := as_number(row.get(name))) is not None]
        if len(values) == len(rows):
            return np.cumsum(values)
    return None


def _ranks(folder: Path) -> int:
    counted = read_object(folder / "fingerprint.json").get("num_ranks")
    if isinstance(counted, int):
        return counted
    parallel = read_config(folder).get("parallel") or {}
    if isinstance(parallel.get("ranks"), int):
        return parallel["ranks"]
    product = 1
    for name in ("tp", "pp", "cp"):
        product *= parallel.get(name) or 1
    return product


def _parameters(folder: Path, rows: list[dict[str, Any]]) -> float | None:
    """Parameters that the run wrote down, else those of the safetensors headers.

    Of the model folder or of an export."""
    fingerprint = read_object(folder / "fingerprint.json")
    for source in (fingerprint, fingerprint.get("model") or {}, rows[0]):
        for name in PARAMETER_KEYS:
            if isinstance(source, dict) and isinstance(source.get(name), (int, float)):
                return float(source[name])
    model = (read_config(folder).get("model") or {}).get("path")
    for place in (Path(str(model)), *sorted((folder / "hf").glob("step_*"))):
        if model and place.is_dir() and (found := count_parameters(place)):
            return float(found)
    return None


def count_parameters(model: Path) -> int:
    """Elements of all tensors in a folder's *.safetensors, from their headers alone.

    0 without such files."""
    total = 0
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise DataError(
                    f"{path}: no safetensors file (header of {size} bytes); fix: the model folder"
                )
            try:
                header = json.loads(file.read(size))
                found = sum(
                    math.prod(map(operator.index, tensor["shape"]))
                    for name, tensor in header.items()
                    if name != "__metadata__"
                )
                total += int(float(found))  # OverflowError where no float is so large
            except OTHER_KIND as error:
                raise DataError(
                    f"{path}: no safetensors header ({error}); fix: the model folder"
                ) from None
    return total


def matched_scores(
    curves: Mapping[tuple[str, str], list[Point]], runs: Mapping[str, Compute], warnings: Warnings
) -> dict[str, dict[str, dict[str, float | None]]]:
    """`[benchmark][measure]` → the scores of all runs at equal cost.

    {"at": the largest cost that all runs reach, NAME: score there (linear between checkpoints)}."""
    unknown = sorted({model for model, _ in curves} ^ set(runs))
    if unknown:
        warnings.add(
            f"compute-matched: {', '.join(unknown)} in only one of --curve and --compute, left out"
        )
    out: dict[str, dict[str, dict[str, float | None]]] = {}
    for benchmark in dict.fromkeys(benchmark for _, benchmark in curves):
        chosen = {
            model: points
            for (model, name), points in curves.items()
            if name == benchmark and model in runs
        }
        if len(chosen) < 2:
            warnings.add(
                f"compute-matched {benchmark}: needs two runs with a curve and a run folder, has"
                f" {len(chosen)}"
            )
            continue
        out[benchmark] = {measure: _matched(chosen, runs, measure) for measure in MEASURES}
    return out


def _matched(
    chosen: Mapping[str, list[Point]], runs: Mapping[str, Compute], measure: str
) -> dict[str, float | None]:
    costs = {
        model: [(runs[model].at(measure, point.step), point.score) for point in points]
        for model, points in chosen.items()
    }
    known = {
        model: [(cost, score) for cost, score in pairs if cost is not None]
        for model, pairs in costs.items()
    }
    if any(len(pairs) < 2 for pairs in known.values()):
        return {"at": None, **dict.fromkeys(chosen)}
    at = min(pairs[-1][0] for pairs in known.values())
    return {
        "at": at,
        **{
            model: float(np.interp(at, [cost for cost, _ in pairs], [score for _, score in pairs]))
            for model, pairs in known.items()
        },
    }
