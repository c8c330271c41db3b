"""Configuration of `eval`.

Which model, which benchmarks, how answers are drawn and where results go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from megaladder.config.base import CommaInts, CommaStrs, StrictModel, yaml_flag
from megaladder.config.rules.engine import READ_BY_VLLM
from megaladder.config.rules.unread import ReadIf, raise_all, unread_notes, unread_problems
from megaladder.config.sections.engine import EvalRolloutSection, JsonPath
from megaladder.config.sections.evaluate import BenchmarkPromptSection
from megaladder.config.sections.shared import ModelSection, Positive
from megaladder.config.strict_yaml import merge
from megaladder.config.verbs.grade import OWN_GRADER_READS, GraderName
from megaladder.types import DialectName

# `--n 16` for `--rollout.n 16`: the flags that people know without their section
SHORT_FLAGS = {
    "--model": "--model.path",
    "--tokenizer": "--model.tokenizer",
    "--n": "--rollout.n",
    "--temperature": "--rollout.temperature",
    "--top-p": "--rollout.top-p",
    "--top-k": "--rollout.top-k",
    "--max-tokens": "--rollout.max-tokens",
    "--tp": "--rollout.tp",
    "--replicas": "--rollout.replicas",
    "--engine": "--rollout.engine",
}


def eval_config(args: list[str]) -> type[EvalConfig]:
    """The config class of `eval`.

    Spells the short flags out in `args`, in place, and a run folder in the place of a run.yaml."""
    if args and not args[0].startswith("-") and Path(args[0]).is_dir():
        args.insert(0, "--run-dir")
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") in SHORT_FLAGS:
            args[index] = f"{SHORT_FLAGS[name.replace('_', '-')]}{equals}{value}"
    return EvalConfig


class BudgetSection(StrictModel):
    """Test-time budgets (s1, arXiv 2501.19393).

    Off unless max_thinking, num_waits, step, class or rejection is set."""

    max_thinking: Positive | Literal["auto"] | None = None
    """Thinking tokens after which the end of thinking is forced. auto = what max_tokens leaves
    (s1's rule). null = no limit."""
    num_waits: Annotated[int, Field(ge=0)] = 0
    """Times that the end of thinking is suppressed and `wait` is put in its place."""
    wait: str = "Wait"
    """What is put in the place of a suppressed end of thinking; empty = nothing."""
    accounting: Literal["published", "remaining"] = "published"
    """Limit of a round after a wait: published = max_thinking again, thinking cut to it at the end;
    remaining = what generated tokens left of it."""
    start: str = "<think>\n"
    """Opens the thinking, put after the prompt unless it ends with it. s1: '<|im_start|>think'."""
    end: str = "</think>"
    """Ends the thinking; generation stops there. s1: '<|im_start|>answer'."""
    end_forced: str | None = None
    """Put where the limit cut the thinking off, on a new line. null = `end`, a line break and
    'Final Answer:' (s1)."""
    stop: CommaStrs = ()
    """Further stop strings of the thinking phase. s1: '<|im_start|>'."""
    steps: Positive | None = None
    """Ask in the prompt to think for up to this many steps."""
    tokens: Positive | None = None
    """Ask in the prompt to think for up to this many tokens."""
    effort: Literal["short", "long"] | None = None
    """Ask in the prompt for short or long thinking, in s1's words."""
    reject_above: Positive | None = None
    """Rejection sampling: draw again until the thinking has at most this many tokens."""
    max_tries: Positive = 100
    """Draws per sample under reject_above before the sample counts as without an answer."""

    @property
    def forces(self) -> bool:
        """Whether thinking and answer are generated in two phases."""
        return self.max_thinking is not None or self.num_waits > 0 or self.reject_above is not None

    @property
    def active(self) -> bool:
        return (
            self.forces
            or self.steps is not None
            or self.tokens is not None
            or self.effort is not None
        )


class JudgeSection(StrictModel):
    """For judged benchmarks (HEx-PHI, AlpacaEval-style). Never needed by the others."""

    model: str | None = None
    """Folder of a local judge or reward model, or the name that an OpenAI-compatible service
    knows."""
    url: str | None = None
    """Base address of an OpenAI-compatible service, e.g. http://127.0.0.1:8000/v1. null = a local
    model on our engine."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the service's key; the key itself is written nowhere."""
    max_tokens: Positive = 4096
    """Longest judgement, tokens."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Tries after a failed call, with growing pauses."""


class EvalConfig(StrictModel):
    """Benchmarks: generate, grade, append; resumable.

    Short flags: --model --tokenizer --n --temperature --top-p --top-k --max-tokens."""

    model: ModelSection = ModelSection()
    run_dir: str | None = None
    """Run folder of a training in the place of model.path: every step that it kept is evaluated, by
    one engine that is given their weights in turn. Also as first argument: megaladder eval RUN_DIR."""
    steps: CommaInts = ()
    """Only these steps of run_dir. none = all whose checkpoint or export is there."""
    benchmark: CommaStrs = ()
    """Names from the registry (`--benchmark list` prints it), a file of rows of your own
    (problems.jsonl), or a YAML file that names data, fields, prompt, kind and decoding; several
    with commas."""
    registry: str | None = None
    """YAML file with benchmarks of your own by name, in the form of the shipped registry."""
    out: str = "runs/eval"
    """Results go to <out>/<model>/<benchmark>/. A second start with the same settings resumes; with
    others it is refused. With run_dir: RUN_DIR/eval, unless it is set, and step_N for the model."""
    name: str | None = None
    """Folder name of the model under <out>. null = the last part of its path."""
    cases: Annotated[dict[str, dict[str, Any]], yaml_flag("{NAME: {KEY: VALUE}}", dict)] = Field(
        default_factory=dict
    )
    """Several evaluations by one engine, each with the keys that it changes: {sft: {model.path: A},
    wait: {model.path: A, budget.num_waits: 2}}. Results go to <out>/NAME."""
    data_dir: str | None = None
    """Folder with <benchmark>/test.jsonl; looked at first. null = MEGALADDER_DATA, else the hub."""
    revision: str | None = None
    """Commit, branch or tag of the benchmark's hub repository. null = the registry's commit, else
    the newest; what was taken is recorded with the score."""
    limit: Positive | None = None
    """Only the first problems, for trials. Printed with the score."""
    stop_against: str | None = None
    """Folder of another model that `eval` wrote, with the same problems: draw samples in waves and stop
    before n where it is known which of the two is better, or where more samples would not tell. A
    difference where none is: 5 %, over all waves. null = n."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of sampling, option shuffles and intervals."""
    rollout: EvalRolloutSection = EvalRolloutSection()
    prompt: BenchmarkPromptSection = BenchmarkPromptSection()
    budget: BudgetSection = BudgetSection()
    judge: JudgeSection = JudgeSection()
    sandbox: str | None = None
    """Command that judges generated programs (reads one JSON object, prints one), for livecodebench.
    null = our own sandbox: no network, no files but Python's, limits on CPU and memory."""
    grader: GraderName = "megaladder"
    """megaladder = our own rules; else the grader of a published study (`grade --help`), for math
    and gsm8k. Part of the protocol that the summary records, with its version."""
    extract: DialectName = "megaladder"
    """Where the answer stands, for kinds math, gsm8k, choice and exact (`grade --help`)."""
    grade_workers: Positive = 2
    """Processes that grade."""
    grade_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """CPU seconds one answer may take to grade; one that needs more is undecided."""
    progress_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between progress lines."""
    json_path: JsonPath = None
    """Also write the summary to this file."""

    @model_validator(mode="after")
    def _complete(self) -> EvalConfig:
        if self.cases:
            raise_all(self._problems_of_cases())
            return self
        problems = []
        if not self.benchmark:
            problems.append(
                "benchmark is empty; fix: --benchmark aime24,math500 (--benchmark list prints the"
                " names)"
            )
        elif self.benchmark != ("list",) and not self.has_model:
            problems.append("model.path is empty; fix: --model DIR")
        if self.budget.reject_above is not None and (
            self.budget.max_thinking is not None or self.budget.num_waits
        ):
            problems.append(
                "budget.reject_above takes no max_thinking and no num_waits; fix: one kind of"
                " budget a run"
            )
        raise_all([*problems, *unread_problems(self, _READ_IF)])
        return self

    def _problems_of_cases(self) -> list[str]:
        """What is wrong with each case as an evaluation of its own."""
        problems = []
        for name, changes in self.cases.items():
            own = sorted({"cases", "name", "out", "run_dir", "steps", "json_path"} & set(changes))
            problems += [f"cases.{name}.{key} is one for all; fix: leave it out" for key in own]
            try:
                self.case(name)
            except ValidationError as error:
                problems += [f"cases.{name}: {line}" for line in _lines(error)]
        if self.run_dir is not None:
            problems.append("cases take no run_dir; fix: model.path of each step, or no cases")
        return problems

    def case(self, name: str) -> EvalConfig:
        """One of `cases` as an evaluation of its own."""
        values = self.model_dump(exclude={"cases", "json_path"})
        for key, value in self.cases[name].items():
            for part in reversed(key.split(".")):
                value = {part: value}
            values = merge(values, value)
        return EvalConfig.model_validate({**values, "name": name})

    @property
    def has_model(self) -> bool:
        """Whether there are weights to evaluate, or none are needed."""
        return bool(self.model.path or self.run_dir) or self.rollout.engine != "vllm"

    @property
    def results(self) -> Path:
        """The folder that has one of each model in it."""
        if self.run_dir is not None and self.out == type(self).model_fields["out"].default:
            return Path(self.run_dir) / "eval"
        return Path(self.out)

    @property
    def unread(self) -> list[str]:
        """Keys that the chosen engine does not read, a line each."""
        return unread_notes(self, READ_BY_VLLM)


_READ_IF: tuple[ReadIf[EvalConfig], ...] = (
    ReadIf(("steps",), lambda run: run.run_dir is not None, "run_dir"),
    ReadIf(
        ("model.path", "model.revision", "model.tokenizer", "name"),
        lambda run: run.run_dir is None,
        "run_dir null",
    ),
    OWN_GRADER_READS,
    ReadIf(
        ("budget.start", "budget.end", "budget.end_forced", "budget.stop"),
        lambda run: run.budget.forces,
        "budget.max_thinking, num_waits or reject_above",
    ),
    ReadIf(
        ("budget.wait", "budget.accounting"),
        lambda run: run.budget.num_waits > 0,
        "budget.num_waits",
    ),
    ReadIf(
        ("budget.max_tries",),
        lambda run: run.budget.reject_above is not None,
        "budget.reject_above",
    ),
    ReadIf(
        ("judge.key_variable", "judge.retries"), lambda run: run.judge.url is not None, "judge.url"
    ),
    ReadIf(
        ("judge.url", "judge.max_tokens"), lambda run: run.judge.model is not None, "judge.model"
    ),
)


def _lines(error: ValidationError) -> list[str]:
    """Every violation on a line: the key, what is wrong, the fix."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'; fix: a key of `megaladder eval --help`")
        elif key:
            lines.append(f"{key}: {item['msg']}; fix: such a value (--help shows each default)")
        else:
            lines += item["msg"].removeprefix("Value error, ").splitlines()
    return lines


def section_values(section: StrictModel, names: Sequence[str]) -> dict[str, Any]:
    """The chosen fields as a dict."""
    return {name: getattr(section, name) for name in names}
