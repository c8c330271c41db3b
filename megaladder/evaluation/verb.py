"""`megaladder eval`: for each benchmark problems → prompts → missing samples → grades → files, and
the printed scores.

One engine serves all benchmarks of a run. What is stored and refused: `store`; the loop: `run`; the
numbers: `report`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder import __version__
from megaladder.config.sections.engine import EngineSection
from megaladder.config.sections.shared import ModelSection
from megaladder.config.verbs.evaluation import EvalConfig, PromptSection, section_values
from megaladder.data.chat.tokenizer import (
    load_tokenizer,
    model_tokenizer,
    tokenizer_dir,
    tokenizer_fingerprint,
)
from megaladder.errors import ConfigError
from megaladder.evaluation import judge, lm_eval_format, report
from megaladder.evaluation.benchmarks.problems import build_problems
from megaladder.evaluation.benchmarks.prompting import Prompter, make_prompter
from megaladder.evaluation.benchmarks.source import BenchmarkRows, load_rows
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, describe_registry, find_benchmarks
from megaladder.evaluation.budget import BudgetSampler, instruction
from megaladder.evaluation.run import Progress, Task, Timing, plain_sampler, run_task
from megaladder.evaluation.sandbox import SandboxPool
from megaladder.evaluation.store import Journal
from megaladder.finished import write_evaluated
from megaladder.ledger.sampled import sampled_work, shape_at, write_sampled_ledger
from megaladder.ledger.work import Work
from megaladder.rewards.grade import grader_label
from megaladder.rewards.programs.runner import isolation
from megaladder.rewards.verifiers import VERIFIERS, parameters_of
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.rollout.engine import Engine, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.run_dir import atomic_write, model_fingerprint, refuse_damaged, to_json
from megaladder.types import Problem, Tokenizer

LEDGER = "ledger.json"
MAX_NAMED = 5  # timeouts and crashes of the grader that are named


@dataclass(frozen=True)
class _Job:
    """One benchmark, ready to run."""

    spec: BenchmarkSpec
    rows: BenchmarkRows
    task: Task
    folder: Path


def run_eval(config: EvalConfig) -> int:
    """The verb. Benchmarks, data, prompts, judge and sandbox are checked before the engine
    starts."""
    if config.benchmark == ("list",):
        print(describe_registry(config.registry))
        return 0
    for note in config.unread:
        print(f"note: {note}")
    specs = find_benchmarks(config.benchmark, config.registry)
    tokenizer = _tokenizer(config)
    prompter = make_prompter(
        tokenizer, config.prompt, config.model.path, instruction(config.budget)
    )
    out = Path(config.out) / (
        config.name
        or lm_eval_format.sanitized(Path(config.model.path).name or config.rollout.engine)
    )
    jobs = [_prepare(spec, config, prompter, out) for spec in specs if spec.runner != "lm_eval"]
    harness = [spec for spec in specs if spec.runner == "lm_eval"]
    if harness:
        from megaladder.evaluation import lm_eval_tasks

        lm_eval_tasks.require_installed()
    summaries: dict[str, Any] = {}
    judged: list[tuple[_Job, dict[str, Any], Timing]] = []
    with (
        _warm_pool(config) as pool,
        make_engine(config.model, config.rollout, config.seed, tokenizer, out) as engine,
    ):
        for job in jobs:
            parts = fingerprint_parts(job, config, prompter, engine)
            timing = _generate(job, config, engine, pool, parts)
            if job.spec.runner == "judge":
                judged.append((job, parts, timing))
            else:
                summaries[job.spec.name] = _finish(job, config, parts, timing)
            _write_summary(config, out, summaries)
        for spec in harness:
            summaries[spec.name] = lm_eval_tasks.run_spec(spec, config, prompter, engine, out)
            _write_summary(config, out, summaries)
    for job, parts, timing in judged:  # the engine has left: a local judge may need its memory
        summaries[job.spec.name] = _finish(job, config, parts, timing)
        _write_summary(config, out, summaries)
    following = f"next: megaladder report {out} --out {out / 'report.html'}"
    print(following)
    written = [out / "summary.json", *(Path(p) for p in [config.json_path] if p)]
    written += [path for name in summaries for path in sorted((out / name).glob("*.json*"))]
    write_evaluated(config, [*_score_lines(summaries), following], written)
    return 0


def _score_lines(summaries: dict[str, Any]) -> list[str]:
    """The headline of each benchmark, for a start that finds all done."""
    found = []
    for name, summary in summaries.items():
        headline = summary["headline"]
        interval = summary["ci95"].get(headline)
        around = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
        score = f"{headline} = {100 * summary['metrics'][headline]:.1f}{around}"
        found.append(f"{name}  {score}  ({summary['num_problems']} problems × {summary['n']})")
    return found


def make_engine(
    model: ModelSection, section: EngineSection, seed: int, tokenizer: Tokenizer, log_dir: Path
) -> FakeEngine | VllmEngine:
    """The engine that the `rollout` section asks for; a context manager."""
    if model.path:
        refuse_damaged(Path(model.path))
    if section.engine == "fake":
        return FakeEngine(
            tokenizer=tokenizer, vocab_size=len(tokenizer), max_restarts=section.max_restarts
        )
    options = VllmOptions(
        model=model.path,
        revision=model.revision,
        tokenizer=model.tokenizer,
        seed=seed,
        trust_remote_code=model.trust_remote_code,
        log_dir=str(log_dir / "logs"),
        **section_values(
            section,
            (
                "tp",
                "replicas",
                "dtype",
                "max_model_len",
                "max_num_seqs",
                "gpu_memory_utilization",
                "cpu_kv_cache_gib",
                "cpu_threads",
            ),
        ),
    )
    engine = VllmEngine(
        options, Limits(stall_s=section.timeout_s, max_restarts=section.max_restarts)
    )
    print(f"engine ready in {engine.start_up_s:.1f} s: {engine.describe()}")
    return engine


def sampling(spec: BenchmarkSpec, config: EvalConfig, stops: Sequence[int]) -> SamplingParams:
    """The benchmark's published decoding under the flags that were given; `stops` end an answer."""
    given = section_values(config.rollout, ("n", "temperature", "top_p", "top_k", "max_tokens"))
    return SamplingParams(
        **{**spec.decoding, **{name: value for name, value in given.items() if value is not None}},
        seed=config.seed,
        stop_token_ids=tuple(stops),
    )


def _tokenizer(config: EvalConfig) -> Tokenizer:
    model = config.model
    if model.path and not Path(model.path).is_dir() and model.revision is None:
        missing = f"model.path {model.path}: no such folder, and a hub id needs its commit"
        raise ConfigError(f"{missing}; fix: --model DIR, or --model.revision COMMIT")
    if not (model.tokenizer or model.path):
        raise ConfigError("the engine needs a tokenizer; fix: --model DIR or --tokenizer DIR")
    return model_tokenizer(model)


def _prepare(spec: BenchmarkSpec, config: EvalConfig, prompter: Prompter, out: Path) -> _Job:
    rows = load_rows(spec, config.data_dir, config.revision)
    if spec.runner == "judge" and config.judge.model is None:
        raise ConfigError(
            f"{spec.name} needs a judge; fix: --judge.model DIR, or --judge.url ADDRESS with"
            " --judge.model NAME"
        )
    template = (
        config.prompt.template.replace("\\n", "\n") if config.prompt.template is not None else None
    )
    problems = build_problems(spec, rows, config.seed, template)[: config.limit]
    params = sampling(spec, config, prompter.stop_token_ids)
    prompts = tuple(prompter.text(problem) for problem in problems)
    prompt_ids = tuple(prompter.ids(text) for text in prompts)
    sampler = plain_sampler
    if config.budget.forces:
        budget = BudgetSampler(config.budget, prompter.tokenizer, max(map(len, prompt_ids)))
        if config.budget.max_thinking is not None:
            budget.limit(params)
        sampler = budget
    task = Task(
        spec.name,
        tuple(problems),
        prompts,
        prompt_ids,
        params,
        sampler,
        graded=spec.runner != "judge",
    )
    return _Job(spec, rows, task, out / spec.name)


def _generate(
    job: _Job, config: EvalConfig, engine: Engine, pool: VerifierPool, parts: dict[str, Any]
) -> Timing:
    """Brings the benchmark's journal to n samples per problem."""
    grader: VerifierPool | SandboxPool = pool
    if any(VERIFIERS[problem.kind].runs_programs for problem in job.task.problems):
        if config.sandbox is not None:
            grader = SandboxPool(config.sandbox, config.grade_workers, config.grade_timeout_s)
        else:
            print(isolation(), flush=True)
    seen = len(grader.failures)
    with Journal(job.folder, parts) as journal:
        if journal.num_resumed or journal.repaired_bytes:
            torn = (
                f", {journal.repaired_bytes} bytes of a torn line cut off"
                if journal.repaired_bytes
                else ""
            )
            print(
                f"{job.spec.name}  resumes: {journal.num_resumed} samples are there{torn}",
                flush=True,
            )
        timing = run_task(job.task, engine, grader, journal, Progress(config.progress_s))
    failures = grader.failures[seen:]
    for failure in failures[:MAX_NAMED]:
        print(f"  grading {failure.id}: {failure.reason.value} ({failure.detail})")
    if len(failures) > MAX_NAMED:
        print(f"  … and {len(failures) - MAX_NAMED} more")
    return timing


@contextmanager
def _warm_pool(config: EvalConfig) -> Iterator[VerifierPool]:
    """One pool for all benchmarks; its processes import sympy while the engine loads the model."""
    with VerifierPool(
        config.grade_workers, config.grade_timeout_s, grader=config.grader, dialect=config.extract
    ) as pool:
        warm_up = threading.Thread(
            target=pool.grade_many, args=([GradeTask("warm-up", "1", "1")],), daemon=True
        )
        warm_up.start()
        try:
            yield pool
        finally:
            warm_up.join()


def _finish(job: _Job, config: EvalConfig, parts: dict[str, Any], timing: Timing) -> dict[str, Any]:
    """Scores, files and printed lines of a benchmark whose samples are all there."""
    task, name, n = job.task, job.spec.name, job.task.params.n
    with Journal(job.folder, parts) as journal:
        protocol = {**parts, "fingerprint": journal.fingerprint, "n": n}
        if job.spec.runner == "judge":
            scores = _judged(job, config, journal)
        else:
            scores = report.score(task.problems, journal.records, n, config.seed, job.spec.groups)
        work = _work(task, journal, config.model.path) + Work(cpu_s=timing.grade_cpu_s)
        summary = report.summary_entry(scores, protocol, timing)
        summary["ledger"] = write_sampled_ledger(job.folder / LEDGER, "evaluation", work)
        lm_eval_format.write_samples(
            job.folder / f"samples_{name}.jsonl", task, journal.stored, scores, journal.fingerprint
        )
        results = lm_eval_format.results_object(task, scores, summary, config.model.path)
        atomic_write(
            job.folder / f"results_{name}.json", to_json(results, sort_keys=True, indent=2) + "\n"
        )
        atomic_write(job.folder / "summary.json", to_json(summary, sort_keys=True, indent=2) + "\n")
    print("\n".join(report.lines(scores, protocol, timing)), flush=True)
    return summary


def _work(task: Task, journal: Journal, model: str) -> Work:
    """What the samples of a benchmark cost, drawn by this start or an earlier one."""
    prompts = {p.id: len(ids) for p, ids in zip(task.problems, task.prompt_ids, strict=True)}
    samples = (
        (problem, kept.num_tokens)
        for (problem, _), kept in journal.records.items()
        if problem in prompts
    )
    return sampled_work(shape_at(model), prompts, samples)


def _judged(job: _Job, config: EvalConfig, journal: Journal) -> report.Scores:
    kind, task = str(job.spec.judge), job.task
    with _make_judge(kind, config) as by:
        judgements = judge.judge_records(task.problems, journal.stored, by, job.folder)
    return judge.judged_scores(
        task.problems, journal.records, judgements, kind, task.params.n, config.seed
    )


@contextmanager
def _make_judge(kind: str, config: EvalConfig) -> Iterator[judge.Judge]:
    if kind == "reward":
        yield judge.RewardJudge(config.judge)
    elif config.judge.url is not None:
        yield judge.HttpJudge(config.judge)
    else:
        folder = str(config.judge.model)
        prompter = make_prompter(load_tokenizer(folder), PromptSection(), folder)
        options = VllmOptions(
            model=str(config.judge.model),
            tp=config.rollout.tp,
            cpu_kv_cache_gib=config.rollout.cpu_kv_cache_gib,
        )
        with VllmEngine(options) as engine:
            yield judge.EngineJudge(engine, prompter, config.judge)


def fingerprint_parts(
    job: _Job, config: EvalConfig, prompter: Prompter, engine: Engine
) -> dict[str, Any]:
    """Everything that decides what a sample is. Not in it: n (a larger n adds samples) and what
    only changes speed."""
    task, model = job.task, config.model
    decoding = {
        name: getattr(task.params, name)
        for name in SamplingParams.__dataclass_fields__
        if name not in ("n", "logprobs")
    }
    problems = [
        [problem.id, prompt, problem.gold, problem.kind, *_parameters(problem)]
        for problem, prompt in zip(task.problems, task.prompts, strict=True)
    ]
    tokenizer_folder = tokenizer_dir(
        model.tokenizer or model.path, None if model.tokenizer else model.revision
    )
    return {
        "benchmark": job.spec.name,
        "model": model_fingerprint(model.path, model.revision),
        "tokenizer_sha256": tokenizer_fingerprint(
            tokenizer_folder, prompter.tokenizer.chat_template
        ),
        "prompt": prompter.fingerprint(),
        "decoding": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in decoding.items()
        },
        "budget": config.budget.model_dump(mode="json") if config.budget.active else None,
        "data": {
            "source": job.rows.source,
            "revision": job.rows.revision,
            "num_rows": len(job.rows.rows),
            "problems_sha256": hashlib.sha256(to_json(problems).encode()).hexdigest(),
        },
        "limit": config.limit if len(task.problems) < len(job.rows.rows) else None,
        "engine": {
            key: value for key, value in engine.describe().items() if key not in ("replicas", "tp")
        },
        "grader": grader_label(config.grader, config.extract),
        "megaladder": __version__,
    }


def _parameters(problem: Problem) -> list[dict[str, Any]]:
    """What the verifier reads beside the gold answer, if anything."""
    found = parameters_of(problem.kind, problem.metadata)
    return [found] if found else []


def _write_summary(config: EvalConfig, out: Path, summaries: dict[str, Any]) -> None:
    """<out>/<model>/summary.json over the benchmarks of this call, kept up to date as they
    finish."""
    text = (
        to_json({"model": config.model.path, "benchmarks": summaries}, sort_keys=True, indent=2)
        + "\n"
    )
    for path in (out / "summary.json", *([Path(config.json_path)] if config.json_path else [])):
        atomic_write(path, text)
