"""How benchmarks are asked, and the section `evaluate` of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import CommaStrs, StrictModel
from megaladder.config.sections.engine import SyncedEngineSection
from megaladder.config.sections.shared import Positive
from megaladder.types import DialectName


class PromptSection(StrictModel):
    """How a problem becomes a prompt."""

    style: Literal["auto", "chat", "raw"] = "auto"
    """chat = the tokenizer's chat template; raw = the text alone; auto = chat where the tokenizer
    has a template."""
    system: str | None = None
    """System message. null = none."""
    suffix: str = ""
    """Put after the problem's prompt."""


class BenchmarkPromptSection(PromptSection):
    """How a problem becomes a prompt."""

    template: str | None = None
    """Replaces the benchmark's prompt; {question} (and {options}, …) stand for the row's fields.
    \\n is a line break."""


class EvaluateSection(StrictModel):
    """Benchmarks between the steps of a training: the weights of that step answer their problems.

    Off without benchmarks. null = the benchmark's published default, as in `eval`."""

    benchmarks: CommaStrs = ()
    """Names from the registry (`megaladder eval --benchmark list` prints it) and files of your own,
    as `eval` takes them, with commas. The score of a step is the mean over them."""
    registry: str | None = None
    """YAML file with benchmarks of your own by name, in the form of the shipped registry."""
    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate every N steps, besides before the first and after the last. 0 = only then."""
    data_dir: str | None = None
    """Folder with <benchmark>/test.jsonl; looked at first. null = MEGALADDER_DATA, else the hub."""
    limit: Positive | None = None
    """Only the first problems of each benchmark. null = all."""
    n: Positive | None = None
    """Samples per problem."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Sampling temperature; 0 = greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus: keep the likeliest tokens up to this probability."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Keep the k likeliest tokens; 0 = all."""
    max_tokens: Positive | None = None
    """Longest answer, tokens."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of sampling, option shuffles and intervals. Training draws from train.seed, never from this
    one."""
    prompt: BenchmarkPromptSection = BenchmarkPromptSection()
    keep_best: Positive | None = 1
    """Keep the checkpoints of the K steps with the highest score; a step that becomes one of them
    is saved. null = none is kept for its score."""
    patience: Positive | None = None
    """End the training, as finished, after this many evaluations in a row without a better score.
    null = train all steps."""
    min_delta: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How far a score must exceed the best so far to count as better for patience: a share,
    0.01 = one percentage point."""


class SftEvaluateSection(EvaluateSection, SyncedEngineSection):
    """Benchmarks between the steps of a training.

    By an engine that is started once and is given the weights of each step. Off without benchmarks.
    null = the benchmark's published default."""

    engine: Literal["vllm", "fake"] = "vllm"
    """vllm; fake = a deterministic stand-in for tests."""
    extract: DialectName = "megaladder"
    """Where the answer stands, for kinds math, gsm8k, choice and exact (`megaladder grade --help`)."""
    grade_workers: Positive = 2
    """Processes that grade."""
    grade_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """CPU seconds one answer may take to grade; one that needs more is undecided."""
