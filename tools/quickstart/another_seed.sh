#!/usr/bin/env bash
# The trainings and evaluations of a finished `make quickstart` once more, from another seed: what tools/quickstart/runs.yaml holds.
#   bash tools/quickstart/another_seed.sh SEED [FOLDER]
# Another processor's rounding of the SFT on this one: ATEN_CPU_CAPABILITY=default (or avx2) in front; vLLM does not start with it.
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=$1 made=runs/quickstart out=${2:-runs/quickstart_seed_$1}
newest() { ls -d "$out/$1"/hf/step_* | sort -V | tail -n 1; }
python -m megaladder.tools.make_tiny_model --data "$made/arithmetic.jsonl" --out "$out/model" --seed "$seed"
megaladder sft examples/configs/sft_arithmetic_cpu.yaml --run-dir "$out/sft" --model.path "$out/model" --train.seed "$seed"
megaladder grpo examples/configs/grpo_arithmetic_cpu.yaml --run-dir "$out/grpo" --model.path "$(newest sft)" --train.seed "$seed"
for name in sft grpo; do
  megaladder eval --model "$(newest "$name")" --name "$name" --benchmark arithmetic --data-dir "$made/bench" --limit 200 --out "$out/eval"
done
