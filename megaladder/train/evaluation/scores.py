"""The scores of a run by step: which is best, and whether the training has had enough. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ScoreHistory:
    """Score (mean over the benchmarks, a share) of each evaluated step, and the rows behind it.

    protocol: only rows that were made with these settings count; others compare with nothing.
    """

    protocol: str
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes rows of evaluations.jsonl, a row a step and benchmark."""
        for row in rows:
            if row["protocol"] == self.protocol:
                self.rows.setdefault(row["step"], []).append(dict(row))

    @property
    def scores(self) -> dict[int, float]:
        """By step, in the order of the steps."""
        return {
            step: sum(row["score"] for row in self.rows[step]) / len(self.rows[step])
            for step in sorted(self.rows)
        }

    def best(self, count: int = 1) -> list[int]:
        """The steps with the highest scores, best first; of equal ones the earlier."""
        found = self.scores
        return sorted(found, key=lambda step: (-found[step], step))[:count]

    def without_gain(self, min_delta: float) -> int:
        """Evaluations in a row, up to the last one, without a gain.

        They were not better than the best before them by more than `min_delta`."""
        best, count = None, 0
        for score in self.scores.values():
            if best is None or score > best + min_delta:
                best, count = score, 0
            else:
                count += 1
        return count

    def shown(self, step: int) -> str:
        """`gsm8k avg@4 41.3 % [34.4, 48.1]`, for each benchmark of a step."""
        return ", ".join(shown(row) for row in self.rows[step])


def shown(row: Mapping[str, Any]) -> str:
    """One row as text: metric, score and 95 % interval in percent."""
    around = ""
    if row["low"] is not None:
        around = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['benchmark']} {row['metric']} {100 * row['score']:.1f} %{around}"
