"""Words that people try as verbs, and where each leads: by meaning, before spelling is looked at."""

from __future__ import annotations

SFT_OR_GRPO = "megaladder sft run.yaml (supervised), or megaladder grpo run.yaml (RL)"
CHAT = "megaladder chat MODEL"
EVAL = "megaladder eval --model DIR --benchmark NAME or FILE"
EXPORT = (
    "megaladder convert megatron-to-hf --megatron RUN/checkpoints/step_N --out DIR (or"
    " checkpoint.export_hf: true while training)"
)
PUSH = "megaladder push RUN_DIR --to FOLDER or hf://OWNER/NAME"
MERGE = (
    "megaladder convert merge --hf MODEL --adapter PEFT_DIR --out DIR (an adapter into its model)"
)
ADAPTERS = "lora.rank: 16 in a run.yaml, then megaladder sft run.yaml or megaladder grpo run.yaml"
PLAN = "megaladder plan --model NAME --gpus N --seq-length N --global-batch-size N"
WANTED: dict[str, str] = {
    **dict.fromkeys(("train", "finetune", "fine-tune", "tune", "fit", "pretrain"), SFT_OR_GRPO),
    **dict.fromkeys(("run", "launch", "start", "resume", "continue", "torchrun"), SFT_OR_GRPO),
    **dict.fromkeys(("rl", "rlhf", "ppo", "dapo", "rlvr", "reinforce"), "megaladder grpo run.yaml"),
    **dict.fromkeys(
        ("distill", "rejection-sample"), "megaladder data sample FILE --model.path DIR --out FILE"
    ),
    **dict.fromkeys(("dpo", "kto", "orpo", "reward"), f"not built; built are {SFT_OR_GRPO}"),
    **dict.fromkeys(("generate", "infer", "inference", "predict", "complete", "ask"), CHAT),
    **dict.fromkeys(("evaluate", "eval-model", "benchmarks", "lm-eval", "test", "benchmark"), EVAL),
    **dict.fromkeys(("export", "save", "to-hf", "hf", "consolidate"), EXPORT),
    "merge": f"{MERGE}; the ranks' parts of a checkpoint become one folder with {EXPORT}",
    **dict.fromkeys(("lora", "qlora", "peft", "adapter", "adapters"), ADAPTERS),
    **dict.fromkeys(
        ("quantize", "quant", "gguf", "awq", "gptq"),
        f"not built: export with {EXPORT}, then the tools of llama.cpp or vLLM",
    ),
    **dict.fromkeys(("upload", "publish", "share"), PUSH),
    **dict.fromkeys(("list", "ls", "recipe", "tutorial"), "megaladder examples (what comes along)"),
    **dict.fromkeys(("model", "vllm"), "megaladder chat MODEL, or megaladder serve MODEL"),
    **dict.fromkeys(
        ("log", "logs", "runs"), "megaladder watch RUN_DIR, or megaladder report RUN_DIR"
    ),
    **dict.fromkeys(
        ("split", "clean", "dedup", "deduplicate"),
        "megaladder data select FILE --recipe R --out FILE (data.holdout splits while training)",
    ),
    **dict.fromkeys(("server", "api", "vllm-serve", "deploy", "host"), "megaladder serve MODEL"),
    **dict.fromkeys(
        ("import", "migrate", "translate"), "megaladder import-config FILE --out run.yaml"
    ),
    **dict.fromkeys(("validate", "lint", "verify", "dry-run"), "megaladder check run.yaml"),
    **dict.fromkeys(("memory", "estimate", "layout"), PLAN),
    **dict.fromkeys(("download", "fetch", "get"), "megaladder data get gsm8k (problem sets)"),
    **dict.fromkeys(
        ("tokenize", "preprocess", "prepare", "prepare-data", "dataset"),
        "megaladder data stats FILE --tokenizer DIR (training tokenises by itself)",
    ),
    **dict.fromkeys(
        ("filter", "subset", "sample-data"), "megaladder data select FILE --recipe R --out FILE"
    ),
    **dict.fromkeys(("compare", "diff"), "megaladder analyze compare B --base A"),
    **dict.fromkeys(("score", "judge"), "megaladder grade --input IN.jsonl --output OUT.jsonl"),
    **dict.fromkeys(("plot", "plots", "visualize"), "megaladder report RUN_DIR"),
    **dict.fromkeys(
        ("dashboard", "webui", "ui", "monitor", "tail", "live"), "megaladder watch RUN_DIR"
    ),
    **dict.fromkeys(("init", "new", "config", "template"), "megaladder examples --out DIR"),
    **dict.fromkeys(("env", "info", "status", "version"), "megaladder doctor"),
    **dict.fromkeys(
        ("-v", "--verbose"),
        "leave it out: verbs say what they do, log.txt has every line (--version: the version)",
    ),
}
