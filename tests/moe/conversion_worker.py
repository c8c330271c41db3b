"""One rank of the conversion tests of mixtures of experts: a case at every layout that its world
takes, rank 0 writes what any rank found different.

torchrun --nproc-per-node W conversion_worker.py WORK_DIR CASE LAYOUTS_JSON
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from checkpoints_conv.conv_models import differences
from model_cases import read_all

from megaladder import parallel
from megaladder.parallel import Layout

warnings.simplefilter("ignore")


def _weights(chunks: list[Any]) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": tensor.clone()
        for i, chunk in enumerate(chunks)
        for name, tensor in chunk.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def run_layout(work: Path, case: str, layout: Layout) -> dict[str, list[str]]:
    """Names that are not bit-equal: streamed from the model, exported, saved and loaded again."""
    from megatron.core import dist_checkpointing

    from megaladder.checkpoint import store
    from megaladder.checkpoint.checkpointer import load_model_only
    from megaladder.checkpoints_conv.live_model import (
        export_hf,
        iter_hf_tensors,
        load_hf_into_chunks,
    )
    from megaladder.checkpoints_conv.reader import auxiliary_files
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape, read_config_json

    folder, place = work / case, f"{parallel.world_size()}-{layout}"
    shape = model_shape(read_config_json(folder))

    def build() -> list[Any]:
        return build_chunks(shape, layout, BuildOptions())

    chunks = build()
    load_hf_into_chunks(chunks, folder, shape)
    loaded = _weights(chunks)
    streamed = {name: tensor.clone() for name, tensor in iter_hf_tensors(chunks, shape)}
    export_hf(chunks, shape, work / f"export-{place}", source_dir=folder)
    saved = work / f"saved-{place}"
    with parallel.main_rank_first():
        saved.mkdir(exist_ok=True)
    names = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    state = {name: chunk.sharded_state_dict() for name, chunk in zip(names, chunks, strict=True)}
    dist_checkpointing.save(state, str(saved))
    if parallel.is_main():
        store.copy_files(auxiliary_files(folder), saved / "hf")
        store.commit(saved)
    parallel.barrier()
    fresh = build()
    load_model_only(work / "offline", fresh)
    mine = {
        "streamed": differences(streamed, read_all(folder)),
        "offline": differences(_weights(fresh), loaded),
    }
    everyone = parallel.all_gather(mine)
    return {kind: sorted({n for found in everyone for n in found[kind]}) for kind in mine}


def main(work: Path, case: str, layouts: list[dict[str, int]]) -> None:
    from megatron.core import parallel_state

    results = {}
    for sizes in layouts:
        layout = Layout(**sizes, sequence_parallel=sizes.get("tp", 1) > 1)
        parallel.initialize(layout)
        results[str(layout)] = run_layout(work, case, layout)
        parallel_state.destroy_model_parallel()
    if parallel.is_main():
        path = work / f"results-{parallel.world_size()}.json"
        path.write_text(json.dumps(results))
    parallel.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
