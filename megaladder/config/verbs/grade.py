"""Configuration of `grade`, `analyze pass-at-k` and `power`.

The string under a field is its `--help` text. No file is touched here.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megaladder.config.base import CommaInts, CommaStrs, Positional, StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems
from megaladder.config.verbs.analysis import Draws, JsonPath
from megaladder.types import DialectName, Kind

GraderName = Literal[
    "megaladder", "qwen", "limo", "minerva", "prime", "rethinking", "math_verify", "box_match"
]

OWN_GRADER_READS: ReadIf[Any] = ReadIf(
    ("extract",), lambda run: run.grader == "megaladder", "--grader megaladder"
)
"""A published grader brings its own way to find the answer."""


class GradeConfig(StrictModel):
    """Grade stored responses with the grader that RL and the benchmarks use.

    Rows keep their order and all their fields."""

    input: str
    """Rows {"id", "gold", "response": text} or {"id", "gold", "responses": [text, …]}, or samples as
    `eval`, lm-eval, LIMO, evalchemy and Rethinking SFT write them, or traces as OpenR1-Math has
    them; or a folder of runs or evaluations, all samples in it."""
    output: str
    """JSONL: each row plus `answer`, `correct` (null: undecided), `reason` (lists for `responses`);
    where a row has an `answer` of its own, what was found is `extracted_answer`. Replaced only when
    all is graded. For a folder: a folder, <model>/<benchmark>/samples_<benchmark>.jsonl in it."""
    kind: Literal["auto"] | Kind = "auto"
    """Verifier; auto = the row's column `verifier`, else math. math = numbers, sets, expressions;
    gsm8k = one number; choice = an option letter; exact = the same string."""
    grader: GraderName = "megaladder"
    """megaladder = our own rules; else the grader of a published study, for kinds math and gsm8k.
    Every output row says which it was, and its version."""
    extract: DialectName = "megaladder"
    """Where the answer stands, for kinds math, gsm8k, choice and exact: megaladder = the last box, else
    <answer>, ####, an answer phrase, the last line; first-box, all-boxes, …: docs/answers.md."""
    workers: Annotated[int, Field(ge=1, le=256)] = min(8, os.cpu_count() or 1)
    """Grading processes. Default: the machine's cores, at most 8."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """CPU seconds one response may take, which a busy machine does not shorten. One that needs more
    is tried once more, alone, and is then undecided, reason timeout."""
    memory_mib: Annotated[int, Field(ge=64)] = 1024
    """MiB a grading process may allocate on top of its imports; a response that needs more is
    undecided, reason crash."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> GradeConfig:
        raise_all(unread_problems(self, (OWN_GRADER_READS,)))
        return self


class PassAtKConfig(StrictModel):
    """avg@n, unbiased pass@k, prefix cov@n and maj@n of graded rows.

    With 95 % intervals that resample problems."""

    runs: Positional[tuple[str, ...]]
    """Run folders, evaluation folders, parents or globs of them, or files of samples with verdicts:
    what `grade` and `eval` write, what lm-eval, LIMO and Rethinking SFT wrote, or rows {"id",
    "correct": [true, false, …]}; one row a problem."""
    benchmark: CommaStrs = ()
    """Only these. Empty = all."""
    k: CommaInts = (1,)
    """The k of pass@k, e.g. 1,8,64. A k above the number of samples gives null and a warning."""
    draws: Draws = 10_000
    """Bootstrap draws."""
    seed: int = 42
    """Seed of the resampling."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_k(self) -> PassAtKConfig:
        if not self.k or min(self.k) < 1:
            raise ValueError(
                "k must be one or more whole numbers from 1; found"
                f" {','.join(map(str, self.k)) or 'none'}; fix: --k 1,8,64"
            )
        return self


Share = Annotated[float, Field(ge=0, le=1)]


class PowerConfig(StrictModel):
    """How many problems and samples an evaluation needs to show a difference (arXiv 2411.00640)."""

    effect: Annotated[float, Field(gt=0, le=100)]
    """The difference of two models that should be seen, points."""
    samples: CommaStrs = ()
    """Graded samples that the variances are measured from: a file of one model, or of two models
    A,B on the same problems. none = mean, icc and correlation as given."""
    mean: Annotated[float, Field(gt=0, lt=100)] = 50.0
    """Score of the first model, percent."""
    icc: Share = 0.5
    """Intra-class correlation: the share of one sample's variance that is between problems."""
    correlation: Share = 0.8
    """Of the chances of the same problems under the two models; what pairing gains from."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of the two-sided test."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Chance that a true difference of `effect` is seen."""
    problems: Annotated[int, Field(ge=2)] | None = None
    """Also: what so many problems show. null = as many as --samples has."""
    n: CommaInts = (1, 2, 4, 8, 16, 32, 64)
    """Samples a problem, a row of the table each."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check(self) -> PowerConfig:
        problems = []
        if len(self.samples) > 2:
            problems.append(f"samples names {len(self.samples)} files; fix: one, or two models A,B")
        if not self.n or min(self.n) < 1:
            problems.append(f"n {self.n}: fix: whole numbers from 1 on")
        raise_all([*problems, *unread_problems(self, _READ_IF)])
        return self


_READ_IF: tuple[ReadIf[PowerConfig], ...] = (
    ReadIf(("mean", "icc", "correlation"), lambda run: not run.samples, "no --samples"),
)
