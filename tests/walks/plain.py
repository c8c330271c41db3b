"""The walks of the verbs that need no model and no engine."""

from __future__ import annotations

from pathlib import Path

from walks.stand_ins import PageInName
from walks.walk import Walk


def plain_walks(i: Path) -> list[Walk]:
    """`i`: the folder of `make_inputs`."""
    grpo = {
        "workload": "grpo",
        "prompts_per_step": 8,
        "n": 8,
        "response_length": 2000,
        "max_tokens": 4096,
        "global_batch_size": None,
    }
    flagged = {"series": "series", "order": "epochs", "flag_score": "pass1", "flag_loss": "loss"}
    read_by_grpo = ("prompts_per_step", "n", "mini_batches", "prompt_length", "response_length")
    return [
        Walk(
            "plan",
            {"model": "Qwen3-14B", "gpus": 8, "seq_length": 8192, "global_batch_size": 64},
            values={
                "tp": 2,
                "pp": 2,
                "cp": 2,
                "engine_tp": 2,
                "engine_gpus": 4,
                "max_tokens": 3000,
                "model": "Qwen3-8B",
                "gpu": "h100",
                "sample_length": 1000.0,
                "top": 3,
                "vpp": 2,
            },
            beside={
                "vpp": {"pp": 2},
                **dict.fromkeys((*read_by_grpo, "max_tokens", "engine_tp", "engine_gpus"), grpo),
                "lag": {**grpo, "engine_gpus": 4},
            },
            together={"workload": grpo},
        ),
        Walk(
            "import-config",
            {"file": str(i / "trl.yaml"), "out": "run.yaml"},
            values={
                "file": str(i / "axolotl.yaml"),
                "overrides": ["seed=7"],
                "out": "another.yaml",
                "source": "axolotl",
            },
            beside={"force": {"out": str(i / "taken.yaml"), "force": True}},
        ),
        Walk(
            "data make arithmetic",
            {"kind": "arithmetic", "rows": 20, "out": "o.jsonl"},
            values={
                "operations": "+-",
                "recheck_share": 0.5,
                "out": "another.jsonl",
                "test_out": "t.jsonl",
            },
            beside={"test_rows": {"test_out": "t.jsonl"}, "direct_from": {"direct_share": 0.9}},
        ),
        Walk(
            "data make countdown",
            {"kind": "countdown", "rows": 10, "out": "o.jsonl"},
            values={
                "numbers": 3,
                "max_target": 50,
                "max_backtracks": 1,
                "out": "another.jsonl",
                "test_out": "t.jsonl",
                "min_backtracks": 3,
            },
            beside={"test_rows": {"test_out": "t.jsonl"}, "bare_from": {"bare_share": 0.9}},
        ),
        Walk(
            "data stats",
            {"path": str(i / "rows.jsonl")},
            values={
                "path": str(i / "more.jsonl"),
                "tokenizer": str(i / "tokenizer"),
                "chat_template": str(i / "template.jinja"),
                "response_template": "answer:",
                "s1_teacher": "deepseek",
                "fields": {"question": "id"},
                "chat_template_kwargs": {"note": "hello"},
                "duplicates": "keep",
            },
            beside={
                "duplicates": {"path": str(i / "repeats.jsonl"), "tokenizer": str(i / "tokenizer")},
                "chat_template_kwargs": {
                    "tokenizer": str(i / "tokenizer"),
                    "chat_template": str(i / "template.jinja"),
                },
                "chat_template": {"tokenizer": str(i / "tokenizer")},
                "sample": {"tokenizer": str(i / "tokenizer")},
                "response_template": {
                    "tokenizer": str(i / "tokenizer"),
                    "path": str(i / "text.jsonl"),
                    "response_template": "question:",
                },
                "s1_teacher": {
                    "tokenizer": str(i / "tokenizer"),
                    "path": str(i / "s1.jsonl"),
                    "s1_teacher": "gemini",
                },
            },
            probes=("megaladder.curate.stats:SourceSpec",),
        ),
        Walk(
            "data decontaminate",
            {"path": str(i / "rows.jsonl"), "against": [str(i / "bench.jsonl")], "out": "o.jsonl"},
            values={
                "path": str(i / "text.jsonl"),
                "against": [str(i / "other.jsonl")],
                "out": "another.jsonl",
                "min_words": 2,
                "n": 3,
                "columns": ["answer"],
                "max_matches": 1,
                "near_threshold": 0.99,
                "id_column": "question",
            },
            beside={"near_threshold": {"dedup": "near"}, "max_matches": {"n": 3}},
        ),
        Walk(
            "data score",
            {"path": str(i / "rows.jsonl"), "out": "o.jsonl"},
            values={
                "path": str(i / "text.jsonl"),
                "out": "another.jsonl",
                "column": "question",
                "levels": 3,
                "rule_file": str(i / "rule.yaml"),
            },
            probes=("megaladder.curate.score:map_ordered",),
        ),
        Walk(
            "data select",
            {"path": str(i / "rows.jsonl"), "recipe": str(i / "recipe.yaml"), "out": "o.jsonl"},
            values={
                "path": str(i / "more.jsonl"),
                "recipe": str(i / "other.yaml"),
                "out": "another.jsonl",
                "set": ["seed=5"],
                "only": "grid_2*",
                "seed": 9,
            },
            beside={
                "only": {"recipe": str(i / "grid.yaml"), "out": "folder/"},
                "duplicates": {"path": str(i / "repeats.jsonl")},
            },
            probes=("megaladder.curate.select.run:select",),
        ),
        Walk(
            "analyze pass-at-k",
            {"runs": [str(i / "a.jsonl")], "draws": 200},
            values={"runs": [str(i / "b.jsonl")], "k": [2], "benchmark": ["math1"]},
            beside={"benchmark": {"runs": [str(i / "eval" / "a")]}},
        ),
        Walk(
            "analyze transfer",
            {"table": str(i / "scores.csv"), "base": "a", "json_path": "j.json"},
            values={
                "table": str(i / "scores2.csv"),
                "base": "b",
                "sigma": [1.0, 1.1, 1.2],
                "samples": str(i / "eval"),
            },
            beside={k: {"samples": str(i / "eval"), "draws": 200} for k in ("draws", "seed")},
        ),
        Walk(
            "analyze scaling",
            {"table": str(i / "runs.csv")},
            values={"table": str(i / "runs2.csv"), "samples": str(i / "a.jsonl")},
            beside={k: {"samples": str(i / "a.jsonl")} for k in ("draws", "seed")},
        ),
        Walk(
            "analyze ladder",
            {"runs": [str(i / "ladder")], "draws": 200, "json_path": "j.json"},
            values={
                "runs": [str(i / "ladder2")],
                "benchmark": "math1",
                "steps": "last",
                "tier_base": "a",
                "tier_sft": ["c"],
                "factors": str(i / "factors.csv"),
            },
            beside={
                "tier_sft": {"tier_base": "a", "tier_sft": ["b"], "benchmark": "math1"},
                "steps": {"runs": [str(i / "steps")]},
            },
            together={"tier_base": {"tier_sft": ["b"], "benchmark": "math1"}},
        ),
        Walk(
            "analyze predict",
            {
                "table": str(i / "predict_runs.csv"),
                "target": "rl",
                "metrics": ["pass1", "loss"],
                "splits": 20,
            },
            values={
                "table": str(i / "predict_runs2.csv"),
                "target": "rl2",
                "metrics": ["pass8", "loss"],
                "calibration": 0.4,
                "lower_is_better": ["loss"],
                "rank_by": "loss",
                "series": "pairs",
                "order": "hours",
                "flag_score": "pass8",
                "flag_loss": "loss2",
                "samples": str(i / "samples2"),
            },
            beside={
                **dict.fromkeys(("series", "order", "flag_score", "flag_loss"), flagged),
                "samples": {"metrics": ["pass@2", "loss"], "samples": str(i / "samples")},
            },
        ),
        Walk(
            "analyze trajectory",
            {"table": str(i / "curve.csv")},
            values={"table": str(i / "curve2.csv"), "tolerance": 5.0},
        ),
        Walk(
            "analyze budget",
            {"runs": [str(i / "a.jsonl")], "budgets": [6, 20], "workers": 1, "json_path": "j.json"},
            values={
                "runs": [str(i / "b.jsonl")],
                "budgets": [5, 20],
                "benchmark": ["math1"],
                "tokenizer": str(i / "tokenizer"),
                "kind": "exact",
            },
            beside={
                **{key: {"tokenizer": str(i / "tokenizer")} for key in ("kind", "workers")},
                "benchmark": {"runs": [str(i / "eval" / "a")]},
            },
            probes=(
                "megaladder.analysis.studies.budget:GradePool",
                # 20 problems: another seed may well give the same interval
                "megaladder.analysis.studies.budget:mean_intervals",
            ),
        ),
        Walk(
            "analyze compare",
            {
                "base": str(i / "a.jsonl"),
                "runs": [str(i / "b.jsonl"), str(i / "c.jsonl")],
                "draws": 200,
                "json_path": "j.json",
            },
            values={
                "base": str(i / "c.jsonl"),
                "runs": [str(i / "c.jsonl")],
                "level": 0.999,
                "table": str(i / "curve.csv"),
                "compute": [f"a={i / 'run'}"],
            },
            beside={"table": {"compute": [f"a={i / 'run'}"]}},
        ),
        Walk(
            "report",
            {"run_dirs": [str(i / "eval")]},
            values={
                "run_dirs": [str(i / "eval" / "a")],
                "out": "another.html",
                "max_chars": 100,
                "rollout_mb": 0.001,
            },
        ),
        Walk(
            "watch",
            {"run_dirs": [str(i / "eval")]},
            values={"run_dirs": [str(i / "eval" / "a")], "port": 8123},
            stand_ins={"megaladder.watch.verb:WatchServer": PageInName},
        ),
        Walk(
            "study",
            {"name": str(i / "study"), "dry_run": True},
            values={
                "name": str(i / "study2"),
                "out": "another",
                "only": "data",
                "jobs": 7,
                "dry_run": False,
            },
            beside={"jobs": {"dry_run": False}, "launcher": {"dry_run": False}},
            probes=("megaladder.study.verb:Crew",),
        ),
        Walk("power", {"effect": 2.0}, values={"samples": [str(i / "a.jsonl")], "n": [2]}),
        Walk(
            "examples",
            {"names": ["recipes/limo"]},
            values={"names": ["configs/sft_gsm8k_cpu.yaml"], "out": "another"},
        ),
        Walk("doctor", {}),
    ]
