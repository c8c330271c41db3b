"""Builds a tiny model with its DDP buffers and optimizer as a training run does, and writes the
bytes each rank really holds.

    torchrun --nproc-per-node 2 memory_worker.py MODEL_DIR TP PP OUT_JSON

OUT_JSON: one object per rank: weights, gradients, optimizer (bytes), dp, tokens, activations (bytes
that autograd keeps of the layers). Not a test itself: `test_measured.py` runs it.
"""

import json
import sys
from pathlib import Path

import torch

from megaladder import parallel
from megaladder.config.sections.shared import OptimSection
from megaladder.model.batch import DeviceBatch
from megaladder.model.build import BuildOptions, build_chunks
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.parallel import Layout
from megaladder.train.optimizer import build_optimizer, wrap_chunks

TOKENS = 512
OPTIM = OptimSection(lr=1e-3, weight_decay=0.0)


def state_bytes(optimizer) -> int:
    """fp32 master copies and two moments of the distributed optimizer's shard."""
    total = 0
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                total += parameter.nbytes + state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
    return total


def kept_by_autograd(chunk, batch) -> int:
    """Bytes of the distinct tensors, parameters apart, that the layers' forward keeps for
    backward."""
    known = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = chunk.hidden_states(batch)
    assert hidden.requires_grad
    return sum(kept.values())


def main() -> None:
    model, tp, pp, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    layout = Layout(tp=tp, pp=pp, sequence_parallel=tp > 1)
    parallel.initialize(layout)
    shape, options = model_shape(read_config_json(model)), BuildOptions(precision="bf16")
    chunks = build_chunks(shape, layout, options)
    wrapped = wrap_chunks(chunks)
    optimizer = build_optimizer(wrapped, OPTIM, options)
    buffers = [
        buffer for chunk in wrapped for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]
    ]
    activations = None
    if pp == 1:
        ids = torch.arange(TOKENS)[None] % shape.vocab_size
        bounds = torch.tensor([0, TOKENS], dtype=torch.int32)
        batch = DeviceBatch(ids, torch.arange(TOKENS)[None], ids[0], bounds, TOKENS, TOKENS)
        activations = kept_by_autograd(chunks[0], batch)
    row = {
        "weights": sum(parameter.nbytes for chunk in chunks for parameter in chunk.parameters()),
        "gradients": sum(buffer.grad_data.nbytes for buffer in buffers),
        "optimizer": state_bytes(optimizer),
        "dp": parallel.world_size() // (tp * pp),
        "tokens": TOKENS,
        "activations": activations,
    }
    rows = parallel.all_gather(row)
    if parallel.is_main():
        out.write_text(json.dumps(rows))
    parallel.shutdown()


if __name__ == "__main__":
    main()
