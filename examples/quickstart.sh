#!/usr/bin/env bash
# The whole ladder on two CPU cores: data → tokenizer and model → SFT at TP2 → GRPO with a real vLLM → evaluation → report.
# Run by `make quickstart`, and by `make quickstart-moe` with a mixture of experts, whose SFT has the experts on two processes (EP2).
#   bash examples/quickstart.sh [moe]
# Every stage can be repeated by itself; what is there already is kept (rm -rf runs/quickstart, or runs/quickstart-moe, starts over).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-dense}" in
  dense) run=runs/quickstart kind="" model="a Qwen3 of 0.85 million parameters" sizes=() split="tensor parallel" ;;
  moe) run=runs/quickstart-moe kind=_moe model="a Qwen3-MoE of 8 experts, two a token: 2.6 million parameters" \
    sizes=(--experts 8 --ffn 192) split="expert parallel" ;;
  *) echo "$0: $1 is neither dense nor moe" >&2; exit 2 ;;
esac
mkdir -p "$run/bench/arithmetic"
stage() { printf '\n== %s   (%d s so far)\n' "$*" "$SECONDS"; }
evaluate() { megaladder eval --model "$1" --name "$2" --benchmark arithmetic --data-dir "$run/bench" --limit 200 --out "$run/eval"; }

stage "1  reasoning data: two-step arithmetic, every worked step verified; in the last quarter half of the answers come without any work"
if [ ! -f "$run/rl_problems.jsonl" ]; then
  megaladder data make arithmetic --rows 10500 --direct-share 0.5 --direct-from 7900 \
    --out "$run/arithmetic.jsonl" --test-out "$run/bench/arithmetic/test.jsonl"
  megaladder data make arithmetic --form problem --rows 20000 --seed 7 --out "$run/rl_problems.jsonl"
fi

stage "2  a tokenizer and $model, random weights"
[ -f "$run/model/config.json" ] || python -m megaladder.tools.make_tiny_model --data "$run/arithmetic.jsonl" --out "$run/model" "${sizes[@]}"

if [ ! -f "$run/sft/finished.json" ]; then
  stage "3  what the SFT run will do"
  megaladder check "examples/configs/sft_arithmetic${kind}_cpu.yaml"
fi

stage "4  SFT, $split over two processes (the same command again resumes)"
megaladder sft "examples/configs/sft_arithmetic${kind}_cpu.yaml"

stage "5  GRPO on top of it: the trainer and a real vLLM engine"
sft=$(ls -d "$run"/sft/hf/step_* | sort -V | tail -n 1)
megaladder grpo "examples/configs/grpo_arithmetic${kind}_cpu.yaml" --model.path "$sft"

stage "6  evaluation: base, SFT, SFT + GRPO on problems that are in no training file, with 95 % intervals"
grpo=$(ls -d "$run"/grpo/hf/step_* | sort -V | tail -n 1)
evaluate "$run/model" base
evaluate "$sft" sft
evaluate "$grpo" grpo

newer() { find "$run/sft" "$run/grpo" "$run/eval" -newer "$run/report.html" -type f -name '*.json*' | head -n 1; }
if [ ! -f "$run/report.html" ] || [ -n "$(newer)" ]; then
  stage "7  the exported folder in plain transformers, and the report"
  python -m megaladder.tools.generate_hf --model "$grpo" --data "$run/bench/arithmetic/test.jsonl" --kind math --num-problems 3 --max-tokens 128
  megaladder report "$run/sft" "$run/grpo" "$run/eval" --out "$run/report.html"
fi

stage "done: $run/report.html"
python -m megaladder.tools.quickstart.verdict "$run"
