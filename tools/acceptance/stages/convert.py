"""Hugging Face folder → parameters on the device → Hugging Face tensors.

Seconds, GB/s, and every byte the same; the offline verbs too."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from megaladder import parallel, platform
from megaladder.checkpoints_conv.live_model import iter_hf_tensors, load_hf_into_chunks
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json
from megaladder.parallel import Layout
from megaladder.tools.acceptance.context import Context, read_json
from megaladder.tools.bench_convert import random_model


def run(context: Context) -> dict[str, Any]:
    """Both directions in this process, with each layer specification, then the offline verbs."""
    gigabytes = 0.02 if context.tiny else 4.0
    folder = context.work / "convert_hf"
    shutil.rmtree(folder, ignore_errors=True)
    num_bytes = random_model(folder, gigabytes, 0)
    parallel.initialize(Layout())
    figures: dict[str, Any] = {"bytes": num_bytes, "in_process": {}}
    shape = model_shape(read_config_json(folder))
    for layers in (
        ("portable", "te")
        if context.on_cuda and not platform.machine().te_problem
        else ("portable",)
    ):
        figures["in_process"][layers] = _round_trip(
            folder, shape, BuildOptions("bf16", layers=layers), num_bytes
        )
        platform.release_memory()
    parallel.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    report = context.work / "bench_convert.json"
    context.megaladder(
        "bench_convert",
        "bench",
        "convert",
        gb=gigabytes,
        folder=context.work / "offline",
        repeats=1 if context.tiny else 3,
        json=report,
    )
    return figures | {"offline": read_json(report)}


def _round_trip(
    folder: Path, shape: ModelShape, options: BuildOptions, num_bytes: int
) -> dict[str, Any]:
    chunks = build_chunks(shape, Layout(), options)
    platform.synchronize()
    began = time.perf_counter()
    load_hf_into_chunks(chunks, folder, shape)
    platform.synchronize()
    loaded_s = time.perf_counter() - began
    began = time.perf_counter()
    held = [(name, tensor) for name, tensor in iter_hf_tensors(chunks, shape)]
    platform.synchronize()
    exported_s = time.perf_counter() - began
    reader = HFReader(folder)
    differing = [name for name, tensor in held if not torch.equal(tensor.cpu(), reader.read(name))]
    return {
        "load_s": loaded_s,
        "load_gb_per_s": num_bytes / 1e9 / loaded_s,
        "export_s": exported_s,
        "export_gb_per_s": num_bytes / 1e9 / exported_s,
        "tensors": len(held),
        "differing": differing,
        "bit_exact": not differing,
    }
