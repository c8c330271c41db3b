"""The verb `data sample`.

Problems → n answers of a teacher → grades → the kept ones as training rows. Resumable, nothing
doubled.

    OUT.samples/journal.jsonl   every sample as it is graded, with ids and log-probs: the truth,
    appended
    OUT                         the kept samples in Rethinking SFT's columns (message, response,
                                advantage[, logprob])
    OUT.difficulty.jsonl        per problem: samples, correct, success rate
    OUT.ledger.json             tokens, FLOPs and grading seconds of all samples, kept or not

`logprob` is written where the answer's text tokenises to exactly the sampled ids (end-of-sequence
included), because that is what its reader checks; elsewhere it is left out and counted. The full
distribution's entropy is not kept (the engine does not give it): `entropy_estimate` is −mean
log-prob of the sample itself.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from megaladder import __version__
from megaladder.config.rules.model import require_model
from megaladder.config.verbs.evaluation import section_values
from megaladder.console import clock, tell
from megaladder.curate.rows import Row, RowWriter, check_target, fetch_rows, parse_fetched
from megaladder.curate.teacher.journal import TeacherJournal, TeacherSample
from megaladder.data.chat.templates import turn_fields
from megaladder.data.chat.tokenizer import model_tokenizer, tokenizer_fingerprint, tokenizer_folder
from megaladder.data.read_problems import ProblemOptions, ProblemReader
from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.identity import (
    decoding_identity,
    engine_identity,
    problems_digest,
)
from megaladder.evaluation.benchmarks.prompting import Prompter, make_prompter
from megaladder.evaluation.verb import make_engine
from megaladder.finished import write_sampled
from megaladder.ledger.sampled import sampled_work, shape_at, teacher_ledger, write_sampled_ledger
from megaladder.ledger.work import Work
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradeTask
from megaladder.rollout.engine import Engine, SampleRequest, SamplingParams, expand
from megaladder.run_dir import model_fingerprint
from megaladder.types import Completion, FinishReason, Problem, Tokenizer

if TYPE_CHECKING:
    from megaladder.config.verbs.data import SampleConfig

PROBLEMS_AT_ONCE = 2048  # whose requests the engine holds
GRADE_BATCH = 64
MAX_NAMED = 5


@dataclass(frozen=True)
class TeacherTask:
    """Problems with their prompts, and how samples are drawn."""

    problems: Sequence[Problem]
    prompts: Sequence[str]
    prompt_ids: Sequence[tuple[int, ...]]
    params: SamplingParams


@dataclass
class Counts:
    """What happened to completions on the way, for the last lines."""

    new: int = 0
    tokens: int = 0
    aborted: int = 0
    seconds: float = 0.0
    without_logprobs: Counter[str] = field(default_factory=Counter)


def run_sample(config: SampleConfig) -> None:
    """The verb. Everything that can be wrong with the input is found before the engine starts."""
    task, prompter = prepare(config)
    folder = Path(f"{config.out}.samples")
    check_target(config.out)
    for note in config.unread:
        print(f"note: {note}")
    with make_engine(
        config.model, config.rollout, config.seed, prompter.tokenizer, folder
    ) as engine:
        with TeacherJournal(folder, fingerprint_parts(config, task, prompter, engine)) as journal:
            if journal.num_resumed:
                print(
                    f"resumes: {journal.num_resumed:,} of {len(task.problems) * task.params.n:,}"
                    " samples are there",
                    flush=True,
                )
            with VerifierPool(config.grade_workers, config.grade_timeout_s) as pool:
                counts = draw(task, engine, pool, journal, config.progress_s)
                failures, cpu_s = list(pool.failures), pool.cpu_s
            with RowWriter(config.out) as writer:
                write_kept(config, task, journal, writer, (prompter.tokenizer, counts))
            rates = write_difficulty(f"{config.out}.difficulty.jsonl", task, journal)
            work = teacher_work(task, journal, config.model.path) + Work(cpu_s=cpu_s)
            write_sampled_ledger(teacher_ledger(config.out), "teacher", work)
    lines = list(_lines(config, task, journal, (counts, rates, writer.num_rows)))
    print("\n".join(lines))
    for failure in failures[:MAX_NAMED]:
        print(f"  grading {failure.id}: {failure.reason.value} ({failure.detail})")
    if not counts.aborted:
        write_sampled(
            config,
            lines,
            [
                Path(config.out),
                Path(f"{config.out}.difficulty.jsonl"),
                teacher_ledger(config.out),
                journal.path,
            ],
        )


def prepare(config: SampleConfig) -> tuple[TeacherTask, Prompter]:
    """Reads the problems and renders the prompts."""
    if not (config.model.tokenizer or config.model.path):
        raise ConfigError(
            "the teacher needs a tokenizer; fix: --model DIR (or --tokenizer DIR with --engine"
            " fake)"
        )
    if config.model.path:
        require_model(config.model.path, config.model.revision)
    tokenizer = model_tokenizer(config.model)
    reader = ProblemReader(
        config.path, ProblemOptions(kind=config.kind, duplicates=config.duplicates)
    )
    problems = list(reader)[: config.limit]
    print("\n".join(reader.lines()), end="\n" if reader.lines() else "")
    prompter = make_prompter(
        tokenizer, config.prompt, config.model.path, revision=config.model.revision
    )
    prompts = [prompter.text(problem) for problem in problems]
    decoding = section_values(
        config.rollout, ("n", "temperature", "top_p", "top_k", "min_p", "max_tokens")
    )
    params = SamplingParams(
        **decoding, seed=config.seed, logprobs=True, stop_token_ids=prompter.stop_token_ids
    )
    return (
        TeacherTask(problems, prompts, [prompter.ids(text) for text in prompts], params),
        prompter,
    )


def draw(
    task: TeacherTask,
    engine: Engine,
    pool: VerifierPool,
    journal: TeacherJournal,
    progress_s: float,
) -> Counts:
    """Brings the journal to n samples per problem; graded in batches while the engine goes on.

    EngineError: start again to resume."""
    counts, begun = Counts(), time.monotonic()
    said = begun
    for start in range(0, len(task.problems), PROBLEMS_AT_ONCE):
        requests, keys = _missing(
            task, journal, range(start, min(start + PROBLEMS_AT_ONCE, len(task.problems)))
        )
        waiting: list[tuple[int, int, Completion]] = []
        try:
            for index, completion in engine.stream(requests):
                if completion.finish_reason is FinishReason.ABORT:
                    counts.aborted += 1
                    continue
                waiting.append((*keys[index], completion))
                counts.new += 1
                counts.tokens += len(completion.token_ids)
                if len(waiting) >= GRADE_BATCH:
                    _grade_and_append(task, waiting, pool, journal)
                if time.monotonic() - said > progress_s:
                    said = time.monotonic()
                    _say(task, journal, counts, said - begun)
        finally:  # also when the engine is lost: what it finished is kept
            _grade_and_append(task, waiting, pool, journal)
    counts.seconds = time.monotonic() - begun
    return counts


def _missing(
    task: TeacherTask, journal: TeacherJournal, indices: range
) -> tuple[list[SampleRequest], list[tuple[int, int]]]:
    """Requests for the samples that are not there, and for each its (problem index, sample)."""
    requests: list[SampleRequest] = []
    keys: list[tuple[int, int]] = []
    for index in indices:
        samples = journal.missing(task.problems[index].id, task.params.n)
        requests += expand(task.prompt_ids[index], task.params, samples)
        keys += [(index, sample) for sample in samples]
    return requests, keys


def _grade_and_append(
    task: TeacherTask,
    waiting: list[tuple[int, int, Completion]],
    pool: VerifierPool,
    journal: TeacherJournal,
) -> None:
    problems = [task.problems[index] for index, _, _ in waiting]
    tasks = [
        GradeTask(
            f"{problem.id}#{sample}", completion.text, problem.gold, problem.kind, problem.metadata
        )
        for problem, (_, sample, completion) in zip(problems, waiting, strict=True)
    ]
    for problem, (_, sample, completion), graded in zip(
        problems, waiting, pool.grade_many(tasks), strict=True
    ):
        journal.append(TeacherSample(problem.id, sample, completion, graded))
    waiting.clear()


def teacher_work(task: TeacherTask, journal: TeacherJournal, model: str) -> Work:
    """What the samples in the journal cost, drawn by this start or an earlier one."""
    prompts = {p.id: len(ids) for p, ids in zip(task.problems, task.prompt_ids, strict=True)}
    samples = (
        (problem, verdict.num_tokens)
        for (problem, _), verdict in journal.records.items()
        if problem in prompts
    )
    return sampled_work(shape_at(model), prompts, samples)


def _say(task: TeacherTask, journal: TeacherJournal, counts: Counts, elapsed_s: float) -> None:
    done, total = len(journal.records), len(task.problems) * task.params.n
    left_s = elapsed_s / counts.new * (total - done) if counts.new else 0.0
    tell(
        f"{done:,}/{total:,} samples  {counts.tokens / elapsed_s:,.0f} tokens/s  ETA"
        f" {clock(left_s)}"
    )


def kept_samples(policy: str, verdicts: dict[int, bool], seed: int, problem_id: str) -> list[int]:
    """Which samples of a problem a policy keeps, in order. `verdicts`: sample → correct.

    all: every one; correct: the correct ones; one_correct: one of these, by a hash of seed and
    problem; mixed: all of a problem that has both correct and wrong ones (what RL can learn from),
    else none.

    >>> kept_samples("mixed", {0: True, 1: False}, 42, "q"), kept_samples("mixed", {0: True, 1:
    True}, 42, "q") ([0, 1], [])
    """
    samples = sorted(verdicts)
    correct = [sample for sample in samples if verdicts[sample]]
    if policy == "all":
        return samples
    if policy == "correct":
        return correct
    if policy == "one_correct":
        digest = hashlib.blake2b(f"{seed}/{problem_id}".encode(), digest_size=8).digest()
        return [correct[int.from_bytes(digest, "big") % len(correct)]] if correct else []
    assert policy == "mixed", policy
    return samples if 0 < len(correct) < len(samples) else []


def write_kept(
    config: SampleConfig,
    task: TeacherTask,
    journal: TeacherJournal,
    writer: RowWriter,
    by: tuple[Any, Counts],
) -> None:
    """The kept samples in the order of the problems, read back from the journal one at a time."""
    wanted: list[tuple[Problem, int, int]] = []
    for problem in task.problems:
        verdicts = _verdicts(journal, problem, task.params.n)
        for sample in kept_samples(config.keep, verdicts, config.seed, problem.id):
            wanted.append((problem, sample, journal.records[problem.id, sample].line))
    for (problem, _, _), raw in zip(
        wanted, fetch_rows(journal.path, [line for _, _, line in wanted]), strict=True
    ):
        verdicts = _verdicts(journal, problem, task.params.n)
        row = training_row(problem, parse_fetched(raw, str(journal.path)), *by)
        writer.write(
            {**row, "num_samples": len(verdicts), "success_rate": fmean(verdicts.values())}
        )


def _verdicts(journal: TeacherJournal, problem: Problem, n: int) -> dict[int, bool]:
    found = ((sample, journal.records.get((problem.id, sample))) for sample in range(n))
    return {
        sample: verdict.correct
        for sample, verdict in found
        if verdict is not None and verdict.correct is not None
    }


def training_row(problem: Problem, stored: Row, tokenizer: Tokenizer, counts: Counts) -> Row:
    """A journal line as a training row.

    advantage: 1 for a correct answer, −1 for a wrong one (only advantage-weighted losses read it).
    """
    logprobs = stored["logprobs"]
    row: Row = {
        "id": f"{problem.id}#{stored['sample']}",
        "problem_id": problem.id,
        "sample": stored["sample"],
        "message": [turn_fields(message) for message in problem.prompt],
        **({"tools": list(problem.tools)} if problem.tools else {}),
        **({"chat_template_kwargs": arguments} if (arguments := problem.template_kwargs) else {}),
        "response": stored["response"],
        "advantage": 1.0 if stored["correct"] else -1.0,
    }
    reason = _no_logprob_reason(stored, tokenizer)
    if reason is None:
        row["logprob"] = logprobs
    else:
        counts.without_logprobs[reason] += 1
    mean = fmean(logprobs) if logprobs else None
    return row | {
        "mean_logprob": mean,
        "entropy_estimate": None if mean is None else -mean,
        "num_tokens": len(stored["response_ids"]),
        "finish_reason": stored["finish_reason"],
        "gold": problem.gold,
        "answer": stored.get("answer"),
        "correct": stored["correct"],
        "reason": stored["reason"],
        **({"data_source": problem.source} if problem.source else {}),
    }


def _no_logprob_reason(stored: Row, tokenizer: Tokenizer) -> str | None:
    """Why the log-probs would not fit tokenizer(response) + [end of sequence]; None if they do."""
    if not stored["logprobs"]:
        return "the engine gave none"
    if stored["finish_reason"] != FinishReason.STOP:
        return "cut at max_tokens"
    if stored["response_ids"][-1] != tokenizer.eos_token_id:
        return "ended by another token than end-of-sequence, which rows of responses end with"
    again = tokenizer.encode(stored["response"], add_special_tokens=False)
    return (
        None
        if [*again, tokenizer.eos_token_id] == stored["response_ids"]
        else "text tokenises differently"
    )


def write_difficulty(path: str, task: TeacherTask, journal: TeacherJournal) -> list[float]:
    """Per problem the measured success rate; returns the rates of problems with samples."""
    rates = []
    with RowWriter(path) as writer:
        for problem in task.problems:
            verdicts = _verdicts(journal, problem, task.params.n)
            found = [journal.records[problem.id, sample] for sample in verdicts]
            rate = fmean(verdicts.values()) if verdicts else None
            rates += [] if rate is None else [rate]
            writer.write(
                {
                    "problem_id": problem.id,
                    "num_samples": len(verdicts),
                    "correct": sum(verdicts.values()),
                    "success_rate": rate,
                    "truncated": sum(verdict.truncated for verdict in found),
                    "mean_tokens": (
                        fmean(verdict.num_tokens for verdict in found) if found else None
                    ),
                }
            )
    return rates


def fingerprint_parts(
    config: SampleConfig, task: TeacherTask, prompter: Prompter, engine: Engine
) -> dict[str, Any]:
    """Everything that decides what a sample is.

    Not in it: n, which problems are kept, and what only changes speed."""
    return {
        "model": model_fingerprint(config.model.path, config.model.revision),
        "tokenizer_sha256": tokenizer_fingerprint(
            tokenizer_folder(config.model), prompter.tokenizer.chat_template
        ),
        "prompt": prompter.fingerprint(),
        "decoding": decoding_identity(task.params),
        "problems_sha256": problems_digest(task.problems, task.prompts),
        "engine": engine_identity(engine),
        "megaladder": __version__,
    }


def _lines(
    config: SampleConfig,
    task: TeacherTask,
    journal: TeacherJournal,
    results: tuple[Counts, list[float], int],
) -> Iterator[str]:
    counts, rates, num_rows = results
    n = task.params.n
    verdicts = [verdict for (_, sample), verdict in journal.records.items() if sample < n]
    num_undecided = sum(verdict.correct is None for verdict in verdicts)
    total, correct = len(verdicts), sum(verdict.correct is True for verdict in verdicts)
    truncated = sum(verdict.truncated for verdict in verdicts)
    speed = f" ({counts.tokens / counts.seconds:,.0f} tokens/s)" if counts.new else ""
    yield (
        f"{total:,} samples of {len(task.problems):,} problems (n {n}), {counts.new:,} new in"
        f" {clock(counts.seconds)}{speed}"
    )
    if rates:
        interval = 1.96 * pstdev(rates) / sqrt(len(rates))
        yield (
            f"success rate {fmean(rates):.1%} ± {interval:.1%} ({len(rates):,} problems):"
            f" {correct:,} of {total:,} samples correct, {num_undecided:,} undecided and left out"
        )
        yield (
            f"  problems solved always {rates.count(1.0):,}, sometimes"
            f" {sum(0 < r < 1 for r in rates):,}, never {rates.count(0.0):,}"
        )
    if truncated or counts.aborted:
        yield (
            f"  {truncated:,} samples cut at max_tokens, {counts.aborted:,} given up by the engine"
            " (start again to draw them)"
        )
    for reason, count in counts.without_logprobs.most_common():
        yield f"  {count:,} rows without logprob: {reason}"
    yield (
        f"kept {num_rows:,} rows ({config.keep}) → {config.out}; per problem:"
        f" {config.out}.difficulty.jsonl"
    )
