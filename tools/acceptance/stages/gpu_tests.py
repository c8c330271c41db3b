"""The repository's tests that need a GPU, as pytest runs them on this device.

The loss head at full size against float64, Transformer Engine's layers against the portable ones.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

from megaladder.errors import MegaladderError
from megaladder.tools.acceptance.context import Context, StageFailed

_TOY = {"MEGALADDER_GPU_TESTS_TINY": "1"}
_VERDICT = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
_REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+::.+?) - (.*)$", re.MULTILINE)


def run(context: Context) -> dict[str, Any]:
    """How many passed and failed, and which failed; those that fail do not end the stage."""
    folder = "tests/gpu" if context.on_cuda else "tests/gpu/test_kernels.py"
    words = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-p", "no:cacheprovider", folder]
    ended = ""
    try:
        context.run("gpu_tests", words, _TOY if context.tiny else {})
    except StageFailed as why:
        ended = str(why).splitlines()[0]
    log = (context.work / "gpu_tests.log").read_text(encoding="utf-8", errors="replace")
    return {**verdicts(log), **({"ended": ended} if ended else {})}


def verdicts(log: str) -> dict[str, Any]:
    """Counts, and the failed tests with their reasons, of pytest's output; also of one cut short.

    Raises:
        MegaladderError: no test passed and none failed.
    """
    found = dict(_VERDICT.findall(log))
    counts, reasons = Counter(found.values()), dict(_REASON.findall(log))
    failed = [name for name, verdict in found.items() if verdict in ("FAILED", "ERROR")]
    if not counts["PASSED"] and not failed:
        raise MegaladderError(f"no test ran; fix: see gpu_tests.log, which ends {log[-1000:]!r}")
    return {
        "passed": counts["PASSED"],
        "failed": len(failed),
        "skipped": counts["SKIPPED"],
        "failures": {name: reasons.get(name, "")[:300] for name in failed},
    }
