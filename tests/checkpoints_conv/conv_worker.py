"""One rank of the conversion tests: every case at every layout inside one launch; rank 0 writes
what it found as JSON.

torchrun --nproc-per-node 4 conv_worker.py WORK_DIR      (WORK_DIR/CASE are HF folders,
WORK_DIR/offline-CASE converted ones)
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from checkpoints_conv.conv_models import CASES, THOROUGH

from megaladder import parallel
from megaladder.parallel import Layout

warnings.simplefilter("ignore")

LAYOUTS = (Layout(1, 1), Layout(2, 1), Layout(1, 2), Layout(2, 2), Layout(1, 2, vpp=2))
# saved by megatron-core and converted back offline
SAVED_LAYOUTS = (Layout(2, 2), Layout(1, 2, vpp=2))
GRID = [
    (case, layout) for case in CASES for layout in LAYOUTS if case in THOROUGH or layout.vpp is None
]


def goes_through_files(case: str, layout: Layout) -> bool:
    """Whether a case is also saved, exported and loaded at a layout, not only carried over in
    process; of a further name table that is done once."""
    return case in THOROUGH or layout == Layout(2, 2)


class CountingSource:
    """An `HFReader` that counts the bytes it hands out."""

    def __init__(self, reader: Any):
        self._reader, self.num_bytes = reader, 0
        self.folder, self.shapes = reader.folder, reader.shapes

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        part = self._reader.read(name, dim, start, stop)
        self.num_bytes += part.numel() * part.element_size()
        return part


def _parameters(chunks: list[Any]) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": p.data.clone()
        for i, chunk in enumerate(chunks)
        for name, p in chunk.named_parameters()
    }


def _build(folder: Path, layout: Layout) -> tuple[Any, list[Any]]:
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape, read_config_json

    shape = model_shape(read_config_json(folder))
    precision = "bf16" if shape.torch_dtype == "bfloat16" else "fp32"
    return shape, build_chunks(shape, layout, BuildOptions(precision=precision))


def _save(chunks: list[Any], hf_dir: Path, out: Path) -> None:
    """As the trainer does it, without the optimizer."""
    from megatron.core import dist_checkpointing

    from megaladder.checkpoint import store
    from megaladder.checkpoints_conv.reader import auxiliary_files

    with parallel.main_rank_first():
        out.mkdir(exist_ok=True)
    names = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    dist_checkpointing.save(
        {name: chunk.sharded_state_dict() for name, chunk in zip(names, chunks, strict=True)},
        str(out),
    )
    if parallel.is_main():
        store.copy_files(auxiliary_files(hf_dir), out / "hf")
        store.commit(out)
    parallel.barrier()


def run_case(work: Path, case: str, layout: Layout) -> dict[str, Any]:
    """Differences found on any rank; all lists are empty when everything holds."""
    from checkpoints_conv.conv_models import differences
    from model_cases import read_all

    from megaladder.checkpoint.checkpointer import load_model_only
    from megaladder.checkpoints_conv.live_model import (
        export_hf,
        iter_hf_tensors,
        load_tensors_into_chunks,
    )
    from megaladder.checkpoints_conv.reader import HFReader

    hf_dir = work / case
    shape, chunks = _build(hf_dir, layout)
    source = CountingSource(HFReader(hf_dir))
    held_bytes = load_tensors_into_chunks(chunks, source, shape)
    loaded = _parameters(chunks)
    streamed = {name: tensor.clone() for name, tensor in iter_hf_tensors(chunks, shape)}
    offline: list[str] = []
    if goes_through_files(case, layout):
        export_hf(chunks, shape, work / f"export-{case}-{layout}", source_dir=hf_dir)
        if layout in SAVED_LAYOUTS:
            _save(chunks, hf_dir, work / f"saved-{case}-{layout}")
        _, fresh = _build(hf_dir, layout)
        load_model_only(work / f"offline-{case}", fresh)
        offline = differences(_parameters(fresh), loaded)
    mine = {
        "streamed": differences(streamed, read_all(hf_dir)),
        "offline": offline,
        "read_bytes": source.num_bytes,
        "held_bytes": held_bytes,
    }
    everyone = parallel.all_gather(mine)
    return {
        "streamed": [name for found in everyone for name in found["streamed"]],
        "offline": [name for found in everyone for name in found["offline"]],
        "read_share": (
            max(found["read_bytes"] for found in everyone)
            / sum(t.nbytes for t in read_all(hf_dir).values())
        ),
        "unread": [
            rank for rank, found in enumerate(everyone) if found["read_bytes"] > found["held_bytes"]
        ],
    }


def _raised(action: Any) -> str:
    from megaladder.errors import MegaladderError

    try:
        action()
    except MegaladderError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def run_faults(work: Path) -> dict[str, list[str]]:
    """The message that each rank gets when one thing is wrong on one rank; none may hang."""
    from megaladder.checkpoints_conv.live_model import export_hf, load_hf_into_chunks
    from megaladder.checkpoints_conv.writer import WriteOptions

    good, layout = work / "qwen3", Layout(2, 2)
    shape, chunks = _build(good, layout)
    load_hf_into_chunks(chunks, good, shape)
    full = work / "not-empty"
    if parallel.is_main():
        full.mkdir()
        (full / "notes.txt").write_text("keep me")
    parallel.barrier()
    found = {
        "one truncated copy": _raised(
            lambda: load_hf_into_chunks(
                chunks, work / "truncated" if parallel.rank() == 3 else good, shape
            )
        ),
        "export into a full folder": _raised(
            lambda: export_hf(chunks, shape, full, source_dir=good)
        ),
        "export of a missing source": _raised(
            lambda: export_hf(chunks, shape, work / "x", source_dir=work / "absent")
        ),
    }
    export_hf(
        chunks, shape, full, source_dir=good, options=WriteOptions(force=True, dtype=torch.float32)
    )
    if parallel.rank() == 2:
        chunks[0].decoder.layers[0].adapter = torch.nn.Linear(2, 2, bias=False)
    found["a parameter without a name"] = _raised(lambda: load_hf_into_chunks(chunks, good, shape))
    return {name: list(messages) for name, messages in _by_rank(found).items()}


def _by_rank(found: dict[str, str]) -> dict[str, list[str]]:
    everyone = parallel.all_gather(found)
    return {name: [each[name] for each in everyone] for name in found}


def main(work: Path) -> None:
    from megatron.core import parallel_state

    results: dict[str, Any] = {}
    for layout in LAYOUTS:
        parallel.initialize(layout)
        for case in (case for case, at in GRID if at == layout):
            results[f"{case} {layout}"] = run_case(work, case, layout)
        if layout == Layout(2, 2):
            results["faults"] = run_faults(work)
        parallel_state.destroy_model_parallel()
    if parallel.is_main():
        (work / "results.json").write_text(json.dumps(results))
    parallel.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
