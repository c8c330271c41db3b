"""A study of cheap stages: what it plans, what it does once, what it does again and what not."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from waiting import descendants, is_alive, wait_until

from megaladder.cli import main
from megaladder.config.base import StrictModel
from megaladder.config.verbs.analysis import StudyConfig
from megaladder.errors import ConfigError
from megaladder.evaluation.benchmarks.spec import own_name
from megaladder.study import finding as kinds
from megaladder.study import work
from megaladder.study.plan import make_plan
from megaladder.study.study import Scale, Stage, Study, Sweep, load_study, shipped_studies
from megaladder.study.verb import run_study

MOMENTS = (
    # (stage whose work is under way, what tells that it has begun)
    ("data", "data/train.jsonl"),
    ("data", "data/problems.jsonl"),
    ("more", "more/1/rows.jsonl"),
    ("evaluate", ".study/evaluate/a/log.txt"),
    ("evaluate", "evaluate/b/sums/samples_sums.jsonl"),
)


def start(study: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megaladder", "study", str(study), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--jobs", "1", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def written(out: Path) -> dict[str, object]:
    """What the jobs made, without times."""
    rows = {
        str(path.relative_to(out)): path.read_text()
        for path in sorted(out.rglob("*.jsonl"))
        # what was dropped is told with its place, in a folder of its own for each test
        if ".study" not in path.parts and "dropped" not in path.name
    }
    findings = json.loads((out / "findings.json").read_text())
    return {**rows, "findings": findings["findings"]}


def test_a_study_ends_in_findings_and_a_report(whole: Path) -> None:
    out = whole / "out"
    found = json.loads((out / "findings.json").read_text())
    assert [(f["name"], f["verdict"]) for f in found["findings"]] == [("equal", "reproduced")]
    assert found["cpu_s"] > 0
    page = (out / "report.html").read_text()
    assert page.index("Published findings") < page.index("Accuracy")
    (finding,) = found["findings"]
    shown = [finding[key] for key in ("claim", "published", "statistic", "opposite_if", "verdict")]
    assert all(text in page for text in shown) and "(20 problems, exact)" in page
    assert "accuracy of evaluate/a/sums minus evaluate/b/sums, paired" in shown
    assert "equal" in (out / "report.csv").read_text()


def test_what_is_finished_is_not_done_again(
    whole: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing may be started
    # of a start that was killed when the job's record was written already
    left = whole / "out" / ".study" / "evaluate" / "a" / "cost.json"
    left.write_text("{}")
    run_study(StudyConfig(name=str(whole / "small"), out=str(whole / "out")))
    assert "more: 2 job(s), 2 finished by an earlier start" in capfd.readouterr().out
    assert not left.exists()


def test_only_what_depends_on_a_change_is_done_again(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_study(StudyConfig(name=str(study), out=str(out), only="data"))
    run_study(StudyConfig(name=str(study), out=str(out), only="more"))
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(text.replace("n=${seed}", "n=3"))
    (out / "more" / "1" / "left.jsonl").write_text("made from something else\n")
    capfd.readouterr()
    run_study(StudyConfig(name=str(study), out=str(out), only="more"))
    assert "more: 2 job(s), 0 finished" in capfd.readouterr().out
    assert len((out / "more" / "1" / "rows.jsonl").read_text().splitlines()) == 3
    assert not (out / "more" / "1" / "left.jsonl").exists()
    (out / "data" / "train.jsonl").write_text("another\n")
    run_study(StudyConfig(name=str(study), out=str(out), only="data"))
    assert "data: 1 job(s), 0 finished" in capfd.readouterr().out
    assert "another" not in (out / "data" / "train.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file"), MOMENTS)
def test_killed_at_any_moment_it_goes_on(
    stage: str, file: str, whole: Path, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = start(study, out)
    wait_until(lambda: (out / file).exists() or first.poll() is not None, f"{stage} at work")
    children = list(descendants(first.pid))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not any(map(is_alive, children)), "the end of its children")
    second = start(study, out)
    said, _ = second.communicate()
    assert second.returncode == 0, said
    assert written(out) == written(whole / "out")


@pytest.mark.slow
def test_a_stop_signal_ends_it_in_good_order(study: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"
    first = start(study, out)
    wait_until((out / ".study/data/all/log.txt").exists, "the first command")
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate()
    assert first.returncode == 3, said
    second = start(study, out)
    said, _ = second.communicate()
    assert second.returncode == 0, said
    assert written(out) == written(whole / "out")


def test_a_command_that_fails_is_named_with_the_end_of_its_log(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(
        text.replace("--rows 30 ", "--rows 900 --digits 1 --steps 1 ")
    )
    status = main(["study", str(study), "--out", str(tmp_path / "out")])
    said = capfd.readouterr().err
    assert status == 2
    assert (
        "data/all: status 2" in said and "different training questions" in said and "fix:" in said
    )


@pytest.mark.parametrize(
    ("ended", "status"), [(1, 1), (2, 2), (3, 3), (130, 3), (-signal.SIGKILL, 3), (-2, 3)]
)
def test_a_study_whose_command_somebody_stopped_goes_on(tmp_path: Path, ended, status) -> None:
    """Also one that knows no resume itself, and says 130 for Ctrl-C."""
    log = tmp_path / "log.txt"
    log.write_text("megaladder: interrupted\n")
    running = SimpleNamespace(job=SimpleNamespace(name="data/all"), log=log)
    told = work._failure(running, ended)  # type: ignore[arg-type]
    assert told.exit_status == status
    assert ("start the same command again, it goes on" in str(told)) == (status == 3)


def test_dry_run_lists_every_command_and_starts_none(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_study(StudyConfig(name=str(study), out=str(out), dry_run=True))
    said = capsys.readouterr().out
    assert f"--set n=2 --out {out}/more/2/rows.jsonl" in said and "reproduced if" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("--set n", "--sett n", "more/1: `megaladder data select"),
        ("--workers ${w", "--workers a${w", "evaluate/a: `megaladder grade"),
        ("${seed}", "${sead}", r"\$\{sead\} is no stage before it"),
        ("report: [evaluate]", "report: [evaluat]", "report names evaluat"),
        ("${workers}", "${together}", "evaluate: `together` and a command with .* need each other"),
        ("{seed: [1, 2]}", "{seed: [1, 1]}", "two cases are called 1"),
        ("run:\n          - data make", "run:\n          - data mak", "data/all"),
    ],
)
def test_a_bad_study_is_refused_before_anything_starts(
    before: str, after: str, told: str, study: Path, tmp_path: Path
) -> None:
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=told):
        run_study(StudyConfig(name=str(study), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_cases_together_are_one_word_of_one_command(tmp_path: Path) -> None:
    """Their references are filled in, and what they name is read before them."""
    cases = {"a": {"model.path": "${make}/a b"}, "b": {"model.path": "x", "rollout.n": 2}}
    stage = {"name": "look", "run": ["eval --cases ${together} --out ${here}"], "together": cases}
    make = {"name": "make", "run": ["data get gsm8k --out ${here}"]}
    scale = Scale.model_validate({"about": "it", "report": ["look"], "stages": [make, stage]})
    (job,) = make_plan(scale, tmp_path, tmp_path / "out").jobs_of("look")
    ((_, _, word, *rest),) = job.commands
    filled = {**cases, "a": {"model.path": f"{tmp_path}/out/make/a b"}}
    assert yaml.safe_load(word) == filled and list(yaml.safe_load(word)) == ["a", "b"]
    assert job.needs == ("make",) and rest == ["--out", f"{tmp_path}/out/look"]


def test_stages_that_do_not_need_each_other_run_at_a_time(tmp_path: Path) -> None:
    folder = shipped_studies()["transferability"]
    plan = make_plan(load_study(folder).scales["toy"], folder, tmp_path)
    waves = [list(wave) for wave in plan.waves()]
    assert waves == [["data"], ["base"], ["sft", "rl"], ["evaluate"], ["shift"]]


def test_rules_that_change_after_the_start_are_told(
    whole: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (whole / "small" / "study.yaml").read_text()
    try:
        (whole / "small" / "study.yaml").write_text(text.replace("[-20, 20]", "[-25, 25]"))
        config = StudyConfig(name=str(whole / "small"), out=str(whole / "out"), only="findings")
        run_study(config)
    finally:
        (whole / "small" / "study.yaml").write_text(text)
    assert (
        "the rule of equal is another than when this study was started" in capsys.readouterr().out
    )
    assert json.loads((whole / "out" / "findings.json").read_text())["changed_rules"] == ["equal"]


def test_slurm_gets_an_array_a_stage_and_their_order(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(StudyConfig(name=str(study), out=str(out), launcher="slurm"))
    submit = (out / "slurm" / "submit.sh").read_text()
    assert submit.index("data.sbatch") < submit.index("more.sbatch") < submit.index("evaluate.sb")
    assert "--array=0-1" in submit and submit.count("afterok") == 3
    task = (out / "slurm" / "more.sbatch").read_text()
    assert "jobs=(more/1 more/2)" in task and '--only "${jobs[$SLURM_ARRAY_TASK_ID]}"' in task
    for script in (out / "slurm").iterdir():
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("name", sorted(shipped_studies()))
@pytest.mark.parametrize("scale", ["toy", "paper"])
def test_every_shipped_study_is_well_formed(
    name: str, scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"name": name, "scale": scale, "out": str(tmp_path / "out"), "dry_run": True}
    run_study(StudyConfig.model_validate(config))
    assert "all commands are well formed" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_every_finding_names_evaluations_that_its_stages_make(name: str) -> None:
    study = load_study(shipped_studies()[name])
    for scale, what in study.scales.items():
        asked = {stage.name: _benchmarks(stage) for stage in what.stages}
        stages = {
            stage.name: {*stage.together, *(label for label, _ in stage.sweep.expand())}
            for stage in what.stages
        }
        assert len(study.findings_at(scale)) >= 2
        for finding in study.findings_at(scale):
            for place in _places(finding.measured[scale].model_dump()):
                stage, label, *benchmark = place.split("/")
                assert any(Path(one).match(label) for one in stages[stage]), (finding.name, place)
                assert asked[stage].issuperset(benchmark) or not asked[stage], (finding.name, place)


def _benchmarks(stage: Stage) -> set[str]:
    """Names of the benchmarks that a stage's evaluations ask for; of files, the names they get."""
    words = [shlex.split(command) for command in stage.run]
    names = [one[one.index("--benchmark") + 1].split(",") for one in words if one[0] == "eval"]
    return {own_name(name) if name.endswith(".jsonl") else name for some in names for name in some}


def _places(statistic: dict[str, object]) -> list[str]:
    """Every STAGE/LABEL that a statistic reads."""
    found: list[str] = []
    runs = statistic.get("runs") or ("",)
    assert isinstance(runs, tuple)
    for key, value in statistic.items():
        if isinstance(value, dict) and key != "only":
            found += [one.replace("{run}", run) for one in _places(value) for run in runs]
        elif isinstance(value, tuple) and key == "points":
            found += [place for point in value for place in _places(point)]
        elif key in ("of", "minus") and isinstance(value, str):
            found.append(value)
    return found


# where a mapping stands in study.yaml, and what it is
PLACES: dict[str, type[StrictModel]] = {
    "": Study,
    "a scale": Scale,
    "a stage": Stage,
    "`sweep`": Sweep,
    "a finding": kinds.Finding,
    "`reproduced`, `opposite`: one of": kinds.Bound,
    "`measured`, `kind: level`": kinds.Level,
    "`kind: difference`": kinds.Difference,
    "`kind: slope`, `scaling`": kinds.Slope,
    "`kind: control`": kinds.Control,
    "`kind: correlation`": kinds.Correlation,
    "`kind: shift`": kinds.Shift,
    "a point": kinds.Point,
    "`x`, `y`, `better_than`": kinds.Column,
    "`only`": kinds.Only,
}
SHARED = ("metric", "only")


def table_of_keys() -> str:
    """Every key of study.yaml, as the models describe them."""
    lines = ["| in | key | meaning |", "|---|---|---|"]
    for place, model in PLACES.items():
        for key, field in model.model_fields.items():
            # what all statistics of problems share stands once
            if key == "kind" or (key in SHARED and model in (kinds.Difference, kinds.Slope)):
                continue
            assert field.description, f"{model.__name__}.{key} has no docstring"
            meaning = " ".join(field.description.split())
            optional = "" if field.is_required() else " (optional)"
            lines.append(f"| {place} | `{key}` | {meaning}{optional} |")
            place = ""
    return "\n".join(lines)


def test_the_page_lists_every_key_of_a_study() -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text("utf-8")
    assert f"\n{table_of_keys()}\n" in page, "put table_of_keys() there"
