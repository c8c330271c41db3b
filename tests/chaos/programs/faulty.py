"""Programs that break what they promise, for tests of the harness."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.programs.base import Mark, Workload

from megaladder.files import shared_memory


class Careless(Workload):
    """Writes its only copy in place, and takes whatever is there for it."""

    name = "careless"
    _TEXT = "1" * 100

    def run(self, folder: Path, mark: Mark) -> None:
        if not (folder / "state").exists():
            (folder / "state").write_text(self._TEXT)
        mark("written")

    def result(self, folder: Path) -> Any:
        return (folder / "state").read_text()

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        file = folder / "state"
        lost = "written" in marks and not (file.exists() and file.read_text() == self._TEXT)
        return "lost" if lost else None


class Leaving(Workload):
    """Starts something that outlives it, from its second start on."""

    name = "leaving"
    grace_s = 0.2

    def run(self, folder: Path, mark: Mark) -> None:
        if (folder / "again").exists():
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (folder / "again").touch()

    def result(self, folder: Path) -> Any:
        return None


class Hoarding(Workload):
    """Keeps what it shared through memory."""

    name = "hoarding"

    def run(self, folder: Path, mark: Mark) -> None:
        shared_memory.take("weights")
        (folder / "again").touch()

    def result(self, folder: Path) -> Any:
        return None


WORKLOADS: dict[str, Workload] = {one.name: one for one in (Careless(), Leaving(), Hoarding())}
