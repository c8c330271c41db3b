"""50 SFT steps through the command line, once per precision: the loss curves side by side.

The bf16 model is exported for later stages."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from megaladder import platform
from megaladder.capabilities import fp8_problem
from megaladder.tools.acceptance.context import Context, StageFailed

STEPS, LAST = 50, 10


def run(context: Context) -> dict[str, Any]:
    """Each precision that this device can run; the ratio of the last losses is what counts."""
    model, data = start(context)
    runs: dict[str, dict[str, Any]] = {}
    not_run: dict[str, str] = {}
    for name, overrides in _variants(context).items():
        if isinstance(overrides, str):
            not_run[name] = overrides
            continue
        folder = context.work / f"sft_{name}"
        flags = {**sft_overrides(context, model, data, folder), **overrides}
        try:
            runs[name] = context.case(name, partial(_train, context, name, folder, flags))
        except StageFailed as why:
            if name == "bf16":  # what the others are compared with
                raise
            not_run[name] = str(why)[:300]
    curves = {name: found["curve"] for name, found in runs.items()}
    base = _tail(curves["bf16"])
    return {
        "steps": STEPS,
        "curves": curves,
        "seconds": {name: found["seconds"] for name, found in runs.items()},
        "not_run": not_run,
        "tokens_per_s": {name: found["tokens_per_s"] for name, found in runs.items()},
        "last_10_mean_loss": {name: _tail(losses) for name, losses in curves.items()},
        "ratio": {name: _tail(losses) / base for name, losses in curves.items() if name != "bf16"},
        "largest_difference": {
            name: max(abs(a - b) for a, b in zip(losses, curves["bf16"], strict=True))
            for name, losses in curves.items()
            if name != "bf16"
        },
    }


def _train(context: Context, name: str, folder: Path, flags: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    context.megaladder(f"sft_{name}", "sft", **flags)
    rows = context.metrics(folder)
    late = rows[LAST:]
    seconds = sum(row["step_s"] for row in late)
    return {
        "curve": [row["loss"] for row in rows],
        "seconds": seconds / len(late),
        "tokens_per_s": sum(row["tokens"] for row in late) / seconds,
    }


def start(context: Context) -> tuple[Path, Path]:
    """The model and the data that the training stages share, made once.

    The tokenizer is trained on the data, the weights are random."""
    model, data = context.work / "model", context.work / "arithmetic.jsonl"
    if not data.exists():
        context.megaladder(
            "data",
            "data",
            "make",
            "arithmetic",
            rows=20_000,
            out=context.work / "arithmetic.tmp.jsonl",
        )
        (context.work / "arithmetic.tmp.jsonl").rename(data)
    if not (model / "config.json").exists():
        import sys

        sizes = (
            {"hidden": 64, "layers": 2, "heads": 2, "kv-heads": 1, "ffn": 128}
            if context.tiny
            else {"hidden": 1024, "layers": 8, "heads": 8, "kv-heads": 4, "ffn": 3072}
        )
        flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        context.run(
            "model",
            [
                sys.executable,
                "-m",
                "megaladder.tools.make_tiny_model",
                "--data",
                str(data),
                "--out",
                str(model),
                *flags,
            ],
        )
    return model, data


def sft_overrides(context: Context, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """The run that all precisions share."""
    batch = (
        {"data__seq_length": 1024, "train__global_batch_size": 8}
        if context.tiny
        else {"data__seq_length": 8192, "train__global_batch_size": 256}
    )
    return {
        "run_dir": folder,
        "model__path": model,
        "data__path": data,
        "data__cache_dir": context.work / "cache",
        "train__max_steps": STEPS,
        "train__epochs": 50,
        "optim__lr": 2e-3 if context.tiny else 3e-4,
        "checkpoint__every": 0,
        "log__every": 10,
        **batch,
    }


def exported(context: Context) -> Path | None:
    """The bf16 run's Hugging Face folder; None where that stage has not run."""
    folder = context.work / "sft_bf16" / "hf" / f"step_{STEPS}"
    return folder if (folder / "config.json").is_file() else None


def _variants(context: Context) -> dict[str, dict[str, Any] | str]:
    bf16 = {"train__precision": "bf16", "checkpoint__export_hf": True}
    if not context.on_cuda:
        return {"bf16": bf16, "fp32": {"train__precision": "fp32"}}
    machine = platform.machine()
    variants: dict[str, dict[str, Any] | str] = {"bf16": bf16}
    for recipe in ("tensorwise", "blockwise", "delayed"):
        variants[recipe] = fp8_problem(recipe, machine) or {
            "train__precision": "bf16",
            "train__fp8": recipe,
        }
    variants["tensorwise, ends in bf16"] = fp8_problem("tensorwise", machine) or {
        "train__precision": "bf16",
        "train__fp8": "tensorwise",
        "gpu__first_last_layers_bf16": True,
    }
    return variants


def _tail(losses: list[float]) -> float:
    return sum(losses[-LAST:]) / LAST
