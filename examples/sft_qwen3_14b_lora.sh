#!/usr/bin/env bash
""":"
# Adapters for Qwen3-14B-Base on Math-CoT (examples/configs/sft_qwen3_14b_lora.yaml), one 80 GB GPU. One file for both shells:
#
#   bash examples/sft_qwen3_14b_lora.sh                                  one GPU; starts as many ranks as the layout needs
#   torchrun examples/sft_qwen3_14b_lora.sh                              the same
#   bash examples/sft_qwen3_14b_lora.sh --parallel.ranks 8                      a node of them, data parallel
#   bash examples/sft_qwen3_14b_lora.sh --optim.lr 1e-5 --run_dir runs/lr1e-5         overrides, in every form above
#
# The same command again resumes. Bash ends in launch.sh; to Python all of this is a string.
source "$(dirname "$(readlink -f "$0")")/launch.sh"
exit 1
":"""
import sys

from launch import main

if __name__ == "__main__":
    sys.exit(main())
