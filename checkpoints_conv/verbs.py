"""The verbs `convert hf-to-megatron | megatron-to-hf | verify`.

Progress, one line of result, the next command. No logic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from megaladder.checkpoints_conv.adapters.checkpoint import adapter_to_peft, holds_adapters
from megaladder.checkpoints_conv.adapters.merge import merge_folders
from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.megatron_to_hf import check_integrity, convert_to_hf
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.checkpoints_conv.verify import (
    LogitComparison,
    TensorComparison,
    compare_logits,
    compare_tensors,
)
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.verbs.convert import (
    AdapterConfig,
    Dtype,
    HfToMegatronConfig,
    MegatronToHfConfig,
    MergeConfig,
    VerifyConfig,
)
from megaladder.console import doing
from megaladder.errors import ConversionError
from megaladder.files.typed import typed
from megaladder.finished import write_converted
from megaladder.run_dir import atomic_write, to_json

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_LISTED = 20


def run_hf_to_megatron(config: HfToMegatronConfig) -> int:
    """Exit status 0; input errors raise."""
    began = time.perf_counter()
    with progress("hf → megatron", _hf_bytes(config.hf)) as on_bytes:
        dtype = _DTYPES.get(config.dtype or "")
        num_bytes = convert_to_megatron(
            config.hf, config.out, dtype=dtype, force=config.force, on_bytes=on_bytes
        )
    lines = [
        f"{config.out}: {_rate(num_bytes, began)}; loads at any TP × PP",
        f"next: megaladder convert verify --hf {typed(config.hf)} --megatron {typed(config.out)}",
    ]
    print("\n".join(lines))
    write_converted(config, lines)
    return 0


def run_megatron_to_hf(config: MegatronToHfConfig) -> int:
    """Exit status 0; input errors raise."""
    began = time.perf_counter()
    options = _options(config.dtype, config.max_shard_gb, config.force)
    with progress("megatron → hf", None) as on_bytes:
        exported = convert_to_hf(config.megatron, config.out, options, on_bytes)
    lines = [f"{config.out}: {_rate(exported.num_bytes, began)}"]
    if exported.left_out:
        counts = (f"{name} {count}" for name, count in sorted(exported.left_out.items()))
        lines.append("left out (training state): " + ", ".join(counts))
    lines.append(
        f"next: megaladder convert verify --hf {typed(config.out)} --megatron {typed(config.megatron)}"
    )
    print("\n".join(lines))
    write_converted(config, lines)
    return 0


def _options(dtype: Dtype | None, max_shard_gb: float, force: bool) -> WriteOptions:
    max_shard_bytes = int(max_shard_gb * 1e9)
    return WriteOptions(
        dtype=_DTYPES.get(dtype or ""), max_shard_bytes=max_shard_bytes, force=force
    )


def run_adapter(config: AdapterConfig) -> int:
    """Exit status 0; input errors raise."""
    if not holds_adapters(config.megatron):
        raise ConversionError(
            f"{config.megatron}: no checkpoint of a run with lora; fix: `megaladder convert"
            " megatron-to-hf` for a whole model"
        )
    check_integrity(config.megatron)
    num_bytes = adapter_to_peft(config.megatron, config.out, force=config.force)
    lines = [
        f"{config.out}: adapter of {num_bytes / 1e9:.3f} GB",
        f"next: megaladder convert merge --hf MODEL --adapter {typed(config.out)} --out DIR",
    ]
    print("\n".join(lines))
    return 0


def run_merge(config: MergeConfig) -> int:
    """Exit status 0; input errors raise."""
    began = time.perf_counter()
    options = _options(config.dtype, config.max_shard_gb, config.force)
    with progress("merge", _hf_bytes(config.hf)) as on_bytes:
        num_bytes = merge_folders(config.hf, config.adapter, config.out, options, on_bytes)
    lines = [
        f"{config.out}: {_rate(num_bytes, began)}",
        f"next: megaladder chat {typed(config.out)}",
    ]
    print("\n".join(lines))
    return 0


def run_verify(config: VerifyConfig) -> int:
    """Exit status 0 when equal, 2 with a list when not."""
    with progress("verify", _hf_bytes(config.hf)) as on_bytes:
        tensors = compare_tensors(config.hf, config.megatron, on_bytes)
    logits = (
        compare_logits(config.hf, config.megatron, config.seed)
        if config.logits and not tensors.differences
        else None
    )
    equal = not tensors.differences and (logits is None or logits.within(config.tolerance))
    if config.json_file is not None:
        report = {
            "equal": equal,
            "tensors": asdict(tensors),
            "logits": asdict(logits) if logits else None,
        }
        atomic_write(config.json_file, to_json(report, sort_keys=True, indent=2) + "\n")
    for line in _report(tensors, logits, config):
        print(line)
    if not equal:
        print(f"megaladder: {config.hf} and {config.megatron} differ", file=sys.stderr)
    return 0 if equal else 2


def _report(
    tensors: TensorComparison, logits: LogitComparison | None, config: VerifyConfig
) -> Iterator[str]:
    equal = tensors.num_tensors - sum(
        1 for line in tensors.differences if "elements differ" in line
    )
    yield (
        f"tensors: {equal} of {tensors.num_tensors} bit-identical"
        f" ({tensors.num_bytes / 1e9:.3f} GB)"
    )
    for key, count in tensors.recast.items():
        yield f"  {count} are stored in another dtype ({key}) and were compared after that rounding"
    for line in tensors.differences[:_MAX_LISTED]:
        yield f"  {line}"
    if len(tensors.differences) > _MAX_LISTED:
        yield f"  … and {len(tensors.differences) - _MAX_LISTED} more (--json lists all)"
    if logits is not None:
        verdict = "equal" if logits.within(config.tolerance) else "DIFFERENT"
        yield (
            f"logits: {verdict}, largest |Δ| {logits.max_difference:.3g} at largest |logit|"
            f" {logits.max_logit:.3g} ({logits.num_tokens} random tokens, fp32, tolerance"
            f" {config.tolerance:g})"
        )
    elif config.logits:
        yield "logits: not compared, since tensors differ"


def _hf_bytes(folder: Path) -> int:
    with HFReader(folder) as reader:
        return reader.num_bytes


def _rate(num_bytes: int, began: float) -> str:
    seconds = time.perf_counter() - began
    return (
        f"{num_bytes / 1e9:.3f} GB in {seconds:.1f} s ({num_bytes / 1e9 / max(seconds, 1e-9):.2f}"
        " GB/s)"
    )


@contextmanager
def progress(title: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Says how far it is; yields a function that takes the bytes done."""
    total_mb = None if total_bytes is None else total_bytes / 1e6
    with doing(title, total_mb, "MB") as task:
        yield lambda num_bytes: task.add(num_bytes / 1e6)
