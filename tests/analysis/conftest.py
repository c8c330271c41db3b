"""Helpers of the analysis tests: run a verb as a user does, write small tables and sample files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megaladder.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a verb left behind. `json` is None when nothing was written."""

    status: int
    out: str
    err: str
    json: dict[str, Any] | None


@pytest.fixture
def verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """verb("analyze scaling", "--runs", path) runs in this process and adds `--json`; the JSON must
    be sorted and finite."""

    def run(name: str, *args: object, with_json: bool = True) -> Outcome:
        result = tmp_path / "result.json"
        result.unlink(missing_ok=True)
        extra = ["--json", str(result)] if with_json else []
        status = main([*name.split(), *map(str, args), *extra, "--quiet"])
        text = capsys.readouterr()
        found = None
        if result.exists():
            raw = result.read_text(encoding="utf-8")
            found = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
            assert raw == json.dumps(found, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        return Outcome(status, text.out, text.err, found)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write("a/b.csv", text or bytes or list of rows) → path below the test's folder."""

    def put(name: str, content: str | bytes | list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return put
