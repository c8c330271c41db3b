"""`megaladder study NAME`: the stages of a published study one after another, then its findings."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaladder.analysis.report.sections.study import in_words
from megaladder.config.verbs.analysis import StudyConfig
from megaladder.process.launch import available_cores
from megaladder.run_dir import atomic_write, read_object, to_json, write_object
from megaladder.study.measure import Outcome, judge
from megaladder.study.plan import Job, Plan, check_job, make_plan
from megaladder.study.record import NOTES, Records
from megaladder.study.scores import Evaluations
from megaladder.study.slurm import write_arrays
from megaladder.study.study import Study, load_study, shipped_studies, study_folder
from megaladder.study.work import Crew

FINDINGS = "findings"
MANY_JOBS = 8


@dataclass(frozen=True)
class Start:
    """One start of a study: what it is, where, and which of it."""

    study: Study
    config: StudyConfig
    plan: Plan

    @property
    def findings_file(self) -> Path:
        return self.plan.out / "findings.json"


def run_study(config: StudyConfig) -> None:
    """The verb `study`."""
    if config.name == "list":
        list_studies()
        return
    folder = study_folder(config.name)
    study = load_study(folder)
    out = Path(config.out or f"runs/study/{folder.name}-{config.scale}")
    scale = study.scales[config.scale]
    start = Start(study, config, make_plan(scale, folder, out))
    wanted = () if config.only == FINDINGS else start.plan.jobs
    if config.only not in (None, FINDINGS):
        wanted = start.plan.named(str(config.only))
    for job in wanted:
        check_job(job)
    if config.dry_run:
        show(start, wanted)
    elif config.launcher == "slurm":
        register(start)
        print(f"written, not started: bash {write_arrays(start.plan, _words(config), study.title)}")
    else:
        register(start)
        run_stages(start, wanted)
        if config.only in (None, FINDINGS):
            conclude(start)


def list_studies() -> None:
    """The shipped studies with their scales and findings."""
    for name, folder in shipped_studies().items():
        study = load_study(folder)
        print(f"{name}: {study.title} ({study.source})")
        for scale, what in study.scales.items():
            print(f"    {scale}: {what.about}; {len(study.findings_at(scale))} findings")


def show(start: Start, wanted: Sequence[Job]) -> None:
    """Every stage, job and command that would run; nothing is started."""
    for name, jobs in start.plan.stages:
        asked = [job for job in jobs if job in wanted]
        if asked:
            print(f"{name}: {len(asked)} job(s)")
        for job in asked:
            print(f"  {job.name}")
            for command in job.typed():
                print(f"    {command}")
    for finding in start.study.findings_at(start.config.scale):
        print(f"finding {finding.name}: {finding.claim}")
        print(f"    reproduced if {finding.reproduced}, opposite if {finding.opposite}")
    print(f"{len(wanted)} jobs, all commands are well formed; nothing was started")


def run_stages(start: Start, wanted: Sequence[Job]) -> None:
    """Wave by wave; what is finished is left as it is."""
    crew = Crew(places(start.config), lambda line: print(f"  {line}", flush=True))
    for wave in start.plan.waves():
        # the digests of earlier stages are what they are now
        records = Records(start.plan)
        todo: list[Job] = []
        for name, jobs in wave.items():
            asked = [job for job in jobs if job in wanted]
            left = [job for job in asked if not records.is_finished(job)]
            todo += left
            if asked:
                done = len(asked) - len(left)
                print(
                    f"{name}: {len(asked)} job(s), {done} finished by an earlier start", flush=True
                )
        crew.run(todo, records)


def places(config: StudyConfig) -> int:
    """Jobs at a time: as asked, else one a core; one on a machine with GPUs, which it takes all."""
    if config.jobs is not None:
        return config.jobs
    # as the driver shows them: importing torch would take longer than a finished study's answer
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    return 1 if has_gpu else min(MANY_JOBS, available_cores())


def register(start: Start) -> None:
    """Keeps each finding's rule as it stood when the study was first started."""
    path = start.plan.out / NOTES / "rules.json"
    if not path.is_file():
        rules = {"rules": _rules(start), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_object(path, rules)


def _rules(start: Start) -> dict[str, str]:
    return {
        finding.name: hashlib.sha256(to_json(finding.rule(), sort_keys=True).encode()).hexdigest()
        for finding in start.study.findings_at(start.config.scale)
    }


def changed_rules(start: Start) -> list[str]:
    """Findings whose statistic or rule is another than at the first start."""
    path = start.plan.out / NOTES / "rules.json"
    first = read_object(path, "delete it, if the rules may count from now on").get("rules", {})
    return [name for name, digest in _rules(start).items() if first.get(name) != digest]


def conclude(start: Start) -> None:
    """Measures the findings, writes `findings.json` and the report, prints the verdicts."""
    found = Evaluations(start.plan.out)
    scale = start.config.scale
    outcomes = [judge(finding, scale, found) for finding in start.study.findings_at(scale)]
    atomic_write(start.findings_file, to_json(_as_json(start, outcomes), indent=1) + "\n")
    write_report(start)
    for outcome in outcomes:
        row = outcome.as_json()
        print(f"{row['verdict']:<17} {row['name']}: {in_words(row)}")
        print(f"{'':<17} {row['claim']} Published: {row['published']}")
    for name in changed_rules(start):
        print(f"note: the rule of {name} is another than when this study was started")
    print(f"{start.findings_file} and {start.plan.out / 'report.html'}")


def _as_json(start: Start, outcomes: Sequence[Outcome]) -> dict[str, object]:
    records = Records(start.plan)
    costs = [records.cost(job) for job in start.plan.jobs]
    return {
        "study": study_folder(start.config.name).name,
        "title": start.study.title,
        "source": start.study.source,
        "scale": start.config.scale,
        "findings": [outcome.as_json() for outcome in outcomes],
        "changed_rules": changed_rules(start),
        "cpu_s": sum(cost.cpu_s for cost in costs),
        "job_s": sum(cost.wall_s for cost in costs),
    }


def write_report(start: Start) -> None:
    """report.html and report.csv of the stages that the scale names, findings first."""
    from megaladder.analysis.report.verb import run_report
    from megaladder.config.verbs.analysis import ReportConfig

    scale = start.study.scales[start.config.scale]
    # of each job: an analysis is looked for in the folder that is named, not below it
    folders = [str(job.folder) for name in scale.report for job in start.plan.jobs_of(name)]
    run_report(
        ReportConfig(
            run_dirs=(*folders, str(start.findings_file)),
            out=str(start.plan.out / "report.html"),
            title=f"{start.study.title}, scale {start.config.scale}",
        )
    )


def _words(config: StudyConfig) -> list[str]:
    """This start as a command, for another process."""
    out = [] if config.out is None else ["--out", str(Path(config.out).resolve())]
    return ["study", config.name, "--scale", config.scale, *out]
