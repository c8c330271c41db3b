"""The benchmarks of a training run, read and checked before an engine starts.

They are asked and graded by the code of `megaladder eval`, which is given a configuration of its
own: a score during training and one afterwards have the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megaladder import parallel
from megaladder.config.sections.evaluate import EvaluateSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.data.chat.tokenizer import model_tokenizer, tokenizer_folder
from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.job import Job, prepare
from megaladder.evaluation.benchmarks.prompting import Prompter, make_prompter
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec, find_benchmarks
from megaladder.evaluation.run import Sampler
from megaladder.rollout.fake_engine import KnownAnswers
from megaladder.types import DialectName


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """The benchmarks with their prompts; on rank 0. config: what `eval` would be told."""

    config: EvalConfig
    prompter: Prompter
    jobs: tuple[Job, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return max(
            max(map(len, job.task.prompt_ids)) + job.task.params.max_tokens for job in self.jobs
        )

    @property
    def known(self) -> KnownAnswers:
        """Prompts and right answers, for a fake engine."""
        gold_of = {
            ids: problem.gold
            for job in self.jobs
            for ids, problem in zip(job.task.prompt_ids, job.task.problems, strict=True)
        }
        return KnownAnswers(gold_of, self.prompter.tokenizer)

    def lines(self, section: EvaluateSection) -> list[str]:
        """What is asked and when, a line each."""
        when = f"every {section.every} steps, " if section.every else ""
        found = [f"evaluated {when}before the first and after the last step:"]
        for job in self.jobs:
            task = job.task
            found.append(
                f"  {task.benchmark}: {len(task.problems):,} of {len(job.rows.rows):,} problems ×"
                f" {task.params.n}, at most {task.params.max_tokens:,} tokens, temperature"
                f" {task.params.temperature:g}"
            )
        return found


def prepare_benchmarks(
    config: RunConfig, extract: DialectName, model_folder: Path, longest: int | None = None
) -> tuple[BenchmarkSet | None, int]:
    """Reads the benchmarks on rank 0, and how many tokens prompt and answer take at most. Collective.

    The set is None on other ranks, and where none is asked for (0 tokens). longest: what the engine
    takes, where that is decided elsewhere.

    Raises:
        ConfigError: an unknown benchmark, one that needs more than an engine and the grader, or a
        prompt that leaves no room for the answer; on every rank.
    """
    if not config.evaluate.benchmarks:
        return None, 0
    box: list[BenchmarkSet] = []

    def read() -> int:
        box.append(read_benchmarks(config, extract, model_folder))
        check_room(box[0], longest)
        return box[0].longest

    tokens = parallel.on_main(read)
    return (box[0] if box else None), tokens


def read_benchmarks(
    config: RunConfig, extract: DialectName, model_folder: str | Path
) -> BenchmarkSet:
    """The benchmarks of `config.evaluate` for the model's tokenizer.

    Raises as `prepare_benchmarks`."""
    specs = [
        usable(spec)
        for spec in find_benchmarks(config.evaluate.benchmarks, config.evaluate.registry)
    ]
    asked = _as_eval(config, extract, model_folder)
    tokenizer = model_tokenizer(config.model, tokenizer_folder(config.model, model_folder))
    prompter = make_prompter(tokenizer, config.evaluate.prompt, str(model_folder))
    jobs = [prepare(spec, asked, prompter, Path(config.run_dir)) for spec in specs]
    return BenchmarkSet(asked, prompter, tuple(jobs))


def check_room(found: BenchmarkSet, longest: int | None) -> None:
    """Raises ConfigError where prompt and answer are more than the `longest` that the engine takes."""
    if longest is not None and found.longest > longest:
        raise ConfigError(
            f"evaluate.benchmarks {','.join(found.config.benchmark)}: prompt and answer take up to"
            f" {found.longest:,} tokens, the engine is started with data.seq_length {longest:,};"
            " fix: a smaller evaluate.max_tokens, or a larger data.seq_length"
        )


def usable(spec: BenchmarkSpec) -> BenchmarkSpec:
    """The benchmark. Raises ConfigError for one that needs more than an engine and the grader."""
    if spec.runner != "ours":
        needs = "lm-eval" if spec.runner == "lm_eval" else "a judge"
        raise ConfigError(
            f"evaluate.benchmarks {spec.name} needs {needs}, which does not run inside a training;"
            " fix: another benchmark, and `megaladder eval RUN_DIR` afterwards for this one"
        )
    return spec


def _as_eval(config: RunConfig, extract: DialectName, model_folder: str | Path) -> EvalConfig:
    section = config.evaluate
    decoding = {
        "n": section.n,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": section.top_k,
        "max_tokens": section.max_tokens,
    }
    model = config.model.model_dump(exclude={"init"})
    return EvalConfig.model_validate(
        {
            "model": {**model, "path": str(model_folder)},
            "benchmark": section.benchmarks,
            "registry": section.registry,
            "data_dir": section.data_dir,
            "limit": section.limit,
            "seed": section.seed,
            "rollout": decoding,
            "prompt": section.prompt.model_dump(include={"style", "system", "suffix", "template"}),
            "extract": extract,
        }
    )


def at_step(job: Job, folder: Path, sampler: Sampler) -> Job:
    """The job with its results in `folder`, its samples drawn by `sampler`."""
    return replace(job, folder=folder / job.spec.name, task=replace(job.task, sampler=sampler))
