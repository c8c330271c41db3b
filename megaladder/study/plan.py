"""A study at one scale → the jobs of its stages.

Every command as it will run, checked before any of them does."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megaladder.config.base import StrictModel, to_flag
from megaladder.errors import ConfigError
from megaladder.preflight.examples import examples_folder
from megaladder.study.study import OWN_WORDS, Case, Scale, Stage, Value

REFERENCE = re.compile(r"\$\{([a-z0-9_]*)\}")
# programs beside the verbs, with the class of their flags
TOOLS = {"make_tiny_model": "megaladder.tools.make_tiny_model:TinyModelConfig"}


@cache
def recipes_folder() -> str:
    """Where the shipped recipes lie: in a checkout or inside the installed package."""
    return str(examples_folder() / "recipes")


@dataclass(frozen=True)
class Job:
    """One case of a stage.

    `commands` are words without `megaladder`; `needs` are the stages whose folders they name;
    `files` the run files of the study among them."""

    stage: str
    label: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.label}"

    def programs(self) -> Iterator[list[str]]:
        """The commands as processes of this Python."""
        return ([sys.executable, "-m", *_module(words)] for words in self.commands)

    def typed(self) -> Iterator[str]:
        """The commands as a person types them."""
        for words in self.commands:
            start = ["python", "-m"] if words[0] in TOOLS else []
            yield shlex.join([*start, *_module(words)])


def _module(words: Sequence[str]) -> list[str]:
    tool = words[0] in TOOLS
    return [f"megaladder.tools.{words[0]}", *words[1:]] if tool else ["megaladder", *words]


@dataclass(frozen=True)
class Plan:
    """All jobs, stage by stage in their order; the folders of the study and of what it makes."""

    folder: Path
    out: Path
    stages: tuple[tuple[str, tuple[Job, ...]], ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(job for _, jobs in self.stages for job in jobs)

    def waves(self) -> list[dict[str, tuple[Job, ...]]]:
        """The stages in their order; neighbours that need nothing of each other run at a time."""
        waves: list[dict[str, tuple[Job, ...]]] = []
        for stage, jobs in self.stages:
            needs = {need for job in jobs for need in job.needs}
            if waves and not needs & waves[-1].keys():
                waves[-1][stage] = jobs
            else:
                waves.append({stage: jobs})
        return waves

    def jobs_of(self, stage: str) -> tuple[Job, ...]:
        return dict(self.stages)[stage]

    def named(self, only: str) -> tuple[Job, ...]:
        """The jobs that `only` means: a stage, or STAGE/LABEL. Raises ConfigError."""
        found = tuple(job for job in self.jobs if only in (job.stage, job.name))
        if not found:
            raise ConfigError(
                f"only {only}: no such stage or job; fix: one of"
                f" {', '.join(name for name, _ in self.stages)}, or STAGE/LABEL (--dry-run lists"
                " them)"
            )
        return found


def make_plan(scale: Scale, folder: Path, out: Path) -> Plan:
    """Every command with its references filled in. Raises ConfigError for one that means nothing."""
    stages: list[tuple[str, tuple[Job, ...]]] = []
    for stage in scale.stages:
        earlier = {name: str(out / name) for name, _ in stages}
        jobs = tuple(
            _job(
                stage,
                (label, case),
                {**earlier, "study": str(folder), "recipes": recipes_folder()},
                out,
            )
            for label, case in stage.sweep.expand()
        )
        stages.append((stage.name, jobs))
    return Plan(folder, out, tuple(stages))


def _job(stage: Stage, named_case: tuple[str, Case], known: Mapping[str, str], out: Path) -> Job:
    label, case = named_case
    here = out / stage.name / label if stage.sweep.cases or stage.sweep.grid else out / stage.name
    own = {"here": str(here), "stage": str(out / stage.name), "label": label}
    fill = _Filling(stage.name, {**known, **own}, {})
    for axis, value in case.items():
        fill.values[axis] = value if isinstance(value, tuple) else fill.text(str(value))
    fill.values["label"] = label
    if stage.together:
        fill.values["together"] = to_flag(fill.inside(stage.together))[0]
    commands = tuple(tuple(fill.words(shlex.split(command))) for command in stage.run)
    folders = (f"{known['study']}/", f"{recipes_folder()}/")
    named = (Path(word) for words in commands for word in words if word.startswith(folders))
    files = tuple(dict.fromkeys(path for path in named if path.suffix in (".yaml", ".jsonl")))
    needs = tuple(name for name in fill.used if name in known and name not in OWN_WORDS)
    return Job(stage.name, label, here, commands, needs, files)


@dataclass(frozen=True)
class _Filling:
    """`${name}` → value in the words of a stage; `used` are the names that were asked for."""

    stage: str
    values: dict[str, object]
    used: dict[str, None]

    def words(self, words: Sequence[str]) -> Iterator[str]:
        """A word that is a list's name alone becomes its words."""
        for word in words:
            alone = REFERENCE.fullmatch(word)
            value = self.values.get(alone[1]) if alone else None
            if isinstance(value, tuple):
                yield from (self.text(str(item)) for item in value)
            else:
                yield self.text(word)

    def inside(self, cases: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[str, Value]]:
        """The cases of a stage with their references filled in."""
        return {
            label: {k: self.text(v) if isinstance(v, str) else v for k, v in case.items()}
            for label, case in cases.items()
        }

    def text(self, text: str) -> str:
        for name in REFERENCE.findall(text):
            self.used[name] = None
            if name not in self.values:
                raise ConfigError(
                    f"stage {self.stage}: ${{{name}}} is no stage before it and no axis of its"
                    f" sweep; fix: one of {', '.join(self.values)}"
                )
        return REFERENCE.sub(lambda match: str(self.values[match[1]]), text)


def check_job(job: Job) -> None:
    """Resolves every command as its verb would, and starts none.

    Raises ConfigError naming the job and the command."""
    missing = [path for path in job.files if not path.is_file()]
    if missing:
        raise ConfigError(f"{job.name}: {missing[0]}: no such file; fix: the name in study.yaml")
    for words in job.commands:
        try:
            _resolve(words)
        except (ConfigError, SystemExit) as error:
            raise ConfigError(f"{job.name}: `megaladder {shlex.join(words)}`: {error}") from None


def _resolve(words: tuple[str, ...]) -> StrictModel:
    from megaladder.cli.dispatch import config_class_of, find_verb, load, resolve_words
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.resolve import resolve
    from megaladder.config.rules.layout import check_world
    from megaladder.config.sft import SftConfig

    if words[0] in TOOLS:
        tool = load(TOOLS[words[0]])
        assert isinstance(tool, type)
        return resolve(tool, list(words[1:]), prog=words[0], takes_yaml=False)
    verb, rest = find_verb(words)
    config = resolve_words(verb, config_class_of(verb, rest), rest)
    if isinstance(config, (SftConfig, GrpoConfig)):
        check_world(config, config.parallel.ranks or config.parallel.least_ranks)
    return config
