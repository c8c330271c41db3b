"""Readers of what our own verbs left for others to read: answers and judgements kept, summaries,
samples to compare with, measurements of studies, the page of a report."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chaos import fuzz_inputs as wrong
from chaos.fuzz_folders import _ROUND, _SAMPLES, _line, _store
from chaos.fuzz_foreign import _CURVES, _SCORES, _SETTINGS
from chaos.fuzz_readers import BYTES, JSON, LINES, Case


def _sealed(*rows: dict[str, Any]) -> bytes:
    from megaladder.run_dir import sealed_line

    return b"".join(map(sealed_line, rows))


def by_sealed(seed: bytes, rng: Any) -> bytes:
    """Rows of which one says something else, under a digest that fits."""
    rows = [json.loads(line) for line in seed.splitlines()]
    for row in rows:
        row.pop("sha256")
    place = rng.randrange(len(rows))
    rows[place] = wrong.changed_value(rows[place], rng)
    try:
        return _sealed(*(row if isinstance(row, dict) else {"a": row} for row in rows))
    except (TypeError, ValueError):  # no JSON of ours says that
        return wrong.by_lines(seed, rng)


SEALED = (wrong.raw, by_sealed)


# --- kept answers


def _read_judgements(path: Path) -> object:
    from evaluation.test_judge import PROBLEMS, Counting, records

    from megaladder.evaluation import judge

    return judge.judge_records(PROBLEMS, records(1), Counting(), path.parent)


def _judgements() -> tuple[bytes, ...]:
    from evaluation.test_judge import PROBLEMS, Counting, records

    from megaladder.evaluation import judge

    with tempfile.TemporaryDirectory() as folder:
        judge.judge_records(PROBLEMS, records(1), Counting(), folder)
        return ((Path(folder) / "judgements.jsonl").read_bytes(),)


def _read_teacher(path: Path) -> object:
    from megaladder.curate.teacher.journal import TeacherJournal

    raw = path.read_bytes()
    path.unlink()
    TeacherJournal(path.parent, {"a": 1}).close()  # its folder says what it was made with
    path.write_bytes(raw)
    with TeacherJournal(path.parent, {"a": 1}) as journal:
        return dict(journal.records)


def _teacher() -> tuple[bytes, ...]:
    from chaos.flipped_folders import _teacher as write

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a")
        return ((Path(folder) / "a" / "journal.jsonl").read_bytes(),)


def _read_shares(path: Path) -> object:
    """Samples of a model that another one is compared with while it is sampled."""
    from megaladder.evaluation.benchmarks.stopping import stored_shares

    task = SimpleNamespace(benchmark="exam", problems=[SimpleNamespace(id="q")])
    return stored_shares(path.parent.parent, task)  # type: ignore[arg-type]


def _read_sampled(path: Path) -> object:
    from megaladder.ledger.sampled import read_sampled_ledger

    return read_sampled_ledger(path)


def _read_summary(path: Path) -> object:
    """As a model card shows it."""
    from megaladder.serving.card import _scores

    return _scores([str(path.parent)])


# --- rows of a run


def _read_followed(path: Path) -> object:
    """A run whose rows callbacks are told."""
    from megaladder.events.follower import Follower

    for name in ("metrics.jsonl", "held_out.jsonl", "evaluations.jsonl"):
        (path.parent / name).unlink(missing_ok=True)
    (path.parent / "config.yaml").touch()
    said: list[str] = []
    follower = Follower(path.parent, {"a": SimpleNamespace()}, said.append)
    for name in ("metrics.jsonl", "held_out.jsonl", "evaluations.jsonl"):
        shutil.copyfile(path, path.parent / name)
    follower.look()
    return said


def _read_history(path: Path) -> object:
    """Rows of evaluations, as a resumed run and `ml.Run` read them."""
    from megaladder.events.run import Run

    return Run(path.parent).scores


def _read_compute(path: Path) -> object:
    """What a run cost."""
    from megaladder.analysis.studies.compute import read_compute
    from megaladder.analysis.tables import Warnings

    return read_compute(path.parent, Warnings(said=False))


def _read_held_out(path: Path) -> object:
    from megaladder.analysis.runs.folder import read_held_out
    from megaladder.analysis.tables import Warnings

    return read_held_out(path.parent, Warnings(said=False))


def _read_array(path: Path) -> object:
    """An array of a token cache; each of its files in turn would be the same reader."""
    from megaladder.data.store import SampleStore

    for file in _store().iterdir():
        if file.name != path.name:
            shutil.copyfile(file, path.parent / file.name)
    store = SampleStore.open(path.parent)
    return [store[index].id for index in range(len(store))]


def _array(name: str) -> tuple[bytes, ...]:
    return ((_store() / name).read_bytes(),)


# --- studies


def _evaluations(path: Path) -> Any:
    from megaladder.study.scores import Evaluations

    return Evaluations(path.parent.parent.parent)


def _read_shift_values(path: Path) -> object:
    found = _evaluations(path)
    name = str(path.relative_to(path.parent.parent.parent))
    return found.shift_values(name, "kl"), found.shift_values(name, "rank")


def _read_last_loss(path: Path) -> object:
    return _evaluations(path).last_held_out(str(path.parent.relative_to(path.parents[2])))


def _read_thinking(path: Path) -> object:
    return _evaluations(path).thinking_tokens("stage/label/exam")


def _read_only(path: Path) -> object:
    """The file that says which problems a finding is about."""
    from megaladder.study.finding import Only

    only = Only(file=str(path.relative_to(path.parents[2])), column="tier", value="easy")
    return _evaluations(path)._ids(only)


# --- the page


def _read_page(path: Path) -> object:
    """A report over one file, or over the folder that it lies in."""
    from megaladder.analysis.report.collect import collect
    from megaladder.analysis.report.contents import build_sections
    from megaladder.analysis.report.render import Heading, page_of, parts_of
    from megaladder.analysis.report.verb import csv_file
    from megaladder.config.verbs.analysis import ReportConfig

    place = str(path if path.suffix == ".json" else path.parent)
    sections = build_sections(collect((place,)), ReportConfig(run_dirs=(place,)))
    csv_file(row for section in sections for row in section.csv())
    return page_of(parts_of(sections), Heading("a", "b", "c")).encode("utf-8", "replace")


@cache
def _analyses() -> tuple[bytes, ...]:
    """What the analyze verbs write about small tables."""
    from megaladder.cli import main

    folder = Path(tempfile.mkdtemp(prefix="fuzz-analyses-"))
    runs = b"run,loss,target\n" + b"".join(b"r%d,%d.5,%d\n" % (i, i, 9 - i) for i in range(8))
    tables = {
        "trajectory": (_CURVES, []),
        "scaling": (_SETTINGS, []),
        "transfer": (_SCORES, ["--base", "base"]),
        "predict": (runs, ["--target", "target", "--metrics", "loss"]),
    }
    for name, (table, more) in tables.items():
        (folder / f"{name}.csv").write_bytes(table)
        words = ["--table", str(folder / f"{name}.csv"), "--json", str(folder / f"{name}.json")]
        assert main(["analyze", name, *words, *more]) == 0, name
    found = [path.read_bytes() for path in sorted(folder.glob("*.json"))]
    return (*found, json.dumps(_STUDY).encode())


_FINDING = {
    "name": "a",
    "claim": "b",
    "published": "c",
    "statistic": "d",
    "value": 1.5,
    "unit": "points",
    "ci95": [1.0, 2.0],
    "n": 20,
    "over": "problems",
    "verdict": "reproduced",
    "reproduced_if": "> 0",
    "opposite_if": "< 0",
}
_STUDY = {
    "study": "a",
    "title": "b",
    "source": "c",
    "scale": "tiny",
    "changed_rules": [],
    "findings": [_FINDING],
}
_STAGES = {
    "name": "a",
    "seed": 1,
    "rows_read": 3,
    "rows": 2,
    "ids_sha256": "a",
    "stages": [{"stage": "b", "rows_in": 3, "rows_out": 2, "published": 2, "dropped": {"c": 1}}],
}
_DIFFICULTY = _line({"id": "q", "success_rate": 0.5}) + _line({"id": "r", "success_rate": 1.0})
_SUMMARY = {
    "model": "m",
    "benchmarks": {
        "exam": {
            "headline": "avg@2",
            "metrics": {"avg@2": 0.5},
            "ci95": {"avg@2": [0.25, 0.75]},
            "num_problems": 2,
            "n": 2,
            "protocol": {"decoding": {"temperature": 1.0}},
        }
    },
}
_LEDGER = {"generation": {"tokens": 10, "prompt_tokens": 4, "cpu_s": 1.0}}
_SCORE_ROW = {
    "step": 2,
    "benchmark": "exam",
    "metric": "avg@2",
    "score": 0.5,
    "low": 0.1,
    "high": 0.9,
    "num_problems": 2,
    "n": 2,
    "loss": 0.5,
}
_TOKENS = _line({"tokens": [{"logprob_tuned": -0.5, "logprob_base": -1.0, "rank": 1}]})
_THINKING = json.loads(_SAMPLES) | {"num_thinking_tokens": [3, 4]}
_STEPS = b"".join(
    _line({"step": step, "loss": 1 / step, "tokens": 10, "step_s": 0.5, "work": {}})
    for step in (1, 2, 3)
)
_HELD_OUT = _line({"step": 1, "held_out_loss": 0.5}) + _line({"step": 2, "held_out_loss": 0.25})


def _kept_cases() -> dict[str, Case]:
    return {
        "judgements": Case("judgements.jsonl", _judgements, _read_judgements, SEALED),
        "teacher's journal": Case("teacher/journal.jsonl", _teacher, _read_teacher, SEALED),
        "samples to compare with": Case(
            "base/exam/samples_exam.jsonl", (_SAMPLES,), _read_shares, LINES
        ),
        "ledger of samples": Case(
            "out.ledger.json", (json.dumps(_LEDGER).encode(),), _read_sampled, JSON
        ),
        "summary of a card": Case(
            "eval/summary.json", (json.dumps(_SUMMARY).encode(),), _read_summary, JSON
        ),
    }


def _run_cases() -> dict[str, Case]:
    return {
        "followed rows": Case("rows.jsonl", (_line(_SCORE_ROW) * 2,), _read_followed, LINES),
        "scores while training": Case(
            "evaluations.jsonl", (_line(_SCORE_ROW) * 2,), _read_history, LINES
        ),
        "cost of a run": Case("metrics.jsonl", (_STEPS,), _read_compute, LINES),
        "held-out losses": Case("held_out.jsonl", (_HELD_OUT,), _read_held_out, LINES),
        **{
            f"token cache's {file.name}": Case(
                f"data-{file.stem}/{file.name}",
                lambda name=file.name: _array(name),  # type: ignore[misc]
                _read_array,
                BYTES,
            )
            for file in sorted(_store().glob("*.bin"))
        },
    }


def _study_cases() -> dict[str, Case]:
    only = _line({"id": "q", "tier": "easy"}) + _line({"id": "r", "tier": "hard"})
    return {
        "shift of a study": Case("out/stage/tokens.jsonl", (_TOKENS,), _read_shift_values, LINES),
        "loss of a study": Case("out/label/held_out.jsonl", (_HELD_OUT,), _read_last_loss, LINES),
        "thinking of a study": Case(
            "stage/label/samples_exam.jsonl", (_line(_THINKING),), _read_thinking, LINES
        ),
        "problems of a finding": Case("stage/label/only.jsonl", (only,), _read_only, LINES),
    }


def _page_cases() -> dict[str, Case]:
    stages = (json.dumps(_STAGES).encode(),)
    return {
        "page of an analysis": Case("page/found.json", _analyses, _read_page, JSON),
        "page of a selection": Case("page-a/a.stages.json", stages, _read_page_of_folder, JSON),
        "page of difficulties": Case(
            "page-b/a.difficulty.jsonl", (_DIFFICULTY,), _read_page, LINES
        ),
        "page of a run": Case("page-c/metrics.jsonl", (_STEPS,), _read_page, LINES),
        "page of rollouts": Case("page-d/rollouts/step_1.jsonl", (_ROUND,), _read_run_page, LINES),
        "page of samples": Case("page-e/exam/samples_exam.jsonl", (_SAMPLES,), _read_page, LINES),
    }


def _read_page_of_folder(path: Path) -> object:
    return _read_page(path.parent / "any")


def _read_run_page(path: Path) -> object:
    run = path.parent.parent
    (run / "metrics.jsonl").write_bytes(_STEPS)
    (run / "config.yaml").write_text("grpo: {}\n")
    return _read_page(run / "any")


def cache_cases() -> dict[str, Case]:
    """Every reader of what verbs left, by name."""
    return {**_kept_cases(), **_run_cases(), **_study_cases(), **_page_cases()}
