"""Configuration of the `data …` verbs.

Fields are flags, the string under a field is its `--help` text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from megaladder.config.base import CommaStrs, Positional, StrictModel, YamlObject
from megaladder.config.rules.engine import READ_BY_VLLM
from megaladder.config.rules.unread import ReadIf, raise_all, unread_notes, unread_problems
from megaladder.config.sections.data import Duplicates, FieldMap
from megaladder.config.sections.engine import EngineSection
from megaladder.config.sections.evaluate import PromptSection
from megaladder.config.sections.shared import ModelSection
from megaladder.config.verbs.evaluation import SHORT_FLAGS
from megaladder.types import Kind

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class GetConfig(StrictModel):
    """Published problem sets from the hub, as plain files with their commit beside them."""

    names: Positional[tuple[str, ...]]
    """Benchmarks, e.g. gsm8k math500; `megaladder eval --benchmark list` prints all."""
    out: str = "data"
    """Folder to write to: OUT/NAME/SPLIT.jsonl, as --data-dir and the shipped recipes expect."""
    split: str = "test"
    """test = the set that the benchmark scores; train = problems to train on, where there are."""
    revision: str | None = None
    """Commit, branch or tag of the hub repository. null = the newest commit; it is recorded."""


class MakeConfig(StrictModel):
    """Generated reasoning data with verified worked answers.

    `data make arithmetic --help` and `data make countdown --help` have more."""

    kind: Positional[Literal["arithmetic", "countdown"]]
    """What to make."""
    rows: Positive
    """Rows to make. The same seed gives the same rows in the same order; more rows only add to
    them."""
    out: str
    """File to write, .jsonl or .parquet."""
    seed: int = 42
    """Of the rows and their order."""
    split: Literal["train", "test"] = "train"
    """Half of the question space to draw from. A question's half is a hash of its text: no two
    files of different halves overlap."""
    form: Literal["sft", "problem"] = "sft"
    """sft = id, question, gold, messages; problem = id, question, answer (for evaluation and GRPO),
    without the worked trace."""
    test_out: str | None = None
    """Also write held-out problems (form problem, split test) to this file."""
    test_rows: Positive = 500
    """Rows of test_out."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> MakeConfig:
        table: tuple[ReadIf[MakeConfig], ...] = (
            ReadIf(("test_rows",), lambda run: run.test_out is not None, "--test-out"),
        )
        raise_all(unread_problems(self, table))
        return self


class MakeArithmeticConfig(MakeConfig):
    """Generated arithmetic with worked steps in <think>, the answer in \\boxed{}.

    Every line verified."""

    kind: Positional[Literal["arithmetic"]]
    """arithmetic"""
    digits: Positive = 2
    """Digits of the first number and of what is added or subtracted, 1 to 9."""
    factor_digits: Positive = 1
    """Digits of what is multiplied with, 1 to 4."""
    steps: Positive = 2
    """Operations per question, 1 to 12."""
    max_steps: Positive | None = None
    """A ladder of difficulty: each question has from `steps` to this many operations, drawn; the
    column `steps` says how many. null = all have `steps`."""
    operations: str = "*+"
    """Operations out of + - *, taken in this order and repeated: '*+' with 2 steps is a*b+c."""
    shuffle: bool = False
    """Draw each operation at random from `operations` instead."""
    recheck_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows that go over every result a second time ('Wait, …'): a mixture of short and
    long thoughts with the same answers."""
    direct_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows that answer at once, with an empty <think>: a model trained on them has a habit
    to unlearn by GRPO."""
    direct_from: Count = 0
    """Rows before this one all show their work: a curriculum for data.order file."""

    @model_validator(mode="after")
    def _no_unread_arithmetic_key(self) -> MakeArithmeticConfig:
        table: tuple[ReadIf[MakeArithmeticConfig], ...] = (
            ReadIf(("direct_from",), lambda run: run.direct_share > 0, "--direct-share above 0"),
        )
        raise_all(unread_problems(self, table))
        return self


class MakeCountdownConfig(MakeConfig):
    """Generated countdown puzzles with search traces (try, check, go back).

    Every trace verified by replay."""

    kind: Positional[Literal["countdown"]]
    """countdown"""
    numbers: Positive = 4
    """Numbers per puzzle, 2 to 8. Each must be used exactly once."""
    largest: Positive = 99
    """Numbers are drawn from 1 to this."""
    max_target: Positive = 999
    """Largest target."""
    breadth: Count = 2
    """Wrong operations tried at a state before the right one, at most."""
    max_backtracks: Count = 12
    """The trace goes back about this often at most: no new wrong tries after it."""
    min_backtracks: Count = 0
    """Puzzles whose trace goes back less often are not used."""
    bare_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of rows that box the target itself, no expression: a habit that a reward of values
    alone pays for, and the countdown verifier does not."""
    bare_from: Count = 0
    """Rows before this one all solve their puzzle: a curriculum for data.order file."""

    @model_validator(mode="after")
    def _no_unread_countdown_key(self) -> MakeCountdownConfig:
        table: tuple[ReadIf[MakeCountdownConfig], ...] = (
            ReadIf(("bare_from",), lambda run: run.bare_share > 0, "--bare-share above 0"),
        )
        raise_all(unread_problems(self, table))
        return self


def make_config_class(args: Sequence[str]) -> type[MakeConfig]:
    """The config class that the first word after `data make` names."""
    classes: dict[str, type[MakeConfig]] = {
        "arithmetic": MakeArithmeticConfig,
        "countdown": MakeCountdownConfig,
    }
    return classes.get(args[0] if args else "", MakeConfig)


class DecontaminateConfig(StrictModel):
    """Which training rows share word n-grams with benchmarks, and a clean copy without them."""

    path: Positional[str]
    """Training data file."""
    against: tuple[str, ...]
    """Benchmark folders or files; their questions are compared. The training file itself may be one
    of them."""
    out: str
    """Clean copy (.jsonl or .parquet). Beside it: OUT.hits.jsonl, a row per span, and
    OUT.summary.json."""
    n: Annotated[int, Field(ge=2, le=50)] = 13
    """Words per n-gram. 13 as GPT-3's appendix C, 8 as s1."""
    min_words: Annotated[int, Field(ge=2)] = 8
    """A question shorter than n words counts as a whole if it has at least this many; shorter ones
    are listed as too short."""
    columns: CommaStrs = ()
    """Columns of the training rows to scan; empty = every text of the row."""
    max_matches: Positive | None = None
    """A span found in more training rows than this is a common phrase and no hit (GPT-3: 10). null
    = every span counts."""
    dedup: Literal["none", "exact", "near"] = "none"
    """Also drop rows whose question repeats an earlier one: the same words, or near = also similar
    ones (MinHash)."""
    near_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of 5-word shingles from which on two questions are near duplicates."""
    id_column: str | None = None
    """Column with unique ids; null = id, unique_id, question_hash or uuid if there, else a hash of
    the row."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> DecontaminateConfig:
        table: tuple[ReadIf[DecontaminateConfig], ...] = (
            ReadIf(("near_threshold",), lambda run: run.dedup == "near", "--dedup near"),
        )
        raise_all(unread_problems(self, table))
        return self


class ScoreConfig(StrictModel):
    """Rule score, its parts and style features of every row, as new columns."""

    path: Positional[str]
    """Data file."""
    out: str
    """File to write (.jsonl or .parquet): the rows with `score`, `score_parts`, `style` and, with
    --levels, `level`."""
    rule_file: str | None = None
    """YAML with weights, word lists and scale (minmax, rank, per_1k). null = LIMO's published
    weights and our word lists: 0.30 length + 0.20 verification + 0.25 exploration + 0.25
    connectives, each scaled over the file."""
    column: str | None = None
    """Column of the reasoning text; null = solution, response, completion, a trace column, or the
    assistant's turns."""
    levels: Annotated[int, Field(ge=2)] | None = None
    """Quality bands of equal size by score, 1 = lowest. null = none."""
    workers: Positive = 1
    """Processes that measure texts. The result does not depend on it."""


class SelectConfig(StrictModel):
    """Seeded, staged selection by a recipe; the count after every stage is printed and stored."""

    path: Positional[str]
    """Data file: the pool."""
    recipe: str
    """Recipe file (examples/recipes/**.yaml)."""
    out: str
    """File to write; a folder when the recipe is a grid. Beside it: OUT.stages.json and
    OUT.dropped.jsonl."""
    set: tuple[str, ...] = ()
    """Parameters of the recipe, as NAME=VALUE NAME=VALUE …; one that the recipe varies is fixed by
    it."""
    only: str | None = None
    """Of a grid, the selections whose name fits this pattern, e.g. 'openr1_algebra_*'."""
    seed: int | None = None
    """Of all random choices; null = the recipe's."""
    duplicates: Duplicates = "drop"
    """Rows that repeat an earlier one (same id, same content): left out, kept, or an error.
    Counted in each case."""
    workers: Positive = 1
    """Processes that measure texts. The result does not depend on it."""


class StatsConfig(StrictModel):
    """Rows, schema, lengths, loss-token share, duplicates and a rendered sample of a data file."""

    path: Positional[str]
    """Data file, folder, glob, URL or hub id."""
    tokenizer: str | None = None
    """Tokenizer folder or hub id; null = lengths in words only."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's template."""
    chat_template_kwargs: YamlObject = Field(default_factory=dict)
    """Arguments of the template, e.g. {enable_thinking: false}; a row's own win."""
    format: str = "auto"
    """Row layout; auto = recognise it."""
    config: str | None = None
    """Configuration of a hub data set or folder that has several."""
    split: str | None = None
    """Split of a folder or hub data set. null = train, else the only one."""
    revision: str | None = None
    """Commit of the hub data set; required for a hub id."""
    fields: FieldMap = Field(default_factory=dict)
    """Columns under other names: {question: problem} takes `question` from the column
    `problem`."""
    duplicates: Duplicates = "drop"
    """Rows that repeat an earlier one: left out of the tokens, kept, or refused."""
    response_template: str | None = None
    """Only for pre-templated `text` rows: the string after which the loss starts."""
    s1_teacher: Literal["gemini", "deepseek"] | None = None
    """Only for s1K rows that hold both: whose reasoning to look at."""
    sample: Count = 0
    """Which sample to show, counted from 0."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE|null")] = None
    """Also write everything as JSON to this file (--json FILE)."""

    @model_validator(mode="after")
    def _no_unread_key(self) -> StatsConfig:
        table: tuple[ReadIf[StatsConfig], ...] = (
            ReadIf(
                (
                    *("chat_template", "chat_template_kwargs", "response_template", "sample"),
                    "duplicates",
                ),
                lambda run: run.tokenizer is not None,
                "--tokenizer",
            ),
        )
        raise_all(unread_problems(self, table))
        return self


class TeacherRolloutSection(EngineSection):
    """Decoding; the defaults are Rethinking SFT's teacher settings (arXiv 2604.06628)."""

    n: Positive = 32
    """Samples per problem. A larger n later only adds samples."""
    temperature: Annotated[float, Field(ge=0)] = 0.6
    """Sampling temperature; 0 = greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus: keep the likeliest tokens up to this probability."""
    top_k: Count = 20
    """Keep the k likeliest tokens; 0 = all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Drop tokens below this share of the likeliest one's probability."""
    max_tokens: Positive = 16384
    """Longest answer, tokens."""


def sample_config_class(args: list[str]) -> type[SampleConfig]:
    """The config class of `data sample`.

    Spells the short flags (--model, --n, …) out in `args`, in place.
    """
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") in SHORT_FLAGS:
            args[index] = f"{SHORT_FLAGS[name.replace('_', '-')]}{equals}{value}"
    return SampleConfig


class SampleConfig(StrictModel):
    """Rejection sampling from a teacher: draw, grade, keep.

    Short flags: --model --tokenizer --n --temperature --top-p --top-k --max-tokens."""

    path: Positional[str]
    """Problems: question and answer, or verl rows."""
    out: str
    """Training rows (.jsonl or .parquet). Beside it: OUT.samples/ with every sample (resumable),
    OUT.difficulty.jsonl."""
    model: ModelSection = ModelSection()
    keep: Literal["all", "correct", "one_correct", "mixed"] = "correct"
    """all; correct ones; one correct one a problem, at random; mixed = all samples of problems that
    are neither always nor never solved."""
    kind: Kind | None = None
    """Verifier of all rows; null = by the row (its column `verifier`, #### is gsm8k, else math)."""
    duplicates: Duplicates = "drop"
    """Rows that repeat an earlier one (same id, same content): left out, kept, or an error.
    Counted in each case."""
    limit: Positive | None = None
    """Only the first problems, for trials."""
    seed: Count = 42
    """Of sampling and of the choice of one_correct."""
    rollout: TeacherRolloutSection = TeacherRolloutSection()
    prompt: PromptSection = PromptSection()
    grade_workers: Positive = 2
    """Processes that grade."""
    grade_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds one answer may take to grade."""
    progress_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between progress lines."""

    @property
    def unread(self) -> list[str]:
        """Keys that the chosen engine does not read, a line each."""
        return unread_notes(self, READ_BY_VLLM)
