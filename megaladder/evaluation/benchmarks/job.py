"""One benchmark for one model, ready to run.

Problems, prompts, how answers are drawn, and everything that a score's protocol names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder import __version__
from megaladder.config.verbs.evaluation import EvalConfig, section_values
from megaladder.data.chat.tokenizer import tokenizer_fingerprint, tokenizer_folder
from megaladder.errors import ConfigError
from megaladder.evaluation import lm_eval_format, report
from megaladder.evaluation.benchmarks.identity import (
    decoding_identity,
    engine_identity,
    problems_digest,
)
from megaladder.evaluation.benchmarks.problems import build_problems
from megaladder.evaluation.benchmarks.prompting import Prompter
from megaladder.evaluation.benchmarks.source import BenchmarkRows, load_rows
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec
from megaladder.evaluation.benchmarks.stopping import Look, stored_shares
from megaladder.evaluation.budget import BudgetSampler
from megaladder.evaluation.run import Task, Timing, plain_sampler
from megaladder.evaluation.store import Journal
from megaladder.files.sums import forget_sums, write_sums
from megaladder.ledger.sampled import sampled_work, write_sampled_ledger
from megaladder.ledger.work import Work
from megaladder.rewards.grade import grader_label
from megaladder.rollout.engine import Engine, SamplingParams
from megaladder.run_dir import model_fingerprint, write_object

if TYPE_CHECKING:
    from megaladder.model.hf_config import ModelShape

LEDGER = "ledger.json"


@dataclass(frozen=True)
class Job:
    """One benchmark, ready to run."""

    spec: BenchmarkSpec
    rows: BenchmarkRows
    task: Task
    folder: Path
    # of the model that it is compared with while it samples: share of right samples by problem
    against: dict[str, float] | None = None
    look: Look | None = None


def prepare(spec: BenchmarkSpec, config: EvalConfig, prompter: Prompter, out: Path) -> Job:
    """Reads a benchmark and renders its prompts; its results will go to a folder in `out`.

    Raises:
        ConfigError: it needs a judge and none is named, or a budget leaves no room.
    """
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
    stored = config.stop_against
    against = stored_shares(Path(stored), task) if stored is not None else None
    return Job(spec, rows, task, out / spec.name, against)


def sampling(spec: BenchmarkSpec, config: EvalConfig, stops: Sequence[int]) -> SamplingParams:
    """The benchmark's published decoding under the flags that were given; `stops` end an answer."""
    given = section_values(config.rollout, ("n", "temperature", "top_p", "top_k", "max_tokens"))
    return SamplingParams(
        **{**spec.decoding, **{name: value for name, value in given.items() if value is not None}},
        seed=config.seed,
        stop_token_ids=tuple(stops),
    )


def fingerprint_parts(
    job: Job,
    config: EvalConfig,
    prompter: Prompter,
    engine: Engine,
    weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that decides what a sample is.

    Not in it: n (a larger n adds samples) and what only changes speed. weights: what identifies
    them, where they are not those of `model.path`."""
    task, model = job.task, config.model
    return {
        "benchmark": job.spec.name,
        "model": weights or model_fingerprint(model.path, model.revision),
        "tokenizer_sha256": tokenizer_fingerprint(
            tokenizer_folder(model), prompter.tokenizer.chat_template
        ),
        "prompt": prompter.fingerprint(),
        "decoding": decoding_identity(task.params),
        "budget": config.budget.model_dump(mode="json") if config.budget.active else None,
        "data": {
            "source": job.rows.source,
            "revision": job.rows.revision,
            "num_rows": len(job.rows.rows),
            "problems_sha256": problems_digest(task.problems, task.prompts),
        },
        "limit": config.limit if len(task.problems) < len(job.rows.rows) else None,
        "engine": engine_identity(engine),
        "grader": grader_label(config.grader, config.extract),
        "megaladder": __version__,
    }


def write_results(
    job: Job,
    journal: Journal,
    scores: report.Scores,
    timing: Timing,
    model: str,
    shape: ModelShape | None,
) -> dict[str, Any]:
    """Writes samples, results and summary of a benchmark whose samples are all in the journal.

    Returns the summary. model: what the results call the model; shape: of it, for the ledger."""
    task, name = job.task, job.spec.name
    protocol = {**journal.parts, "fingerprint": journal.fingerprint, "n": task.params.n}
    summary = report.summary_entry(scores, protocol, timing)
    work = sampled_cost(task, journal, shape) + Work(cpu_s=timing.grade_cpu_s)
    if job.look is not None:
        summary["against"] = job.look.as_json()
    summary["ledger"] = write_sampled_ledger(job.folder / LEDGER, "evaluation", work)
    # lm-eval's rows have no place for a digest of their own
    samples = job.folder / f"samples_{name}.jsonl"
    forget_sums(job.folder)
    lm_eval_format.write_samples(samples, task, journal.stored, scores, journal.fingerprint)
    write_sums(job.folder, [samples.name])
    results = lm_eval_format.results_object(task, scores, summary, model)
    write_object(job.folder / f"results_{name}.json", results)
    write_object(job.folder / "summary.json", summary)
    return summary


def sampled_cost(task: Task, journal: Journal, shape: ModelShape | None) -> Work:
    """What the samples of a benchmark cost, drawn by this start or an earlier one."""
    prompts = {p.id: len(ids) for p, ids in zip(task.problems, task.prompt_ids, strict=True)}
    samples = (
        (problem, kept.num_tokens)
        for (problem, _), kept in journal.records.items()
        if problem in prompts
    )
    return sampled_work(shape, prompts, samples)


def score_row(step: int, benchmark: str, summary: dict[str, Any]) -> dict[str, Any]:
    """A row of evaluations.jsonl.

    The headline of a benchmark at a step of a training, a share, with its 95 % interval (None for a
    single problem)."""
    metric = summary["headline"]
    low, high = summary["ci95"].get(metric) or (None, None)
    return {
        "step": step,
        "benchmark": benchmark,
        "metric": metric,
        "score": summary["metrics"][metric],
        "low": low,
        "high": high,
        "num_problems": summary["num_problems"],
        "n": summary["n"],
        "response_length": summary["metrics"].get("response_length"),
    }
