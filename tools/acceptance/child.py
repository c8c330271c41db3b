"""One stage in a process of its own.

`python -m megaladder.tools.acceptance.child STAGE …`, started by tools/gpu_acceptance.py.

A process of its own because GPU memory, megatron-core's process groups and a crash must not reach
the next stage. Writes one JSON object: status, reason, figures, and the device that the figures
come from, as this process saw it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from megaladder.errors import MegaladderError
from megaladder.run_dir import atomic_write, to_json
from megaladder.tools.acceptance.context import Context, StageSkipped, kept_cases
from megaladder.tools.acceptance.record import DONE, FAILED, SKIPPED, device_facts
from megaladder.tools.acceptance.table import BY_NAME


def run_stage(context: Context) -> dict[str, Any]:
    """Facts about the device, then the stage; every failure becomes a record with its reason."""
    facts = device_facts(context.device)
    began = time.monotonic()
    try:
        module = importlib.import_module(
            f"megaladder.tools.acceptance.stages.{BY_NAME[context.stage].module}"
        )
        outcome = {"status": DONE, "figures": module.run(context)}
    except StageSkipped as skipped:
        outcome = {"status": SKIPPED, "reason": str(skipped), "figures": {}}
    except MegaladderError as error:
        outcome = {"status": FAILED, "reason": str(error), "figures": _kept(context)}
    except Exception as error:  # noqa: BLE001  (a bug in one stage must not cost the others their figures)
        reason = f"{type(error).__name__}: {error}"
        outcome = {
            "status": FAILED,
            "reason": reason,
            "traceback": traceback.format_exc()[-4000:],
            "figures": _kept(context),
        }
    return {**facts, **outcome, "seconds": time.monotonic() - began}


def _kept(context: Context) -> dict[str, Any]:
    """What the stage had found before it failed."""
    return {"cases": kept_cases(context.work, context.stage)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=list(BY_NAME))
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--size", choices=("full", "tiny"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--limit-s", type=float, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    context = Context(
        given.stage,
        given.device,
        given.size,
        given.work,
        given.records,
        time.monotonic() + given.limit_s,
    )
    atomic_write(given.result, to_json(run_stage(context)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
