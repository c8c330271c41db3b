#!/usr/bin/env bash
""":"
# SFT of Qwen3-14B-Base on Math-CoT (examples/configs/sft_qwen3_14b.yaml), 8×H200. One file for both shells:
#
#   bash examples/sft_qwen3_14b.sh                                  one node; starts as many ranks as the layout needs
#   torchrun examples/sft_qwen3_14b.sh                              the same
#   torchrun --nproc-per-node 8 examples/sft_qwen3_14b.sh           the same, ranks by torchrun
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash examples/sft_qwen3_14b.sh        on each node, with its NODE_RANK
#   sbatch --nodes=2 examples/slurm/sft.sbatch examples/configs/sft_qwen3_14b.yaml        Slurm
#   bash examples/sft_qwen3_14b.sh --optim.lr 1e-5 --run_dir runs/lr1e-5         overrides, in every form above
#
# The same command again resumes. Bash ends in launch.sh; to Python all of this is a string.
source "$(dirname "$(readlink -f "$0")")/launch.sh"
exit 1
":"""
import sys

from launch import main

if __name__ == "__main__":
    sys.exit(main())
