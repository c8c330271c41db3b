"""Two updates of a small bf16 model, by megatron-core's three passes or by our one: what the rank
holds afterwards.

    torchrun --nproc-per-node N fused_update_worker.py WAY OUT_FOLDER      WAY: fused, megatron

The kernel runs in Triton's interpreter; the loss head stays with the twins. Not a test:
`test_fused_update.py` runs it.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

CLIP = 1e-2


def main() -> None:
    way, out = sys.argv[1], Path(sys.argv[2])
    os.environ["TRITON_INTERPRET"] = "1"
    from megaladder import parallel, platform
    from megaladder.parallel import Layout

    platform.prepare_megatron()
    parallel.initialize(Layout())
    from megaladder.tools.acceptance.step_bench import Step, Work
    from megaladder.train import optimizer

    work = Work("tiny", 1, 64, 64, 2, "bf16")
    step = Step(work)
    parts = step.optimizer.chained_optimizers
    for part in parts:
        part.config.clip_grad = CLIP
    scaled, norms, kept = mock.Mock(wraps=optimizer.clip_grad_by_total_norm_fp32), [], []
    chosen = SimpleNamespace(backend=lambda device: "triton" if way == "fused" else "torch")
    with mock.patch.multiple(optimizer, dispatch=chosen, clip_grad_by_total_norm_fp32=scaled):
        for _ in range(2):
            step.zero()
            step.forward_backward()
            norm, updated = optimizer.guarded_update(step.optimizer, step.losses[-1], 1e-2)
            norms.append(norm if updated else float("nan"))
            kept.append(_held(parts))
    names = [dict(chunk.named_parameters()) for chunk in step.wrapped]
    weights = {name: p.detach().clone() for one in names for name, p in one.items()}
    saved = {"norms": norms, "updates": kept, "weights": weights, "passes": scaled.call_count}
    torch.save(saved, out / f"{way}_{parallel.rank()}.pt")
    parallel.shutdown()


def _held(parts) -> dict[str, list[torch.Tensor]]:
    """This rank's shards: float32 weights, moments, and the 16-bit weights where they lie."""
    found: dict[str, list[torch.Tensor]] = {"main": [], "exp_avg": [], "exp_avg_sq": [], "copy": []}
    for part in parts:
        groups = zip(part.shard_fp32_from_float16_groups, part.shard_float16_groups, strict=True)
        for mains, copies in groups:
            for main, copy in zip(mains, copies, strict=True):
                state = part.optimizer.state[main]
                found["main"].append(main.detach().clone())
                found["copy"].append(copy.detach().clone())
                for name in ("exp_avg", "exp_avg_sq"):
                    found[name].append(state[name].clone())
    return found


if __name__ == "__main__":
    main()
