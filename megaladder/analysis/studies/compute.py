"""What a training run cost, from its run folder: tokens, FLOPs, GPU-hours, summed over
metrics.jsonl; and scores at equal cost.

FLOPs: the rows' own `flops` where they have it, else 6·parameters·tokens (forward and backward of
the trained tokens; generation of a GRPO run is in its GPU-hours and in `generated_tokens`, not in
its FLOPs). GPU-hours: wall-clock seconds · ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.runs.folder import read_config
from megaladder.analysis.samples.files import read_object
from megaladder.analysis.studies.trajectory import Point
from megaladder.analysis.tables import Warnings, read_growing
from megaladder.errors import DataError

MEASURES = ("tokens", "flops", "gpu_hours")
PARAMETER_KEYS = ("num_parameters", "num_params", "parameters")
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
SECOND_KEYS = ("step_s", "step_seconds", "wall_s")


@dataclass(frozen=True)
class Compute:
    """Cumulative cost after each step: `steps` int64 [S]; each of `cumulative` float64 [S], or None
    where the folder does not say."""

    steps: np.ndarray
    cumulative: dict[str, np.ndarray | None]
    generated_tokens: float | None = None

    def totals(self) -> dict[str, float | None]:
        out = {
            name: None if values is None else float(values[-1])
            for name, values in self.cumulative.items()
        }
        return {**out, "generated_tokens": self.generated_tokens}

    def at(self, measure: str, step: int) -> float | None:
        """Cost of the first `step` steps; None beyond the run's end or where it is not known."""
        values = self.cumulative[measure]
        if values is None or step > self.steps[-1]:
            return None
        if step == 0:
            return 0.0
        return float(
            np.interp(step, np.concatenate([[0], self.steps]), np.concatenate([[0.0], values]))
        )


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
    tokens = _sum(ordered, ("tokens",))
    seconds = _sum(ordered, SECOND_KEYS)
    ranks, parameters = _ranks(Path(folder)), _parameters(Path(folder), ordered)
    flops = _sum(ordered, ("flops",))
    if flops is None and tokens is not None and parameters:
        flops = 6.0 * parameters * tokens
    found: dict[str, np.ndarray | None] = {
        "tokens": tokens,
        "flops": flops,
        "gpu_hours": None if seconds is None else seconds * ranks / 3600,
    }
    for name, values in found.items():
        if values is None:
            why = (
                "no parameter count in fingerprint.json and no weights at model.path"
                if name == "flops"
                else "not in metrics.jsonl"
            )
            warnings.add(f"{folder}: {name} not known ({why})")
    generated = _sum(ordered, ("generated_tokens", "rollout_tokens"))
    return Compute(steps, found, None if generated is None else float(generated[-1]))


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
        if all(isinstance(row.get(name), (int, float)) for row in rows):
            return np.cumsum([float(row[name]) for row in rows])
    return None


def _ranks(folder: Path) -> int:
    parallel = read_config(folder).get("parallel") or {}
    if isinstance(parallel.get("ranks"), int):
        return parallel["ranks"]
    product = 1
    for name in ("tp", "pp", "cp"):
        product *= parallel.get(name) or 1
    return product


def _parameters(folder: Path, rows: list[dict[str, Any]]) -> float | None:
    """What the run wrote down, else the tensors in the safetensors headers of the model folder or
    of an export."""
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
    """Elements of all tensors in a folder's *.safetensors, from their headers alone; 0 without such
    files."""
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
                total += sum(
                    math.prod(tensor["shape"])
                    for name, tensor in header.items()
                    if name != "__metadata__"
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: no safetensors header ({error}); fix: the model folder"
                ) from None
    return total


def matched_scores(
    curves: Mapping[tuple[str, str], list[Point]], runs: Mapping[str, Compute], warnings: Warnings
) -> dict[str, dict[str, dict[str, float | None]]]:
    """`[benchmark][measure]` → {"at": the largest cost that all runs reach, NAME: score there
    (linear between checkpoints)}."""
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
