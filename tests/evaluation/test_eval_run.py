"""The evaluation loop on the fake engine: kills at every place, resumption, refusal to mix, files
that are the same whoever generated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from clean_fork import start_fork
from tiny_models import build_tokenizer
from waiting import pause, wait_until

from megaladder.cli import main
from megaladder.errors import ConfigError, DataError, EngineError
from megaladder.evaluation import report, verb
from megaladder.evaluation.benchmarks.stopping import run_until_decided
from megaladder.evaluation.run import Progress, Task, run_task
from megaladder.evaluation.store import Journal
from megaladder.rewards.grade import grade
from megaladder.rewards.verifiers.pool import VerifierPool
from megaladder.rewards.worker import GradePool
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.fake_engine import FakeEngine, Faults
from megaladder.run_dir import JsonlFile
from megaladder.types import Completion, FinishReason, Message, Problem

PARTS = {"model": {"sha256": "m"}, "decoding": {"temperature": 1.0}}
PROBLEMS = tuple(
    Problem(
        f"p{i}",
        (Message("user", f"{i}+1?"),),
        str(i + 1),
        "math",
        source="toy",
        metadata={"question": f"{i}+1?"},
    )
    for i in range(8)
)


def task(n: int = 3, graded: bool = False) -> Task:
    ids = tuple((10 + i, 20) for i in range(len(PROBLEMS)))
    return Task(
        "toy",
        PROBLEMS,
        tuple(problem.prompt[0].content for problem in PROBLEMS),
        ids,
        SamplingParams(n=n, seed=1),
        graded=graded,
    )


def answers(request) -> Completion:
    """Right for the first half of the seeds, wrong or empty for the rest; a function of the request
    alone."""
    value = request.prompt_ids[0] - 10 + 1
    text = {0: f"\\boxed{{{value}}}", 1: f"\\boxed{{{value}}}", 2: "\\boxed{-1}", 3: "no idea"}[
        request.params.seed % 4
    ]
    return Completion((1, 2, 3), text, FinishReason.STOP)


@pytest.fixture(scope="module")
def pool():
    with GradePool(num_workers=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The journal of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with Journal(folder, PARTS) as journal:
        run_task(task(), FakeEngine(answers), None, journal)
    return (folder / "journal.jsonl").read_bytes()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]


def keyed(lines: bytes) -> dict:
    found = [json.loads(line) for line in lines.splitlines()]
    assert len({(row["id"], row["sample"]) for row in found}) == len(found), (
        "a sample is there twice"
    )
    return {(row["id"], row["sample"]): row for row in found}


def test_sampling_stops_as_soon_as_it_is_known_which_is_better(tmp_path, pool):
    """80 problems, up to 16 samples: against a model that solves nothing a few are enough, against
    one that solves as many, all are drawn. The samples are the first of a whole run's, and a second
    start draws nothing and ends at the same place."""
    problems = tuple(replace(PROBLEMS[0], id=f"q{i}", gold=str(i + 1)) for i in range(80))
    ids = tuple((10 + i, 20) for i in range(80))
    asked = SamplingParams(n=16, seed=1)
    many = Task("toy", problems, ("?",) * 80, ids, asked, graded=True)
    nothing = dict.fromkeys((problem.id for problem in problems), 0.0)
    with Journal(tmp_path / "a", PARTS) as journal:
        done, timing, look = run_until_decided(many, nothing, FakeEngine(answers), pool, journal)
        n = done.params.n
        assert look.decided and n < 4 and timing.num_new == len(journal.records) == 80 * n
        again, timing, same = run_until_decided(many, nothing, FakeEngine(answers), pool, journal)
        assert (again.params.n, timing.num_new, same) == (n, 0, look)
        verdicts = {key: one.correct for key, one in journal.records.items()}
    with Journal(tmp_path / "b", PARTS) as journal:
        fixed = replace(many, params=replace(asked, n=n))
        run_task(fixed, FakeEngine(answers), pool, journal)
        assert {key: one.correct for key, one in journal.records.items()} == verdicts
    # as good on average, better here and worse there
    equal = {problem.id: 0.5 + 0.4 * (-1) ** i for i, problem in enumerate(problems)}
    with Journal(tmp_path / "c", PARTS) as journal:
        _, _, look = run_until_decided(many, equal, FakeEngine(answers), pool, journal)
        assert look.ends and not look.decided and abs(look.difference) < look.half_width


def test_journal_cut_at_every_boundary_and_around_it(tmp_path, whole):
    """A kill leaves a prefix of the file. From each record boundary, a byte before and after it,
    and mid-line: the same 24 samples."""
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    cuts = sorted(
        {max(0, min(len(whole), end + delta)) for end in (0, *ends) for delta in (-1, 0, 1, 40)}
    )
    for number, cut in enumerate(cuts):
        folder = tmp_path / str(number)
        with Journal(folder, PARTS):
            pass
        (folder / "journal.jsonl").write_bytes(whole[:cut])
        engine = FakeEngine(answers)
        with Journal(folder, PARTS) as journal:
            complete = sum(end <= cut for end in ends)
            assert (
                journal.num_resumed == complete
                and journal.repaired_bytes == cut - ([0, *ends][complete])
            )
            run_task(task(), engine, None, journal)
        assert engine.num_calls == 24 - complete  # only what was missing was generated
        assert keyed((folder / "journal.jsonl").read_bytes()) == keyed(whole)


def _run_until_killed(folder: Path) -> None:
    def slow(request):
        pause(0.002)
        return answers(request)

    (folder / "started").touch()
    with Journal(folder, PARTS) as journal:
        run_task(task(n=40), FakeEngine(slow), None, journal)


def test_twenty_kills_at_random_moments(tmp_path):
    """A moment is a number of samples since the start, so that slow machines are killed in the
    same places; the last write may be torn or not."""
    rng = random.Random(5)
    survived: list[int] = []
    for _ in range(20):
        child = start_fork(_run_until_killed, tmp_path)
        wait_until((tmp_path / "started").exists, "start of the run")
        wanted = (survived[-1] if survived else 0) + rng.randint(1, 8)
        wait_until(
            lambda child=child, wanted=wanted: (
                child.exitcode is not None
                or (
                    (tmp_path / "journal.jsonl").exists()
                    and (tmp_path / "journal.jsonl").read_bytes().count(b"\n") >= wanted
                )
            ),
            f"{wanted} samples",
        )
        child.kill()
        child.join()
        (tmp_path / "started").unlink()
        path = tmp_path / "journal.jsonl"
        survived.append(len(keyed(path.read_bytes().rpartition(b"\n")[0])) if path.exists() else 0)
    assert survived == sorted(survived) and survived[0] < survived[-1]
    with Journal(tmp_path, PARTS) as journal:
        assert journal.num_resumed == survived[-1]
        run_task(task(n=40), FakeEngine(answers), None, journal)
    found = keyed((tmp_path / "journal.jsonl").read_bytes())
    with Journal(tmp_path / "reference", PARTS) as journal:
        run_task(task(n=40), FakeEngine(answers), None, journal)
    assert (
        found == keyed((tmp_path / "reference" / "journal.jsonl").read_bytes())
        and len(found) == 320
    )


def test_a_changed_verdict_is_told_and_its_sample_made_again(tmp_path, whole, capsys):
    with Journal(tmp_path, PARTS):
        pass
    assert b'"correct": true' in whole or b'"correct": null' in whole
    changed = whole.replace(b'"correct": null', b'"correct": true', 1)
    changed = (
        changed if changed != whole else whole.replace(b'"correct": true', b'"correct": null', 1)
    )
    (tmp_path / "journal.jsonl").write_bytes(changed)
    with Journal(tmp_path, PARTS) as journal:
        assert (
            "journal.jsonl: 1 lines have changed since they were written" in capsys.readouterr().err
        )
        assert journal.num_resumed == len(whole.splitlines()) - 1
        run_task(task(), FakeEngine(answers), None, journal)
    assert keyed((tmp_path / "journal.jsonl").read_bytes()) == keyed(whole)
    (aside,) = (tmp_path / "journal.jsonl.damaged").read_bytes().splitlines()
    assert aside in changed.splitlines() and aside not in whole.splitlines()


def test_other_settings_are_refused_and_named(tmp_path, whole):
    with Journal(tmp_path, PARTS) as journal:
        run_task(task(), FakeEngine(answers), None, journal)
    other = {"model": {"sha256": "m"}, "decoding": {"temperature": 0.6}}
    with pytest.raises(
        ConfigError,
        match=r"must not be mixed: decoding.temperature 1.0 → 0.6; fix: the old settings",
    ):
        Journal(tmp_path, other)
    line = rows(tmp_path)[0]
    with JsonlFile(tmp_path / "journal.jsonl") as file:
        file.append({**line, "fingerprint": "0" * 16})
    with pytest.raises(DataError, match=r"journal.jsonl:25: was made with other settings"):
        Journal(tmp_path, PARTS)
    (tmp_path / "journal.jsonl").write_bytes(whole + whole.splitlines(keepends=True)[3])
    with pytest.raises(DataError, match=r"journal.jsonl:25: sample \d of problem 'p\d' again"):
        Journal(tmp_path, PARTS)


def test_one_run_per_folder(tmp_path):
    with Journal(tmp_path, PARTS), pytest.raises(ConfigError, match="already runs in it"):
        Journal(tmp_path, PARTS)


def test_more_samples_are_added_to_those_that_are_there(tmp_path, whole):
    for n, new in ((2, 16), (3, 8), (3, 0)):
        engine = FakeEngine(answers)
        with Journal(tmp_path, PARTS) as journal:
            timing = run_task(task(n), engine, None, journal)
        assert engine.num_calls == timing.num_new == new
    assert keyed((tmp_path / "journal.jsonl").read_bytes()) == keyed(whole)


def test_lost_engine_keeps_what_was_finished_and_resumes(tmp_path, whole):
    with pytest.raises(EngineError) as error, Journal(tmp_path, PARTS) as journal:
        run_task(task(), FakeEngine(answers, faults=Faults(fail_at=(9, 14))), None, journal)
    # 14 calls, two of which failed
    assert error.value.exit_status == 3 and len(rows(tmp_path)) == 12
    with Journal(tmp_path, PARTS) as journal:
        timing = run_task(task(), FakeEngine(answers, faults=Faults(fail_at=(5,))), None, journal)
    assert (timing.num_new, timing.restarts) == (12, 1)
    assert keyed((tmp_path / "journal.jsonl").read_bytes()) == keyed(whole)


def test_grader_of_evaluation_is_the_grader_of_rl(tmp_path, pool):
    """One object: the loop hands its tasks to the pool of verifiers, as RL does, and verdicts are
    those of rewards.grade.grade."""
    assert verb.VerifierPool is VerifierPool
    with Journal(tmp_path, PARTS) as journal:
        run_task(task(graded=True), FakeEngine(answers), pool, journal)
        for record in journal.stored.values():
            gold = next(problem.gold for problem in PROBLEMS if problem.id == record.id)
            direct = grade(record.response, gold, "math")
            assert (record.correct, record.answer, record.reason) == (
                direct.correct,
                direct.answer,
                direct.reason.value,
            )
        scores = report.score(PROBLEMS, journal.records, 3, seed=0)
    correct = [record.correct for record in journal.records.values()]
    assert scores.mean("avg@3") == pytest.approx(sum(correct) / 24)
    assert scores.counts["no_answer"] == sum(
        record.reason == "no_answer" for record in journal.records.values()
    )


def test_failing_disk_stops_the_run(tmp_path, monkeypatch):
    with Journal(tmp_path, PARTS) as journal:
        original, calls = journal.append, []

        def append(record):
            calls.append(record)
            if len(calls) == 5:
                raise OSError(28, "No space left on device")
            original(record)

        monkeypatch.setattr(journal, "append", append)
        with pytest.raises(OSError, match="No space left"):
            run_task(task(), FakeEngine(answers), None, journal)
    assert len(rows(tmp_path)) == 4


def test_progress_line():
    said = []
    progress = Progress(0.0, said.append)
    progress.start(task(n=10), num_done=20)
    progress.add(100)
    assert said[0].startswith("toy  21/80 samples (26%)") and "tokens/s  ETA" in said[0]
    assert progress.line(30.0).endswith("3 tokens/s  ETA 29:30")  # 30 s a sample, 59 left


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    build_tokenizer(folder / "tokenizer")
    (folder / "data" / "aime24").mkdir(parents=True)
    lines = [
        json.dumps({"id": 60 + i, "problem": f"What is {i}+1?", "answer": str(i + 1)})
        for i in range(30)
    ]
    (folder / "data" / "aime24" / "test.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def command(toy: Path, out: Path, *more: str) -> list[str]:
    return [
        "eval",
        "--engine",
        "fake",
        "--tokenizer",
        str(toy / "tokenizer"),
        "--benchmark",
        "aime24",
        "--n",
        "4",
        "--data-dir",
        str(toy / "data"),
        "--out",
        str(out),
        *more,
    ]


def test_the_verb_killed_and_resumed_gives_the_same_files(toy, tmp_path, capsys):
    """A real process, SIGKILL before an append; the next start finishes; samples file and scores
    equal an undisturbed run's."""
    done = subprocess.run(
        [sys.executable, "-m", "megaladder", *command(toy, tmp_path / "a")],
        env={**os.environ, "MEGALADDER_FAULT": "before_append:20:SIGKILL"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(command(toy, tmp_path / "a")) == 0
    printed = capsys.readouterr().out
    assert "resumes: 19 samples are there" in printed
    for piece in (
        "aime24  avg@4 = ",
        "(30 problems × 4)",
        "easy ",
        "of 120 samples: 0 truncated, 0 aborted",
        "T 0.6 top-p 0.95",
        "max 32768 tokens, seed 42",
        "fake 1",
        "fingerprint ",
    ):
        assert piece in printed
    assert main(command(toy, tmp_path / "b")) == 0
    a, b = (tmp_path / side / "fake" / "aime24" for side in "ab")
    assert (a / "samples_aime24.jsonl").read_bytes() == (b / "samples_aime24.jsonl").read_bytes()
    first, second = (json.loads((side / "summary.json").read_text()) for side in (a, b))
    assert first["metrics"] == second["metrics"] and first["ci95"] == second["ci95"]
    capsys.readouterr()
    assert main(command(toy, tmp_path / "a")) == 0
    again = capsys.readouterr().out
    assert again.startswith("finished by an earlier start") and "aime24  avg@4 = " in again
    (a / "summary.json").write_text("{}")  # not what was written: scored again
    assert main(command(toy, tmp_path / "a")) == 0 and "finished" not in capsys.readouterr().out
    assert json.loads((a / "summary.json").read_text())["metrics"] == first["metrics"]
    assert main(command(toy, tmp_path / "a", "--temperature", "1.0")) == 2
    assert "decoding.temperature 0.6 → 1.0" in capsys.readouterr().err


def test_the_verbs_input_errors_exit_2(toy, tmp_path, capsys):
    assert main(["eval", "--benchmark", "aime24"]) == 2
    assert "fix: --model DIR" in capsys.readouterr().err
    assert main(command(toy, tmp_path, "--benchmark", "aime2024")) == 2
    assert "did you mean 'aime24'" in capsys.readouterr().err
    assert main(command(toy, tmp_path, "--benchmark", "gpqa_diamond")) == 2
    assert " --revision 633f5ee89ab8ad4522a9f850766b73f62147ffdd" in capsys.readouterr().err
    assert main(["eval", "--benchmark", "aime24", "--model", "no/such-model"]) == 2
    said = capsys.readouterr().err
    assert "no/such-model: no such folder" in said and "as a hub id it needs model.revision" in said
    assert main(["eval", "--benchmark", "list"]) == 0
    assert "HEx-PHI" in capsys.readouterr().out
