#!/usr/bin/env bash
""":"
# SFT of Qwen3-30B-A3B-Base on Math-CoT (examples/configs/sft_qwen3_30b_a3b.yaml), 8×H200. One file for both shells:
#
#   bash examples/sft_qwen3_30b_a3b.sh                                  one node; starts as many ranks as the layout needs
#   torchrun examples/sft_qwen3_30b_a3b.sh                              the same
#   torchrun --nproc-per-node 8 examples/sft_qwen3_30b_a3b.sh           the same, ranks by torchrun
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash examples/sft_qwen3_30b_a3b.sh        on each node, with its NODE_RANK
#   sbatch --nodes=2 examples/slurm/sft.sbatch examples/configs/sft_qwen3_30b_a3b.yaml        Slurm
#   bash examples/sft_qwen3_30b_a3b.sh --optim.lr 1e-5 --run_dir runs/lr1e-5         overrides, in every form above
#
# The same command again resumes. Bash reads down to `exec`; to Python all of this is a string.
export USE_HUB_KERNELS=NO
if [ "${NNODES:-1}" -gt 1 ]; then
  exec torchrun --nnodes "$NNODES" --node-rank "${NODE_RANK:?on which node is this}" --nproc-per-node "${NPROC_PER_NODE:-8}" \
    --master-addr "${MASTER_ADDR:?host of node 0}" --master-port "${MASTER_PORT:-29500}" "$0" "$@"
fi
exec "${PYTHON:-python3}" "$0" "$@"
":"""
import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
if find_spec("megaladder") is None:  # a checkout that was not installed
    sys.path.insert(0, str(HERE.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))

from megaladder.cli import run_example  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_example("sft", HERE / "configs" / "sft_qwen3_30b_a3b.yaml", sys.argv[1:]))
