#!/usr/bin/env bash
""":"
# GRPO (DAPO) of adapters for Qwen3-14B (examples/configs/grpo_qwen3_14b_lora.yaml), engine and trainer on one 80 GB GPU.
#
#   bash examples/grpo_qwen3_14b_lora.sh                                  one GPU; starts as many ranks as the layout needs
#   torchrun examples/grpo_qwen3_14b_lora.sh                              the same
#   bash examples/grpo_qwen3_14b_lora.sh --optim.lr 5e-7 --run_dir runs/grpo-lr5e-7         overrides, in every form above
#
# The same command again resumes. Bash ends in launch.sh; to Python all of this is a string.
source "$(dirname "$(readlink -f "$0")")/launch.sh"
exit 1
":"""
import sys

from launch import main

if __name__ == "__main__":
    sys.exit(main())
