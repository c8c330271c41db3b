#!/usr/bin/env bash
# A reward that checks the task against one that checks the value: GRPO on countdown twice, from one SFT model, on two CPU cores.
# Every answer of both runs is judged once more by code that shares nothing with the verifiers (docs/countdown.md).
# Every stage can be repeated by itself; what is finished is kept (rm -rf runs/countdown starts over).
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/countdown
puzzles=(--numbers 2 --largest 99 --max-target 400)
mkdir -p "$run/bench/countdown"
evaluate() { megaladder eval --model "$1" --name "$2" --benchmark countdown --max-tokens 96 --data-dir "$run/bench" --out "$run/eval"; }
stage() { printf '\n== %s   (%d s so far)\n' "$*" "$SECONDS"; }

stage "1  puzzles with two numbers; one answer in ten boxes the bare target"
if [ ! -f "$run/problems.jsonl" ]; then
  megaladder data make countdown "${puzzles[@]}" --rows 5000 --bare-share 0.1 \
    --out "$run/sft.jsonl" --test-out "$run/bench/countdown/test.jsonl" --test-rows 200
  megaladder data make countdown "${puzzles[@]}" --form problem --rows 5000 --seed 7 --out "$run/problems.jsonl"
fi
[ -f "$run/model/config.json" ] || python -m megaladder.tools.make_tiny_model --data "$run/sft.jsonl" --out "$run/model"

stage "2  SFT"
megaladder sft examples/configs/sft_countdown_cpu.yaml

stage "3  GRPO paid for solved puzzles"
megaladder grpo examples/configs/grpo_countdown_cpu.yaml

stage "4  the same run paid for the value alone"
megaladder grpo examples/configs/grpo_countdown_cpu.yaml --reward.kind math --run-dir "$run/value"

stage "5  200 puzzles that are in no training file, and the report"
evaluate "$run/sft/hf/step_300" sft
evaluate "$run/task/hf/step_24" task
evaluate "$run/value/hf/step_24" value
megaladder report "$run/sft" "$run/task" "$run/value" "$run/eval" --out "$run/report.html"

stage "6  every answer of both runs judged once more"
python tools/study/verify_countdown.py "$run/value"
python tools/study/verify_countdown.py "$run/task" --within 0.5
