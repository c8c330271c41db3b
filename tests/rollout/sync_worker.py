"""Sends a model at TP2 to a fake engine twice, changed in between, and compares what lies in the
folder with the live weights.

torchrun --nproc-per-node 2 sync_worker.py MODEL_DIR OUT_DIR          not a test itself:
test_weight_sync.py runs it
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from megaladder import parallel
from megaladder.parallel import Layout


def main() -> None:
    model_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
    parallel.initialize(Layout(tp=2))
    from safetensors.torch import load_file

    from megaladder.checkpoints_conv.live_model import iter_hf_tensors, load_hf_into_chunks
    from megaladder.errors import EngineError
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape, read_config_json
    from megaladder.rollout.engine import SamplingParams
    from megaladder.rollout.fake_engine import FakeEngine
    from megaladder.rollout.weight_sync import SyncOptions, TrainedModel, WeightSync

    shape = model_shape(read_config_json(model_dir))
    chunks = build_chunks(shape, Layout(tp=2), BuildOptions())
    load_hf_into_chunks(chunks, model_dir, shape)
    engine = FakeEngine() if parallel.is_main() else None
    options = SyncOptions("file", 1 << 20, "always", out, colocated=True)
    sync = WeightSync(TrainedModel(chunks, shape, model_dir), options, engine, version=0)
    rows = []
    for version in (1, 2):
        refused = None
        sync.rest()
        if engine is not None:
            try:
                engine.generate([(1, 2)], SamplingParams())
            except EngineError as error:
                refused = str(error)
        for parameter in chunks[0].parameters():
            (
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(version))
                if parameter.dim() > 1
                else None
            )
        report = sync.send(version)
        again = sync.send(version)
        live = {name: tensor.clone() for name, tensor in iter_hf_tensors(chunks, shape)}
        if engine is not None:
            folder = Path(engine.loaded[-1])
            stored = {
                name: tensor
                for path in folder.glob("*.safetensors")
                for name, tensor in load_file(path).items()
            }
            assert engine.generate([(1, 2)], SamplingParams(), expect_version=version)
            rows.append(
                {
                    "version": report.version,
                    "again": again,
                    "refused": refused,
                    "folder": str(folder),
                    "tensors": len(stored),
                    "differing": [
                        n
                        for n in live.keys() | stored.keys()
                        if not torch.equal(live[n], stored[n])
                    ],
                    "sha256": (
                        hashlib.sha256(
                            b"".join(stored[n].numpy().tobytes() for n in sorted(stored))
                        ).hexdigest()
                    ),
                }
            )
    sync.close()
    if parallel.is_main():
        (out / "out.json").write_text(json.dumps(rows))
    parallel.barrier()


if __name__ == "__main__":
    main()
