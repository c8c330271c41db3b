"""Configuration of the analysis verbs.

The string under a field is its `--help` text. No file is touched here.

Every verb takes `--json FILE` (one object, keys sorted, written atomically) and, where something is
random, `--seed`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import tyro
from pydantic import Field, model_validator

from megaladder.config.base import CommaFloats, CommaInts, CommaStrs, Positional, StrictModel
from megaladder.config.rules.unread import ReadIf, raise_all, unread_problems

# a field named `json` would hide BaseModel.json
JsonPath = Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE|null")]
Draws = Annotated[int, Field(ge=100, le=1_000_000)]


class _HasSamples(Protocol):
    @property
    def samples(self) -> str | None: ...

    @property
    def runs(self) -> tuple[str, ...]: ...


_IF_SAMPLES: tuple[ReadIf[_HasSamples], ...] = (
    ReadIf(("draws", "seed"), lambda run: bool(run.samples or run.runs), "--samples"),
    ReadIf(("samples",), lambda run: not run.runs, "--table"),
)


_IF_RUNS: ReadIf[_HasSamples] = ReadIf(
    ("benchmark",), lambda run: bool(run.runs), "run folders, not --table"
)


def _one_source(verb: str, runs: tuple[str, ...], others: bool, other: str) -> list[str]:
    """What is wrong where not exactly one of run folders and tables is given."""
    if bool(runs) != others:
        return []
    found = "both run folders and" if runs else "neither run folders nor"
    return [f"runs: {found} {other}; fix: megaladder analyze {verb} RUN_DIR…, or {other} alone"]


class TransferConfig(StrictModel):
    """Transferability index (arXiv 2507.00432).

    How much of the gain in maths arrives in other reasoning and in non-reasoning tasks."""

    runs: Positional[tuple[str, ...]] = ()
    """Run folders, evaluation folders, parents or globs of them: the last step of
    each run, against its base model."""
    table: str | None = None
    """Instead: CSV `model,group,benchmark,score`: percent; groups math, other, non; one row a model
    and benchmark."""
    base: str | None = None
    """The base model's name. null = the one that the runs began with."""
    group: CommaStrs = ()
    """With run folders: benchmark=math, =other or =non, for benchmarks whose group is not known, or
    another one."""
    variant: Literal["v1", "v2"] = "v2"
    """v1 = ratio of mean relative gains; v2 = headroom-weighted signed roots of gains in units of σ
    per group."""
    sigma: CommaFloats | None = None
    """v2: σ of the groups math,other,non in points. null = population standard deviation of the
    gains of all models given."""
    samples: str | None = None
    """With --table: folder with <model>/…/samples_<benchmark>*.jsonl of base and models. Run folders
    bring their own. Adds 95 % intervals that resample problems."""
    draws: Draws = 10_000
    """Bootstrap draws."""
    seed: int = 42
    """Seed of the resampling."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_sigma(self) -> TransferConfig:
        if self.sigma is not None and (len(self.sigma) != 3 or min(self.sigma) <= 0):
            raise ValueError(
                "sigma must be three positive numbers, in the order math,other,non; fix: --sigma"
                " 1,1.136,1.275"
            )
        if self.sigma is not None and self.variant == "v1":
            raise ValueError("sigma belongs to v2 only; fix: --variant v2, or leave --sigma out")
        problems = _one_source("transfer", self.runs, self.table is not None, "--table")
        if self.table and self.base is None:
            problems.append("base is required with --table; fix: --base NAME")
        if self.group and not self.runs:
            problems.append("group is read with run folders only; fix: the column `group`")
        problems += [
            f"group {item!r}: expected benchmark=math, =other or =non; fix: --group gsm8k=math"
            for item in self.group
            if item.partition("=")[2] not in ("math", "other", "non")
        ]
        raise_all([*problems, *unread_problems(self, _IF_SAMPLES)])
        return self


class ScalingConfig(StrictModel):
    """s1's test-time scaling metrics (arXiv 2501.19393).

    Control, scaling (log2 tokens, all pairs), performance."""

    runs: Positional[tuple[str, ...]] = ()
    """Run folders, evaluation folders, parents or globs of them: evaluations of a
    model under thinking budgets, and without one."""
    table: str | None = None
    """Instead: CSV `method,setting,tokens,accuracy[,instructed_min,instructed_max]`: mean thinking
    tokens, accuracy in %; a blank bound is none."""
    benchmark: str | None = None
    """With run folders: the benchmark. null = all of them."""
    samples: str | None = None
    """Graded samples with token counts (a JSONL file), or beside --table; run folders bring their
    own. Adds the parallel curve, majority of 1, 2, 4, … samples against their tokens."""
    draws: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Random orders of the samples that a parallel point averages over."""
    seed: int = 42
    """Seed of those orders."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_input(self) -> ScalingConfig:
        given = self.table is not None or self.samples is not None
        problems = _one_source("scaling", self.runs, given, "--table (and/or --samples)")
        raise_all([*problems, *unread_problems(self, (*_IF_SAMPLES, _IF_RUNS))])
        return self


class LadderConfig(StrictModel):
    """AIME24 by difficulty tier (arXiv 2504.11741), from stored samples.

    Also tiers of other benchmarks, built from accuracies."""

    runs: Positional[tuple[str, ...]]
    """Run folders, evaluation folders, parents or globs of them; also lm-eval's
    <model>/<ckpt>/samples_*.jsonl."""
    steps: Literal["last", "all"] = "all"
    """Which evaluated steps of a run: each, or the last."""
    benchmark: str = "aime24"
    """Task name or the part of it before an underscore; files of other benchmarks are ignored."""
    tier_base: str | None = None
    """Build the tiers instead of using the published ones: the model whose accuracy above 50 %
    makes a problem easy."""
    tier_sft: CommaStrs = ()
    """With --tier-base: small-scale SFT models; a mean accuracy above 50 % makes a problem
    medium."""
    factors: str | None = None
    """CSV `model[,size][,length][,style][,similarity][,category]` of the training sets: adds
    accuracy against log size and by factor. null = the sizes that SFT runs recorded."""
    draws: Draws = 10_000
    """Bootstrap draws of the intervals."""
    seed: int = 42
    """Seed of the resampling."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_tiers(self) -> LadderConfig:
        if bool(self.tier_base) != bool(self.tier_sft):
            raise ValueError(
                "tier_base and tier_sft belong together; fix: give both, or neither for the"
                " published AIME24 tiers"
            )
        return self


class PredictConfig(StrictModel):
    """Which SFT-time metric predicts the score after RL (arXiv 2510.01624).

    Calibrated linear fits, rank correlation, selection."""

    runs: Positional[tuple[str, ...]] = ()
    """Run folders, evaluation folders, parents or globs of them, of SFT and of the
    GRPO that began with its steps. Each evaluated SFT step is a row."""
    table: str | None = None
    """Instead: CSV, one row a run: a label (column run, name, label, candidate or model), the
    metrics, the target. Blank target = a candidate."""
    benchmark: CommaStrs = ()
    """With run folders: the benchmarks whose mean counts. Empty = all that every run has."""
    target: str | None = None
    """Column of the score after RL; with run folders avg@n or pass@K of the last GRPO step. null =
    avg@n."""
    metrics: CommaStrs = ()
    """Columns of the predictors. pass@K or avg@n that are not columns are computed from --samples.
    With run folders avg@n, pass@K and held_out_loss; empty = those of them that there are."""
    calibration: Annotated[float, Field(gt=0)] = 0.5
    """Runs used for the fit: a share below 1, or a number of runs from 2 on."""
    lower_is_better: CommaStrs = ()
    """Predictors where less is better (losses); reported in the good direction."""
    rank_by: str | None = None
    """Second stage of the selection: the predictor that ranks survivors. null = the combined
    forecast, or the only metric."""
    series: str | None = None
    """First stage (over-fit flag): column that names runs which differ only in training length. Run
    folders need none of these: their configurations say so."""
    order: str | None = None
    """First stage: column with the training length (epochs or steps) inside a series."""
    flag_score: str | None = None
    """First stage: column of the SFT score (Pass@1). A run is flagged where its loss rises while
    this is flat or rising."""
    flag_loss: str | None = None
    """First stage: column of the held-out loss. null = the first --lower-is-better metric."""
    samples: str | None = None
    """Folder with <run>/…/samples_*.jsonl or <run>.jsonl, for pass@K metrics that are no
    columns."""
    splits: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Random calibration splits; all of them when there are not more."""
    seed: int = 42
    """Seed of the splits."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_columns(self) -> PredictConfig:
        problems = _one_source("predict", self.runs, self.table is not None, "--table")
        if self.table is not None and not (self.metrics and self.target):
            problems.append(
                "target and metrics are required with --table; fix: --target COLUMN --metrics A,B"
            )
        raise_all(problems)
        unknown = [name for name in self.lower_is_better if name not in self.metrics]
        if unknown:
            raise ValueError(
                f"lower_is_better names {', '.join(unknown)}, which is none of --metrics; fix: the"
                " name, or add it to --metrics"
            )
        if self.table is not None and self.target in self.metrics:
            raise ValueError(
                f"target {self.target} is also a metric; fix: leave it out of --metrics"
            )
        if 1 <= self.calibration < 2 or self.calibration != int(self.calibration) > 0:
            raise ValueError(
                "calibration must be a share below 1 or a whole number of runs from 2 on; fix:"
                " --calibration 0.5"
            )
        if sum(value is not None for value in (self.series, self.order, self.flag_score)) not in (
            0,
            3,
        ):
            raise ValueError(
                "series, order and flag_score belong together; fix: give all three, or none (no"
                " over-fit flag)"
            )
        if self.series and not self.flag_loss and not self.lower_is_better:
            raise ValueError("flag_loss is required for the over-fit flag; fix: --flag-loss COLUMN")
        raise_all(unread_problems(self, _PREDICT))
        return self


_PREDICT: tuple[ReadIf[PredictConfig], ...] = (
    ReadIf(
        ("series", "order", "flag_score", "lower_is_better", "samples"),
        lambda run: run.table is not None,
        "--table",
    ),
    ReadIf(("benchmark",), lambda run: bool(run.runs), "run folders, not --table"),
    ReadIf(("flag_loss",), lambda run: run.series is not None, "--series, --order, --flag-score"),
)


class TrajectoryConfig(StrictModel):
    """Does training dip and recover?.

    Classes of score curves over checkpoints (arXiv 2604.06628), and which checkpoint to keep."""

    runs: Positional[tuple[str, ...]] = ()
    """Run folders, evaluation folders, parents or globs of them. Step 0 is the model that a
    run began with, or its own evaluation of it."""
    table: str | None = None
    """Instead: CSV `model,benchmark,step,score[,length]`: step 0 = base, score in %, length = mean
    response tokens."""
    benchmark: CommaStrs = ()
    """With run folders: only these. Empty = all."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Points that a curve may move without it counting as a dip or as a recovery."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_source(self) -> TrajectoryConfig:
        by_runs: ReadIf[TrajectoryConfig] = ReadIf(
            ("benchmark",), lambda run: bool(run.runs), "run folders, not --table"
        )
        problems = _one_source("trajectory", self.runs, self.table is not None, "--table")
        raise_all([*problems, *unread_problems(self, [by_runs])])
        return self


class ShiftConfig(StrictModel):
    """What a tuned model changed: KL, token rank shift, PCA shift of hidden states.

    Needs torch and transformers; runs where the model does, also on several ranks: torchrun
    --nproc-per-node N -m megaladder analyze shift …, which share the rows."""

    runs: Positional[tuple[str, ...]] = ()
    """One run folder: its last export against the model that it began with, on the answers of that
    export's evaluation. Evaluations that lie elsewhere: their folders too."""
    base: str | None = None
    """Hugging Face folder of the base model. null = what the run began with."""
    tuned: str | None = None
    """Hugging Face folder of the tuned model; same vocabulary. null = the run's last export."""
    data: str | None = None
    """JSONL rows {input, output}, or samples of an evaluation; output = the tuned model's own (greedy)
    answers. null = the samples of the export's evaluation."""
    max_rows: Annotated[int, Field(ge=1)] = 100
    """Rows used, from the top."""
    max_length: Annotated[int, Field(ge=2)] = 4096
    """Tokens of input and output that are scored; a longer row is cut at its end, and counted."""
    pca_texts: Annotated[int, Field(ge=0)] = 30
    """Inputs whose hidden states are compared (30 as published); 0 = no PCA."""
    pca_max_length: Annotated[int, Field(ge=1)] = 128
    """Tokens of each such input (128 as published)."""
    batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens of a batch with its padding: rows of like length go through a model together."""
    chunk_tokens: Annotated[int, Field(ge=1)] = 512
    """Positions whose float64 log-probabilities are held at once; memory = chunk · vocabulary · 8
    bytes a model."""
    chat_template: bool = False
    """Wrap `input` as a user turn with the base tokenizer's chat template; off = the text as it
    is."""
    device: Literal["auto", "cpu", "cuda", "spread"] = "auto"
    """Where both models run. auto = a GPU where there is one; spread = the layers of each model over
    all GPUs that this process sees (accelerate), for models that do not fit one."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Weights and activations; log-probabilities are taken in float64 either way. auto = bfloat16 on
    a GPU, float32 on a CPU."""
    tokens: str | None = None
    """Write the token view here (JSONL, one object a row); the report finds it by the JSON, which
    records where it lies."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_models(self) -> ShiftConfig:
        pca: ReadIf[ShiftConfig] = ReadIf(
            ("pca_max_length",), lambda run: run.pca_texts > 0, "--pca-texts above 0"
        )
        found: ReadIf[ShiftConfig] = ReadIf(
            ("runs",),
            lambda run: None in (run.base, run.tuned, run.data),
            "--base, --tuned or --data left out",
        )
        missing = [name for name in ("base", "tuned", "data") if getattr(self, name) is None]
        problems = []
        if missing and not self.runs:
            problems.append(
                f"{', '.join(missing)} missing; fix: megaladder analyze shift RUN_DIR, or --base DIR"
                " --tuned DIR --data FILE"
            )
        raise_all([*problems, *unread_problems(self, [pca, found])])
        return self


class BudgetConfig(StrictModel):
    """Accuracy if every answer had been cut at a token budget.

    Stored token ids are truncated, decoded and graded again."""

    runs: Positional[tuple[str, ...]]
    """Run folders, evaluation folders, parents or globs of them, or files of graded rows with
    `response_ids` (a list of ids, or one list a sample) and `gold`."""
    benchmark: CommaStrs = ()
    """Only these. Empty = all."""
    budgets: CommaInts
    """Token budgets."""
    tokenizer: str | None = None
    """Folder with tokenizer.json, to decode truncated answers. null = that of the evaluated model
    where it still lies there, else an answer above the budget counts as wrong (a lower bound)."""
    kind: Literal["math", "gsm8k", "choice", "exact"] = "math"
    """How answers are compared when they are graded again."""
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    """Grading processes."""
    seed: int = 42
    """Seed of the bootstrap over problems."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_budgets(self) -> BudgetConfig:
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError("budgets must be token counts from 1 on; fix: --budgets 256,512,1024")
        return self


class CompareConfig(StrictModel):
    """Is this difference real?.

    Paired bootstrap and permutation over problems, Holm-corrected; also at equal compute."""

    runs: Positional[tuple[str, ...]]
    """B: run folders (their last step), evaluation folders, parents or globs of them, or files of
    graded samples."""
    base: str | None = None
    """A: one more of these, or the name of a model among them. null = each run against what it began
    with, and GRPO against SFT from the same model."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Family-wise error rate that Holm's correction keeps over all comparisons."""
    table: str | None = None
    """Compute-matched by hand: CSV `model,benchmark,step,score` of the checkpoints of the runs in
    --compute."""
    compute: CommaStrs = ()
    """With --table: training run folders (`name=folder`, name as in the table); tokens, FLOPs and
    GPU-hours are summed from metrics.jsonl. Run folders in `runs` are matched without it."""
    draws: Draws = 10_000
    """Bootstrap and permutation draws."""
    seed: int = 42
    """Seed of both."""
    json_path: JsonPath = None
    """Write the result here."""

    @model_validator(mode="after")
    def _check_runs(self) -> CompareConfig:
        if not self.runs:
            raise ValueError("runs is empty; fix: megaladder analyze compare RUN_DIR…")
        if self.table and not self.compute:
            raise ValueError(
                "table needs --compute name=RUN_DIR,… to know what each checkpoint cost; fix:"
                " add it"
            )
        return self


class ReportConfig(StrictModel):
    """One self-contained HTML page over run and eval folders.

    A CSV beside it holds every number in it."""

    run_dirs: Positional[tuple[str, ...]]
    """Folders: training runs (config.yaml, metrics.jsonl, rollouts/), eval results, and JSON files
    that the analyze verbs wrote."""
    out: str = "report.html"
    """The page; the numbers go to the same name with .csv."""
    title: str = ""
    """Heading; blank = made from the folder names."""
    max_rollouts: Annotated[int, Field(ge=0, le=100_000)] = 300
    """Rollouts to read in the page, evenly over steps and benchmarks, right and wrong ones."""
    max_chars: Annotated[int, Field(ge=100, le=10_000_000)] = 20_000
    """Characters of one text that the page holds: beginning and end are kept, the cut is marked."""
    rollout_mb: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Megabytes of all texts together: where they are more, the longest are cut."""
    seed: int = 42
    """Seed of intervals and of the choice of rollouts."""

    @model_validator(mode="after")
    def _check_dirs(self) -> ReportConfig:
        if not self.run_dirs:
            raise ValueError("run_dirs is empty; fix: megaladder report RUN_DIR… --out report.html")
        return self


class StudyConfig(StrictModel):
    """A published study from its data to its findings: the same command again goes on."""

    name: Positional[str]
    """A shipped study, or a folder of your own with a study.yaml; `megaladder study list` prints
    the shipped ones."""
    scale: Literal["toy", "paper"] = "toy"
    """toy = minutes on two CPU cores, tasks on which the published effect can show; paper = the
    published models, data and benchmarks, on a cluster."""
    out: str | None = None
    """Folder for everything that the study makes. null = runs/study/NAME-SCALE."""
    jobs: Annotated[int, Field(ge=1)] | None = None
    """Jobs of a sweep at a time. null = one a core; one on a machine with GPUs."""
    only: str | None = None
    """One stage, one job (STAGE/LABEL), or `findings`: measure them and write the report."""
    launcher: Literal["local", "slurm"] = "local"
    """local = here; slurm = write a job array a stage and a script that submits them."""
    dry_run: bool = False
    """List stages and commands, each resolved against its verb's configuration; start nothing."""

    @model_validator(mode="after")
    def _only_one_way(self) -> StudyConfig:
        if self.launcher == "slurm" and (self.only is not None or self.jobs is not None):
            raise ValueError(
                "launcher slurm submits every job as a task of its own and takes no only and no"
                " jobs; fix: leave them out"
            )
        return self
