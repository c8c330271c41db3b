"""The quickstart's script, shortened: every stage runs, and the last lines hold numbers, intervals
and a verdict."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what stands in the script and its run files → what a test takes
SHORTER = {
    "--rows 10500": "--rows 700",
    "--direct-from 7900": "--direct-from 500",
    "--rows 20000": "--rows 64",
    "--limit 200": "--limit 8",
    "holdout: 200": "holdout: 20",
    "max_steps: 640": "max_steps: 4",
    "every: 320": "every: 4",
    "max_steps: 16": "max_steps: 2",
    "every: 8": "every: 2",
    "every: 10,": "every: 1,",
    "limit: 64": "limit: 4",
    "prompts_per_step: 32": "prompts_per_step: 4",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_stage_runs_and_the_end_has_numbers(tmp_path: Path, kind: str) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for path in [*tmp_path.glob("examples/configs/*arithmetic*.yaml"), _script(tmp_path)]:
        text = path.read_text(encoding="utf-8")
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        path.write_text(text, encoding="utf-8")
    binaries = Path(sys.executable).parent
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{binaries}:{os.environ['PATH']}"}
    command = ["bash", str(_script(tmp_path)), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / ("quickstart-moe" if kind == "moe" else "quickstart")
    assert (run / "report.html").is_file()
    for title in ("random weights", "after SFT", "after SFT and GRPO"):
        shown = rf"^{title} +[\d.]+% \[[\d.]+%, [\d.]+%\] +\d+% to \d+% +\d+$"
        assert re.search(shown, done.stdout, re.MULTILINE), done.stdout[-2000:]
    # four steps teach nothing, and the last line says so
    below = r"not as expected: after SFT [\d.]+% is below \d+%; after SFT and GRPO [\d.]+% is below \d+%"
    assert re.search(below, done.stdout), done.stdout[-2000:]


def test_another_kind_is_refused() -> None:
    command = ["bash", str(_script(ROOT)), "sparse"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "sparse is neither dense nor moe" in done.stderr


def _script(root: Path) -> Path:
    return root / "examples" / "quickstart.sh"
