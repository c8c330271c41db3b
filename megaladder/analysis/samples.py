"""Graded samples of one model on one benchmark, whatever program wrote them, and where they lie in
a folder.

Read: every layout of stored samples of `data.layouts.table`: what `grade` writes, our eval folders
(lists over samples in `doc.samples`), lm-eval `samples_*.jsonl` (also the s1 fork's lists), plain
`{"id", "correct": […]}`, LIMO's, evalchemy's and Rethinking SFT's outputs, JSON lines or not. One
row may hold one sample or a problem's list of samples. Not here: grading (rewards), pass@k and friends (evaluation.metrics).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.tables import Warnings, read_json_lines, read_text
from megaladder.data.layouts.stored import lifted, stored_layout
from megaladder.data.read import BadRow
from megaladder.data.sources.find import as_data_file
from megaladder.data.sources.source import open_source
from megaladder.errors import DataError
from megaladder.types import UNDECIDED_REASONS

CORRECT_KEYS = ("correct", "exact_matches", "answers_correctness", "accuracy", "exact_match")
ANSWER_KEYS = (
    "extracted_answers",
    "extracted_answer",
    "answer",
    "answers",
    "generated_answers",
    "prediction",
)
LENGTH_KEYS = ("num_tokens", "lengths", "tokens")
TEXT_KEYS = ("responses", "response", "resps", "generated_responses")
QUESTION_KEYS = ("problem", "question", "Question", "query", "prompt", "input")
SAMPLE_FILE = re.compile(r"samples_(?P<task>.+?)(?P<stamp>_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")


class NoVerdictError(DataError):
    """A sample row without a right-or-wrong verdict: not graded yet, a judged benchmark, or one
    with other metrics."""


@dataclass(slots=True)
class ProblemSamples:
    """The n samples of one problem that have a verdict.

    `answers` and `num_tokens` have length n, or are empty where the file has none.
    """

    id: str
    where: str  # file:line of its first row
    correct: list[bool]
    answers: list[str | None] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    gold: str | None = None
    num_undecided: int = 0  # further samples, whose verdict the grader could not find
    has_list: bool = False  # its row held a list of samples, so a second row would be a duplicate


@dataclass(frozen=True)
class SampleSet:
    """One model on one benchmark: P problems in file order, problem p with n_p samples."""

    model: str
    benchmark: str
    path: str
    problems: tuple[ProblemSamples, ...]
    # flat: what the results file beside it says about how it was made; `grader`: who graded it
    protocol: dict[str, Any] = field(default_factory=dict)
    num_undecided: int = 0  # samples without a verdict, left out of all numbers

    @property
    def grader(self) -> str:
        """Name, version and dialect of the grader, as its rows or its protocol name it."""
        return str(self.protocol.get("grader", "not recorded"))

    @cached_property
    def num_samples_p(self) -> np.ndarray:
        """int64 [P]"""
        return np.array([len(problem.correct) for problem in self.problems])

    @cached_property
    def num_correct_p(self) -> np.ndarray:
        """int64 [P]"""
        return np.array([sum(problem.correct) for problem in self.problems])

    @cached_property
    def accuracy_p(self) -> np.ndarray:
        """Mean over each problem's samples, float64 [P] in [0, 1]."""
        return self.num_correct_p / self.num_samples_p

    @cached_property
    def covered_p(self) -> np.ndarray:
        """1.0 where any sample is correct, float64 [P] (prefix cov@n over all n samples)."""
        return (self.num_correct_p > 0).astype(np.float64)

    @cached_property
    def mean_tokens_p(self) -> np.ndarray | None:
        """Mean response length per problem, tokens, float64 [P]; None unless every sample has
        one."""
        if not all(len(problem.num_tokens) == len(problem.correct) for problem in self.problems):
            return None
        return np.array([np.mean(problem.num_tokens) for problem in self.problems])

    @property
    def num_samples(self) -> int:
        """n: samples of the problem that has the fewest."""
        return int(self.num_samples_p.min())

    def by_id(self) -> dict[str, int]:
        """Problem id → index in `problems`."""
        return {problem.id: index for index, problem in enumerate(self.problems)}


def read_samples(path: str | Path, model: str, benchmark: str, warnings: Warnings) -> SampleSet:
    """Reads one file. A row without a verdict, a doubled problem, mixed fingerprints or lists of
    unequal length are DataErrors."""
    problems: dict[str, ProblemSamples] = {}
    fingerprint: tuple[str, str] | None = None  # value, where
    first_filter: str | None = None
    other_filters = 0
    graders: dict[str, None] = {}
    for where, row in sample_rows(path):
        if (name := row.get("filter")) is not None:
            first_filter = first_filter or str(name)
            if str(name) != first_filter:
                other_filters += 1
                continue
        found = row.get("fingerprint")
        if found is not None:
            fingerprint = fingerprint or (str(found), where)
            if str(found) != fingerprint[0]:
                raise DataError(
                    f"{where}: fingerprint {found} after {fingerprint[0]} ({fingerprint[1]}):"
                    " samples of two protocols in one file must not be averaged; fix: evaluate"
                    " into two folders"
                )
        if isinstance(name := row.get("grader"), str):
            graders[name] = None
        _add_row(problems, row, where)
    if other_filters:
        warnings.add(
            f"{path}: {other_filters} rows of other lm-eval filters ignored, '{first_filter}' used"
        )
    num_undecided = sum(problem.num_undecided for problem in problems.values())
    if num_undecided:
        warnings.add(f"{path}: {num_undecided} undecided samples left out")
    sizes = {len(problem.correct) for problem in problems.values() if problem.correct}
    if len(sizes) > 1:
        warnings.add(
            f"{path}: problems have {min(sizes)} to {max(sizes)} samples (a run that is not"
            " finished?)"
        )
    kept = tuple(problem for problem in problems.values() if problem.correct)
    protocol = protocol_of(Path(path)) | ({"grader": "; ".join(graders)} if graders else {})
    return SampleSet(model, benchmark, str(path), kept, protocol, num_undecided)


def sample_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) of every row of a file of samples, under one set of names whatever program
    wrote it; see `data.layouts.stored`. Raises DataError."""
    for where, raw in raw_rows(path):
        row = with_sample_lists(raw)
        layout = stored_layout(row, where)
        stored = layout.stored if layout is not None else None
        yield where, lifted(row, stored) if stored is not None else row


def raw_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, row) as the file has them, null fields included; blank lines are skipped."""
    if str(path).endswith(".jsonl") or (Path(path).is_file() and as_data_file(str(path)) is None):
        yield from read_json_lines(path)
        return
    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            raise row
        yield row.where, row.whole


def with_sample_lists(row: dict[str, Any]) -> dict[str, Any]:
    """Our eval rows keep the lists over a problem's samples in `doc.samples` (lm-eval's schema has
    no place for them): lifts them up."""
    doc = row.get("doc")
    lists = doc.get("samples") if isinstance(doc, dict) else None
    return {**row, **lists} if isinstance(lists, dict) else row


def protocol_of(samples: Path) -> dict[str, Any]:
    """What `results_*.json` beside a sample file says about how it was made: our `protocol`, else
    lm-eval's `config`. {} without one."""
    for path in sorted(
        samples.parent.glob("results_*.json"),
        key=lambda p: (p.name == f"results_{_task(samples)}.json", p.name),
        reverse=True,
    ):
        found = read_object(path)
        for name in ("protocol", "config"):
            if isinstance(found.get(name), dict):
                return flatten(found[name])
    return {}


def _task(samples: Path) -> str:
    match = SAMPLE_FILE.fullmatch(samples.name)
    return match["task"] if match else ""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; {} where there is none, or another value."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: not JSON ({str(error)[:200]}); fix: the file, or remove it"
        ) from None
    return value if isinstance(value, dict) else {}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts → dotted keys with scalar values."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float, bool)):
            out[f"{prefix}{key}"] = value
    return out


def _add_row(problems: dict[str, ProblemSamples], row: dict[str, Any], where: str) -> None:
    key = problem_id(row, where)
    verdicts, is_list = row_verdicts(row, where)
    decided = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    problem = problems.get(key)
    if problem is None:
        problem = problems[key] = ProblemSamples(
            key, where, [], gold=row_gold(row), has_list=is_list
        )
    elif is_list or problem.has_list:
        raise DataError(
            f"{where}: problem {key!r} stands there already ({problem.where}); fix: keep one of the"
            " rows"
        )
    problem.correct += [bool(verdicts[i]) for i in decided]
    answers = _aligned(row, ANSWER_KEYS, len(verdicts), where)
    problem.answers += [answers[i] for i in decided] if answers else []
    lengths = _token_counts(row, len(verdicts), where)
    problem.num_tokens += [lengths[i] for i in decided] if lengths else []
    problem.num_undecided += len(verdicts) - len(decided)


def problem_id(row: dict[str, Any], where: str) -> str:
    """`doc.id`, else `id`, `doc_id`, `unique_id`; else a content hash of the question."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source, name in (
        (doc, "id"),
        (row, "id"),
        (doc, "unique_id"),
        (row, "doc_id"),
        (row, "unique_id"),
    ):
        value = source.get(name)
        if value is not None and not isinstance(value, (dict, list)):
            return str(value)
    question = question_of(row)
    if question is None:
        raise DataError(
            f"{where}: no 'id', 'doc.id', 'doc_id' or question text; fix: give each problem an id"
        )
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def question_of(row: dict[str, Any]) -> str | None:
    """The question as text, where the row has one."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source in (doc, row):
        for name in QUESTION_KEYS:
            value = source.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, list) and value and isinstance(value[-1], dict):  # chat messages
                return str(value[-1].get("content", ""))
    return None


def response_texts(row: dict[str, Any]) -> list[str]:
    """The generated texts of a row, as many as it has (lm-eval nests them as `resps: [[…]]`)."""
    for name in TEXT_KEYS:
        value = row.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            inner = value[0] if len(value) == 1 and isinstance(value[0], list) else value
            return [str(item[0] if isinstance(item, list) and item else item) for item in inner]
    return []


def response_ids(row: dict[str, Any], where: str) -> list[list[int]]:
    """Token ids of each response: `response_ids` as one list of ints or a list of such lists. []
    where the row has none."""
    value = row.get("response_ids")
    if value is None:
        return []
    if isinstance(value, list) and all(_is_token(item) for item in value):
        return (
            [value]
            if not isinstance(row.get("responses"), list) or value
            else [[] for _ in row["responses"]]
        )
    if isinstance(value, list) and all(
        isinstance(ids, list) and all(_is_token(item) for item in ids) for ids in value
    ):
        return value
    raise DataError(
        f"{where}: 'response_ids' must be a list of token ids, or a list of such lists; fix:"
        " the row"
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def row_verdicts(row: dict[str, Any], where: str) -> tuple[list[bool | None], bool]:
    """The row's verdicts, one a sample (None: undecided), and whether it holds a list of them."""
    for name in CORRECT_KEYS:
        value = row.get(name)
        if name in row and value is None and _all_undecided(row):
            return [None], False
        if value is None or (name == "accuracy" and not isinstance(value, list)):
            continue
        items = value if isinstance(value, list) else [value]
        if not items:
            raise DataError(f"{where}: '{name}' is an empty list; fix: delete the row, or grade it")
        if all(item is None for item in items) and not _all_undecided(row):
            raise NoVerdictError(
                f"{where}: '{name}' is null: not graded, or a judged benchmark; fix: leave it out"
                " of this analysis"
            )
        for item in items:
            if item not in (0, 1, None):
                raise DataError(
                    f"{where}: '{name}' holds {item!r}, expected true or false; fix: grade the row"
                )
        return [None if item is None else bool(item) for item in items], isinstance(value, list)
    raise NoVerdictError(
        f"{where}: no verdict ({', '.join(CORRECT_KEYS)}); found {', '.join(list(row)[:12])};"
        " fix: megaladder grade --input … --output … first"
    )


def _all_undecided(row: dict[str, Any]) -> bool:
    """Whether the grader says of every sample that it could not decide (not: nobody asked it)."""
    reasons = row.get("reasons", row.get("reason"))
    listed = reasons if isinstance(reasons, list) else [reasons]
    return bool(listed) and all(reason in UNDECIDED_REASONS for reason in listed)


def row_gold(row: dict[str, Any]) -> str | None:
    """The gold answer as text, where the row has one."""
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    for source, name in ((row, "gold"), (row, "target"), (doc, "answer"), (row, "gold_answer")):
        if source.get(name) is not None:
            return str(source[name])
    return None


def _aligned(row: dict[str, Any], keys: tuple[str, ...], num_samples: int, where: str) -> list[Any]:
    for name in keys:
        value = row.get(name)
        if value is None and not (name in row and num_samples == 1):
            continue
        items = value if isinstance(value, list) else [value]
        if len(items) == num_samples:
            return [None if item is None else str(item) for item in items]
        if isinstance(value, list):
            raise DataError(
                f"{where}: '{name}' has {len(items)} entries for {num_samples} verdicts; fix:"
                " the row"
            )
    return []


def _token_counts(row: dict[str, Any], num_samples: int, where: str) -> list[int]:
    ids = response_ids(row, where)
    if len(ids) == num_samples:
        return [len(item) for item in ids]
    for name in LENGTH_KEYS:
        value = row.get(name)
        items = value if isinstance(value, list) else [value]
        if len(items) == num_samples and all(_is_token(item) for item in items):
            return [int(item) for item in items if item is not None]
    return []


@dataclass(frozen=True, slots=True)
class SampleFile:
    """Where the samples of one (model, checkpoint, benchmark) lie."""

    model: str
    checkpoint: str | None
    task: str
    path: Path


def find_sample_files(root: str | Path, warnings: Warnings) -> list[SampleFile]:
    """All `samples_*.jsonl` at most three levels below `root`, sorted. Of several time stamps of a
    task the last is taken, with a warning.

    Layouts: `<model>/<ckpt>/samples_*` (reasoning_ladder), `<model>/samples_*` (lm-eval),
    `<model>/<benchmark>/samples_<benchmark>.jsonl` (ours), or `root` being itself a model's folder
    in one of them.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(
            f"{root}: no such folder; fix: give the folder that holds <model>/…/samples_*.jsonl"
        )
    latest: dict[tuple[str, str | None, str], Path] = {}
    for path in sorted(_walk(folder, depth=3)):
        task = SAMPLE_FILE.fullmatch(path.name)["task"]  # type: ignore[index]
        parts = path.relative_to(folder).parts[:-1]
        if parts and parts[-1] == task:  # our layout: the last folder is the benchmark
            parts = parts[:-1]
        model = parts[0] if parts else folder.resolve().name
        key = (model, "/".join(parts[1:]) or None, task)
        if key in latest:
            warnings.add(f"{path.parent}: several files of {task}; the last, {path.name}, is used")
        latest[key] = path
    return [
        SampleFile(model, checkpoint, task, path)
        for (model, checkpoint, task), path in latest.items()
    ]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if (
            entry.is_dir()
            and depth > 0
            and not entry.name.startswith(".")
            and not entry.is_symlink()
        ):
            yield from _walk(entry, depth - 1)
        elif entry.is_file() and SAMPLE_FILE.fullmatch(entry.name):
            yield entry


def sample_files_of(root: str | Path, benchmark: str, warnings: Warnings) -> dict[str, Path]:
    """Model name → its file of `benchmark` (task name equal to it or starting with `benchmark_`);
    other benchmarks are ignored.

    A model is keyed by its folder name; `model/checkpoint` where it has several checkpoints with
    that benchmark.
    """
    matching = [
        file for file in find_sample_files(root, warnings) if is_benchmark(file.task, benchmark)
    ]
    if not matching:
        raise DataError(
            f"{root}: no samples of '{benchmark}' (samples_{benchmark}*.jsonl) in it; fix: the"
            " folder, or --benchmark"
        )
    checkpoints: dict[str, set[str | None]] = {}
    for file in matching:
        checkpoints.setdefault(file.model, set()).add(file.checkpoint)
    chosen: dict[str, tuple[str, Path]] = {}
    for file in matching:
        name = (
            file.model
            if len(checkpoints[file.model]) == 1
            else f"{file.model}/{file.checkpoint or '.'}"
        )
        if name in chosen and chosen[name][0] != file.task:
            raise DataError(
                f"{file.path.parent}: both {chosen[name][0]} and {file.task} fit '{benchmark}';"
                " fix: --benchmark with the full name"
            )
        chosen[name] = (file.task, file.path)
    return {name: path for name, (_, path) in chosen.items()}


def is_benchmark(task: str, benchmark: str) -> bool:
    """`aime24_nofigures_agg8` is `aime24`; `aime24x` is not."""
    return task == benchmark or task.startswith(f"{benchmark}_")
