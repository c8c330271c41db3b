"""A run that is finished says so at once: no rank and no engine starts for it again.

`finished.json` in the run folder holds the final table and what it depends on: the settings, size
and time of the input files, the folders that were written. It is written last of all and removed by
a start that goes on. No torch: the launcher asks before it starts anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder.config.resume import compare_for_resume
from megaladder.log import format_table
from megaladder.run_dir import RunDir, atomic_write, to_json

if TYPE_CHECKING:
    from megaladder.config.sections.run import RunConfig

FILE = "finished.json"
Rows = Sequence[tuple[str, str]]


def write_finished(
    config: RunConfig, run: RunDir, title: str, rows: Rows, following: str | None
) -> None:
    """Marks the run as finished. Main rank only, after everything else is on disk."""
    record = {
        "title": title,
        "rows": [list(row) for row in rows],
        "next": following,
        "settings": config.model_dump(mode="json"),
        "inputs": _inputs(config),
        "outputs": _outputs(run),
    }
    atomic_write(run.path / FILE, to_json(record, indent=1) + "\n")


def forget_finished(run: RunDir) -> None:
    """The run goes on: what was finished is so no longer. Main rank only."""
    (run.path / FILE).unlink(missing_ok=True)


def answer_if_finished(config: RunConfig) -> bool:
    """Prints the final table of a run that is finished with these very settings and inputs.

    False where anything differs, or is missing: then the run starts as usual and says what is the
    matter.
    """
    run = RunDir(config.run_dir, writer=False)
    try:
        record = json.loads((run.path / FILE).read_text("utf-8"))
        rows = [(str(name), str(value)) for name, value in record["rows"]]
        same = _is_same(record, config, run)
    except (OSError, ValueError, TypeError, KeyError):
        return False
    if same and os.environ.get("RANK", "0") == "0":
        print(format_table(f"{record['title']} (an earlier start; nothing to do)", rows))
        if record["next"]:
            print(f"next: {record['next']}")
    return same


def _is_same(record: dict[str, Any], config: RunConfig, run: RunDir) -> bool:
    if config.checkpoint.resume == "never":
        return False
    errors, changes = compare_for_resume(record["settings"], config.model_dump(mode="json"))
    if errors or changes:
        return False
    return record["inputs"] == _inputs(config) and record["outputs"] == _outputs(run)


def _inputs(config: RunConfig) -> dict[str, list[int] | None]:
    """Size and modification time of the files that the settings name; None: not a local file."""
    names = (config.data.path, f"{config.model.path}/config.json", config.model.chat_template)
    found: dict[str, list[int] | None] = {}
    for name in filter(None, names):
        path = Path(name)
        stat = path.stat() if path.is_file() else None
        found[name] = [stat.st_size, stat.st_mtime_ns] if stat else None
    return found


def _outputs(run: RunDir) -> list[str]:
    """The committed checkpoints and complete exports that lie in the run folder."""
    marks = [*run.path.glob("checkpoints/step_*/COMMITTED"), *run.path.glob("hf/*/config.json")]
    return sorted(str(mark.relative_to(run.path)) for mark in marks)
