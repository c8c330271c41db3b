"""What `flipped` flips: folders that real runs and verbs wrote, small."""

from __future__ import annotations

import json
from pathlib import Path


def make_all(root: Path) -> dict[str, str]:
    """Fills `root`; journal folder → the settings it was made with, as JSON."""
    _runs(root)
    _teacher(root / "teacher.samples")
    _study(root / "study")
    return {
        str(path.parent): json.dumps(json.loads(path.read_text())["parts"])
        for path in root.rglob("evaluations/**/fingerprint.json")
    }


def _runs(root: Path) -> None:
    """A GRPO run with an evaluation, and an SFT run with a token cache and held-out losses."""
    from grpo_runs import GrpoRuns

    runs = GrpoRuns(root / "inputs")
    bench = root / "inputs" / "bench" / "arithmetic"
    bench.mkdir(parents=True)
    rows = [
        {"id": f"t{i}", "question": f"What is {i} + {i} + 1?", "answer": str(2 * i + 1)}
        for i in range(8)
    ]
    (bench / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--evaluate.benchmarks",
        "arithmetic",
        "--evaluate.every",
        "2",
        "--evaluate.limit",
        "4",
    ]
    flags += ["--evaluate.n", "2", "--evaluate.max-tokens", "40"]
    flags += ["--evaluate.data-dir", str(bench.parent), "--checkpoint.export-hf", "true"]
    flags += ["--train.max-steps", "2"]
    done = runs.run("grpo", *flags)
    assert done.status == 0, done.error[-2000:]
    (root / "inputs" / "grpo").rename(root / "grpo")
    _sft(runs, root)


def _sft(runs: object, root: Path) -> None:
    from clean_fork import run_in_fork

    data = root / "inputs" / "sft.jsonl"
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"\\boxed{{{i + 1}}}"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {
        "run-dir": root / "sft",
        "model.path": root / "inputs" / "model",
        "data.path": data,
        "data.cache-dir": root / "cache",
        "data.holdout": 2,
        "data.seq-length": 64,
        "train.global-batch-size": 2,
        "train.max-steps": 2,
        "checkpoint.every": 1,
        "checkpoint.export-hf": "false",
    }
    flags = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    said = root / "inputs" / "sft.stderr"
    assert run_in_fork(_run_sft, flags, stdout=said, stderr=said) == 0, said.read_text()[-2000:]


def _run_sft(flags: list[str]) -> int:
    from megaladder.config.resolve import resolve
    from megaladder.config.sft import SftConfig
    from megaladder.train.sft import run_sft

    return run_sft(resolve(SftConfig, flags, prog="test"))


def _teacher(folder: Path) -> None:
    from megaladder.curate.teacher.journal import TeacherJournal, TeacherSample
    from megaladder.types import Completion, FinishReason, Graded, GradeReason

    with TeacherJournal(folder, {"a": 1}) as journal:
        for sample in range(2):
            completion = Completion((1, 2), "5", FinishReason.STOP, (-0.5, -0.25), 0)
            graded = Graded(True, "5", GradeReason.EXACT)
            journal.append(TeacherSample("q", sample, completion, graded))


def _study(out: Path) -> None:
    from megaladder.study.plan import Job, Plan
    from megaladder.study.record import Cost, Records

    job = Job("stage", "label", out / "stage" / "label", (("data",),), (), ())
    job.folder.mkdir(parents=True)
    (job.folder / "rows.jsonl").write_text('{"id": "a"}\n')
    records = Records(Plan(out, out, (("stage", (job,)),)))
    records.notes(job).mkdir(parents=True)
    records.write(job, Cost(1.0, 2.0))
