"""The verb `eval`.

For each benchmark problems → prompts → missing samples → grades → files, and the printed scores.

One engine serves all benchmarks of a run. What is stored and refused: `store`; the loop: `run`; the
numbers: `report`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megaladder.config.rules.model import require_model
from megaladder.config.sections.engine import EngineSection
from megaladder.config.sections.evaluate import PromptSection
from megaladder.config.sections.shared import ModelSection
from megaladder.config.verbs.evaluation import EvalConfig, section_values
from megaladder.console import doing
from megaladder.data.chat.tokenizer import load_tokenizer, model_tokenizer
from megaladder.errors import ConfigError
from megaladder.evaluation import judge, lm_eval_format, report
from megaladder.evaluation.benchmarks.job import Job, fingerprint_parts, prepare, write_results
from megaladder.evaluation.benchmarks.prompting import Prompter, make_prompter
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, describe_registry, find_benchmarks
from megaladder.evaluation.benchmarks.stopping import run_until_decided
from megaladder.evaluation.budget import instruction
from megaladder.evaluation.run import Progress, Timing, run_task
from megaladder.evaluation.sandbox import SandboxPool
from megaladder.evaluation.store import Journal
from megaladder.files.sums import refuse_damaged
from megaladder.files.typed import typed
from megaladder.finished import write_evaluated
from megaladder.ledger.sampled import shape_at
from megaladder.rewards.programs.runner import isolation
from megaladder.rewards.verifiers import VERIFIERS
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.rollout.engine import Engine
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.run_dir import write_object
from megaladder.types import Tokenizer

MAX_NAMED = 5  # timeouts and crashes of the grader that are named


def run_eval(config: EvalConfig) -> int:
    """The verb.

    Benchmarks, data, prompts, judge and sandbox are checked before the engine starts."""
    if config.benchmark == ("list",):
        print(describe_registry(config.registry))
        return 0
    for note in config.unread:
        print(f"note: {note}")
    if config.run_dir is not None:
        from megaladder.evaluation.benchmarks.steps import run_steps

        return run_steps(config)
    if config.cases:
        from megaladder.evaluation.benchmarks.turns import run_cases

        return run_cases(config)
    name = config.name or lm_eval_format.sanitized(
        Path(config.model.path).name or config.rollout.engine
    )
    plan = plan_model(config, config.results / name)
    with (
        warm_pool(config) as pool,
        make_engine(config.model, config.rollout, config.seed, plan.tokenizer, plan.out) as engine,
    ):
        plan.generate(engine, pool)
    plan.judge()  # the engine has left: a local judge may need its memory
    following = f"next: megaladder report {typed(plan.out)} --out {typed(plan.out / 'report.html')}"
    print(following)
    written = [*plan.written(), *(Path(p) for p in [config.json_path] if p)]
    write_evaluated(config, [*plan.score_lines(), following], written)
    return 0


@dataclass
class ModelPlan:
    """The benchmarks of one model, ready to be asked; their results go to the folder `out`.

    weights: what identifies them, where they are not those of `config.model.path`.
    """

    config: EvalConfig
    out: Path
    prompter: Prompter
    jobs: list[Job]
    harness: list[BenchmarkSpec]  # those that lm-eval runs
    weights: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)  # further keys of summary.json
    summaries: dict[str, Any] = field(default_factory=dict)
    _judged: list[tuple[Job, dict[str, Any], Timing]] = field(default_factory=list)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompter.tokenizer

    def parts(self, job: Job, engine: Engine) -> dict[str, Any]:
        """What the samples of a benchmark are made with."""
        return fingerprint_parts(job, self.config, self.prompter, engine, self.weights)

    def generate(self, engine: Engine, pool: VerifierPool) -> None:
        """Draws and grades what is missing, and scores what needs no judge."""
        for job in self.jobs:
            parts = self.parts(job, engine)
            job, timing = _generate(job, self.config, engine, pool, parts)
            if job.spec.runner == "judge":
                self._judged.append((job, parts, timing))
            else:
                self.summaries[job.spec.name] = _finish(job, self.config, parts, timing)
            self._write_summary()
        for spec in self.harness:
            from megaladder.evaluation import lm_eval_tasks

            self.summaries[spec.name] = lm_eval_tasks.run_spec(
                spec, self.config, self.prompter, engine, self.out
            )
            self._write_summary()

    def judge(self) -> None:
        """Scores what a judge has to see."""
        for job, parts, timing in self._judged:
            self.summaries[job.spec.name] = _finish(job, self.config, parts, timing)
            self._write_summary()

    def _write_summary(self) -> None:
        """<out>/summary.json over the benchmarks of this call, kept up to date as they finish."""
        model = {"model": self.config.model.path, **self.about}
        extra = [Path(self.config.json_path)] if self.config.json_path else []
        for path in (self.out / "summary.json", *extra):
            write_object(path, {**model, "benchmarks": self.summaries})

    def written(self) -> list[Path]:
        """The files of this call."""
        found = [self.out / "summary.json"]
        for name in self.summaries:
            found += sorted((self.out / name).glob("*.json*"))
        return found

    def score_lines(self) -> list[str]:
        """The headline of each benchmark, for a start that finds all done."""
        return _score_lines(self.summaries)


def plan_model(config: EvalConfig, out: Path, weights: dict[str, Any] | None = None) -> ModelPlan:
    """Reads and checks all that can be before an engine starts. See `ModelPlan`."""
    specs = find_benchmarks(config.benchmark, config.registry)
    _check_stopping(specs, config)
    prompter = make_prompter(
        _tokenizer(config),
        config.prompt,
        config.model.path,
        instruction(config.budget),
        config.model.revision,
    )
    jobs = [prepare(spec, config, prompter, out) for spec in specs if spec.runner != "lm_eval"]
    harness = [spec for spec in specs if spec.runner == "lm_eval"]
    if harness:
        from megaladder.evaluation import lm_eval_tasks

        lm_eval_tasks.require_installed()
    return ModelPlan(config, out, prompter, jobs, harness, weights)


def _check_stopping(specs: Sequence[BenchmarkSpec], config: EvalConfig) -> None:
    late = [spec.name for spec in specs if spec.runner in ("judge", "lm_eval")]
    if late and config.stop_against is not None:
        raise ConfigError(
            f"{', '.join(late)}: scored when all samples are there, so stop_against cannot"
            " stop it; fix: leave the key out, or these benchmarks"
        )


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
    with doing(f"vLLM loads {model.path}"):
        engine = VllmEngine(
            options, Limits(stall_s=section.timeout_s, max_restarts=section.max_restarts)
        )
    print(f"engine ready in {engine.start_up_s:.1f} s: {engine.describe()}")
    return engine


def _tokenizer(config: EvalConfig) -> Tokenizer:
    model = config.model
    if model.path:
        require_model(model.path, model.revision)
    if not (model.tokenizer or model.path):
        raise ConfigError("the engine needs a tokenizer; fix: --model DIR or --tokenizer DIR")
    return model_tokenizer(model)


def _generate(
    job: Job, config: EvalConfig, engine: Engine, pool: VerifierPool, parts: dict[str, Any]
) -> tuple[Job, Timing]:
    """Brings the benchmark's journal to n samples per problem, or to as many as are enough.

    The job with that n."""
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
        task, look, progress = job.task, None, Progress(config.progress_s)
        if job.against is None:
            timing = run_task(task, engine, grader, journal, progress)
        else:
            task, timing, look = run_until_decided(
                task, job.against, engine, grader, journal, progress
            )
            print(
                f"{job.spec.name}  {task.params.n} of {job.task.params.n} samples a problem against"
                f" {config.stop_against}: {look}",
                flush=True,
            )
    failures = grader.failures[seen:]
    for failure in failures[:MAX_NAMED]:
        print(f"  grading {failure.id}: {failure.reason.value} ({failure.detail})")
    if len(failures) > MAX_NAMED:
        print(f"  … and {len(failures) - MAX_NAMED} more")
    return replace(job, task=task, look=look), timing


@contextmanager
def warm_pool(config: EvalConfig) -> Iterator[VerifierPool]:
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


def _finish(job: Job, config: EvalConfig, parts: dict[str, Any], timing: Timing) -> dict[str, Any]:
    """Scores, files and printed lines of a benchmark whose samples are all there."""
    task, n = job.task, job.task.params.n
    with Journal(job.folder, parts) as journal:
        if job.spec.runner == "judge":
            scores = _judged(job, config, journal)
        else:
            scores = report.score(task.problems, journal.records, n, config.seed, job.spec.groups)
        shape = shape_at(config.model.path)
        summary = write_results(job, journal, scores, timing, config.model.path, shape)
    protocol = summary["protocol"]
    print("\n".join(report.lines(scores, protocol, timing)), flush=True)
    return summary


def _judged(job: Job, config: EvalConfig, journal: Journal) -> report.Scores:
    kind, task = str(job.spec.judge), job.task
    with _make_judge(kind, config, job.folder) as by:
        judgements = judge.judge_records(task.problems, journal.stored, by, job.folder)
    return judge.judged_scores(
        task.problems, journal.records, judgements, kind, task.params.n, config.seed
    )


@contextmanager
def _make_judge(kind: str, config: EvalConfig, folder: Path) -> Iterator[judge.Judge]:
    if kind == "reward":
        yield judge.RewardJudge(config.judge)
    elif config.judge.url is not None:
        yield judge.HttpJudge(config.judge)
    else:
        model = str(config.judge.model)
        prompter = make_prompter(load_tokenizer(model), PromptSection(), model)
        options = VllmOptions(
            model=model,
            log_dir=str(folder / "logs"),
            tp=config.rollout.tp,
            cpu_kv_cache_gib=config.rollout.cpu_kv_cache_gib,
        )
        with VllmEngine(options) as engine:
            yield judge.EngineJudge(engine, prompter, config.judge)
