"""The ledger of a run folder, from the rows of its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megaladder.ledger.book import Phase, add_up
from megaladder.ledger.work import Work
from megaladder.run_dir import read_jsonl

BETWEEN_STEPS = ("held_out.jsonl", "evaluations.jsonl")


def run_ledger(folder: str | Path, steps: Iterable[Mapping[str, Any]]) -> dict[Phase, Work]:
    """The work of the steps, and of the held-out losses and evaluations between them.

    steps: the rows of metrics.jsonl. A torn last row does not count.
    """
    more = [path for name in BETWEEN_STEPS if (path := Path(folder) / name).is_file()]
    return add_up([*steps, *(row for path in more for row in read_jsonl(path))])
