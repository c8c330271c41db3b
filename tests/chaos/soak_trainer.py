"""`megaladder grpo …` with the soak's engine child where the fake engine would answer in the
trainer's own process: what dies and starts again is a process then, as vLLM is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from chaos import heap

from megaladder.cli import main
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.replica import ChildSpec
from megaladder.types import required

CHILD = Path(__file__).with_name("soak_engine.py")


def open_child(setup: Any) -> ProcessEngine:
    """The engine that `setup` describes, in a process of its own."""
    known = required(setup.known, "the answers of a fake engine")
    place = Path(os.environ["SOAK_FOLDER"])
    options = {
        "tokenizer": str(Path(setup.model.path) / "tokenizer.json"),
        "gold": [[list(ids), answer] for ids, answer in known.gold_of.items()],
        "pause_s": float(os.environ["SOAK_PAUSE_S"]),
    }
    (place / "engine.json").write_text(json.dumps(options))
    spec = ChildSpec(
        (sys.executable, str(CHILD)),
        {"SOAK_ENGINE": str(place / "engine.json")},
        place / "engine.log",
    )
    return ProcessEngine([spec], Limits(start_s=300.0, stall_s=120.0))


if __name__ == "__main__":
    from megaladder.train.life import engines

    engines._fake_engine = open_child  # type: ignore[assignment]
    heap.write_down(Path(os.environ["SOAK_FOLDER"]) / "heap.jsonl", every_s=5.0)
    sys.exit(main())
