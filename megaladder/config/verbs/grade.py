"""Configuration of `grade` and `analyze pass-at-k`.

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
    """Grade stored responses with the grader that RL and the benchmarks use; rows keep their order
    and all their fields."""

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
    """avg@n, unbiased pass@k, prefix cov@n and maj@n of graded rows, with 95 % intervals that
    resample problems."""

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
