"""The walks of the verbs that generate or grade: eval, data sample, data get, grade, bench rollout."""

from __future__ import annotations

from pathlib import Path

from walks.stand_ins import (
    NO_PAUSES,
    AnsweringEngine,
    BareInName,
    FlakyService,
    GradesHere,
    VllmInName,
    hub_rows,
)
from walks.walk import Walk

VLLM_KEYS = (
    *("tp", "replicas", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization"),
    *("cpu_kv_cache_gib", "cpu_threads", "timeout_s"),
)
ENGINE_PROBES = (
    "megaladder.evaluation.verb:VllmEngine",
    "megaladder.evaluation.verb:FakeEngine",
    "megaladder.rollout.engine:BaseEngine.stream",
    "transformers:AutoTokenizer.from_pretrained",
)
STAND_INS = {
    "megaladder.rewards.verifiers.pool:GradePool": GradesHere,
    "megaladder.evaluation.verb:FakeEngine": AnsweringEngine,
    "megaladder.evaluation.verb:VllmEngine": VllmInName,
}


def engine_walks(i: Path) -> list[Walk]:
    """`i`: the folder of `make_inputs`."""
    return [eval_walk(i), sample_walk(i), *_small_walks(i)]


def _small_walks(i: Path) -> list[Walk]:
    return [
        Walk(
            "grade",
            {"input": str(i / "answers.jsonl"), "output": "o.jsonl", "workers": 1},
            values={
                "input": str(i / "other_answers.jsonl"),
                "output": "another.jsonl",
                "kind": "exact",
                "grader": "minerva",
                "extract": "first-box",
            },
            probes=("megaladder.analysis.grade:VerifierPool",),
            stand_ins=STAND_INS,
        ),
        Walk(
            "data get",
            {"names": ["gsm8k"]},
            values={"names": ["math500"], "revision": "abc"},
            stand_ins={"megaladder.curate.get:load_hub_rows": hub_rows},
        ),
        Walk(
            "bench rollout",
            {"model": str(i / "model"), "rounds": 1, "json_path": "j.json"},
            values={"model": str(i / "other_model"), "json_path": "another.json"},
            probes=(
                "megaladder.tools.bench_rollout:VllmEngine",
                "megaladder.tools.bench_rollout:_Bare.round",
                "megaladder.rollout.engine:BaseEngine.stream",
            ),
            stand_ins={
                "megaladder.tools.bench_rollout:VllmEngine": VllmInName,
                "megaladder.tools.bench_rollout:_Bare": BareInName,
            },
            # all that is printed repeats the configuration, or is a speed
            unseen="",
            echoes=frozenset(
                (
                    *("num_prompts", "prompt_tokens", "max_tokens", "rounds"),
                    *("ratio_best", "ratio_median"),
                )
            ),
        ),
    ]


def eval_walk(i: Path) -> Walk:
    """Two problems, two samples each."""
    thinking = {"budget.max_thinking": 4}
    waiting = {"budget.num_waits": 1, "budget.max_thinking": 4}
    judged = {"benchmark": ["hexphi"], "judge.model": str(i / "model")}
    served = {**judged, "judge.url": "http://127.0.0.1:1/v1", "judge.model": "name"}
    from_vllm = {"rollout.engine": "vllm"}
    return Walk(
        "eval",
        {
            "model.path": str(i / "model"),
            "benchmark": ["amc23"],
            "data_dir": str(i / "bench"),
            "rollout.engine": "fake",
            "rollout.n": 2,
            "grade_workers": 1,
        },
        values={
            "model.path": str(i / "other_model"),
            "model.tokenizer": str(i / "tokenizer"),
            "model.chat_template": str(i / "template.jinja"),
            "model.chat_template_kwargs": {"note": "hello"},
            "model.template_date": "2025-01-01",
            "benchmark": ["gsm8k"],
            "data_dir": str(i / "bench2"),
            "registry": str(i / "other_registry.yaml"),
            "limit": 1,
            "cases": {"one": {"limit": 1}},
            "rollout.engine": "vllm",
            "rollout.temperature": 0.3,
            "rollout.max_tokens": 9,
            "prompt.style": "raw",
            "prompt.template": "{question} !",
            "budget.max_thinking": 4,
            "judge.model": str(i / "other_model"),
            "judge.url": "http://127.0.0.1:2/v1",
            "judge.key_variable": "PATH",
            "judge.retries": 0,
            "sandbox": "true",
            "grader": "minerva",
            "extract": "first-box",
        },
        beside={
            "model.chat_template_kwargs": {"model.chat_template": str(i / "template.jinja")},
            "model.template_date": {"model.chat_template": str(i / "dated.jinja")},
            "judge.model": judged,
            "registry": {"benchmark": ["mine"], "registry": str(i / "registry.yaml")},
            "sandbox": {"benchmark": ["livecodebench"]},
        },
        needs={
            **{f"rollout.{name}": from_vllm for name in VLLM_KEYS},
            **{f"budget.{name}": thinking for name in ("start", "end", "end_forced", "stop")},
            **{f"budget.{name}": waiting for name in ("wait", "accounting")},
            "budget.max_tries": {"budget.reject_above": 2},
            "judge.max_tokens": judged,
            **{f"judge.{name}": served for name in ("url", "key_variable", "retries")},
        },
        probes=(
            *ENGINE_PROBES,
            *(f"megaladder.evaluation.verb:{name}" for name in ("VerifierPool", "SandboxPool")),
            "megaladder.evaluation.verb:Progress",
            "urllib.request:Request",
        ),
        slow=True,
        stand_ins={
            **STAND_INS,
            "megaladder.evaluation.judge:answer_within": FlakyService(),
            "megaladder.evaluation.judge:time": NO_PAUSES,
        },
    )


def sample_walk(i: Path) -> Walk:
    """Problems with two samples each."""
    from_vllm = {"rollout.engine": "vllm"}
    return Walk(
        "data sample",
        {
            "path": str(i / "problems.jsonl"),
            "out": "o.jsonl",
            "model.path": str(i / "model"),
            "rollout.engine": "fake",
            "rollout.n": 4,
            "grade_workers": 1,
        },
        values={
            "path": str(i / "other_problems.jsonl"),
            "out": "another.jsonl",
            "model.path": str(i / "other_model"),
            "model.tokenizer": str(i / "tokenizer"),
            "model.chat_template": str(i / "template.jinja"),
            "model.chat_template_kwargs": {"note": "hello"},
            "model.template_date": "2025-01-01",
            "keep": "all",
            "duplicates": "keep",
            "kind": "exact",
            "limit": 1,
            "rollout.engine": "vllm",
            "rollout.max_tokens": 9,
            "prompt.style": "raw",
        },
        needs={f"rollout.{name}": from_vllm for name in VLLM_KEYS},
        beside={
            "duplicates": {"path": str(i / "repeated_problems.jsonl")},
            "model.chat_template_kwargs": {"model.chat_template": str(i / "template.jinja")},
            "model.template_date": {"model.chat_template": str(i / "dated.jinja")},
        },
        probes=(
            *ENGINE_PROBES,
            "megaladder.curate.teacher.sample:VerifierPool",
            "megaladder.curate.teacher.sample:draw",
        ),
        stand_ins=STAND_INS,
        slow=True,
    )
