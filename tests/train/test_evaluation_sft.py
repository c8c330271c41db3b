"""Benchmarks between the steps of SFT: one engine for the run, which is given the weights of each
evaluated step; the training does not notice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from tiny_models import build_tiny_model
from train.evaluation_share import compared

from megaladder.rollout.fake_engine import FakeEngine

SMALL = (
    "--data.seq-length 128 --train.global-batch-size 8 --train.max-steps 4 --optim.lr 1e-2"
    " --checkpoint.every 4 --checkpoint.keep-steps 2 --checkpoint.export-hf true"
)
ASKED = (
    "--evaluate.benchmarks arithmetic --evaluate.every 2 --evaluate.limit 6 --evaluate.n 2"
    " --evaluate.max-tokens 40 --evaluate.grade-workers 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {"question": f"What is {a} + {b}?", "answer": f"The answer is \\boxed{{{a + b}}}."}
        for a in range(8)
        for b in range(8)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench" / "arithmetic").mkdir(parents=True)
    test = [
        {"id": f"t{i}", "question": f"What is {i} + 9?", "answer": str(i + 9)} for i in range(8)
    ]
    (folder / "bench" / "arithmetic" / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in test)
    )
    build_tiny_model(folder / "model", hidden=32)
    return folder


def sft(folder: Path, name: str, *more: str, fault: str | None = None) -> int:
    flags = ["--run-dir", str(folder / name), "--model.path", str(folder / "model")]
    flags += ["--data.path", str(folder / "data.jsonl"), *SMALL.split(), *more]

    def start() -> int:
        from megaladder.cli import main

        if fault:
            os.environ["MEGALADDER_FAULT"] = fault
        return main(["sft", *flags])

    return run_in_fork(start, stdout=folder / f"{name}.out", stderr=folder / f"{name}.err")


def asked(folder: Path, *more: str) -> list[str]:
    return [*ASKED.split(), "--evaluate.data-dir", str(folder / "bench"), *more]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(folder) -> Path:
    assert sft(folder, "plain") == 0
    return folder / "plain"


def test_an_engine_beside_the_training_scores_it_and_changes_nothing(folder, plain) -> None:
    fake = asked(folder, "--evaluate.engine", "fake")
    assert sft(folder, "evaluated", *fake, fault="before_append:17:SIGKILL") == -9
    assert sft(folder, "evaluated", *fake) == 0, (folder / "evaluated.err").read_text()
    assert compared(folder / "evaluated", plain) == []
    scores = rows(folder / "evaluated" / "evaluations.jsonl")
    assert [(row["step"], row["benchmark"]) for row in scores] == [
        (step, "arithmetic") for step in (0, 2, 4)
    ]
    # the answers are the fake engine's, whatever the weights: the first of equal scores is best
    assert json.loads((folder / "evaluated" / "best.json").read_text())["step"] == 0
    assert json.loads((folder / "evaluated" / "last_word.json").read_text())["best_step"] == 0


def test_a_number_that_an_evaluation_changed_would_be_named(folder, plain) -> None:
    other = [row | {"loss": row["loss"] + 1e-6 * (row["step"] == 2)} for row in
             rows(plain / "metrics.jsonl")[:3]]  # fmt: skip
    (folder / "other").mkdir()
    unsealed = ({key: row[key] for key in row if key != "sha256"} for row in other)
    (folder / "other" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in unsealed))
    assert [line.split(":")[0] for line in compared(folder / "other", plain)] == [
        *("3 and 4 steps", "step 2", "no weights of step 3"),
    ]  # fmt: skip


def test_eval_takes_the_run_folder_and_streams_its_steps_into_one_engine(
    folder, plain, monkeypatch, capsys
) -> None:
    from megaladder.cli import main
    from megaladder.evaluation import verb

    engines = []

    class Recording(FakeEngine):
        """Notes the digest of the weights that it is given."""

        def __init__(self, **given) -> None:
            super().__init__(**given)
            self.held: list[str] = []
            engines.append(self)

        def _apply(self, weights, replica=None) -> None:
            file = Path(weights.path) / "model.safetensors"
            self.held.append(hashlib.sha256(file.read_bytes()).hexdigest())

    monkeypatch.setattr(verb, "FakeEngine", Recording)
    flags = ["eval", str(plain), "--benchmark", "arithmetic", "--engine", "fake", "--limit", "6"]
    flags += ["--n", "2", "--data-dir", str(folder / "bench"), "--grade-workers", "1"]
    assert main(flags) == 0
    (engine,) = engines
    # the engine starts with the first step, and is given the second
    assert len(engine.held) == 1 and engine.num_calls == 24
    scored = rows(plain / "eval" / "evaluations.jsonl")
    assert [(row["step"], row["benchmark"], row["n"]) for row in scored] == [
        (step, "arithmetic", 2) for step in (2, 4)
    ]
    summary = json.loads((plain / "eval" / "step_4" / "summary.json").read_text())
    assert (summary["run_dir"], summary["line"], summary["step"]) == (str(plain), "line_1", 4)
    assert main(flags) == 0 and len(engines) == 1
    assert "finished by an earlier start" in capsys.readouterr().out
    # a sample of the second step is gone: it alone is drawn, by that step's weights
    journal = plain / "eval" / "step_4" / "arithmetic" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    (plain / "eval" / "step_4" / "summary.json").unlink()
    assert main(flags) == 0
    assert engines[1].held == engine.held and engines[1].num_calls == 1
    assert main([*flags, "--steps", "3"]) == 2
    assert "step 3 is not there; kept: 2, 4; fix:" in capsys.readouterr().err


def test_check_says_what_will_be_asked_and_refuses_what_cannot_be(folder, capsys) -> None:
    from megaladder.cli import main

    flags = ["--model.path", str(folder / "model"), "--data.path", str(folder / "data.jsonl")]
    flags += ["--run-dir", str(folder / "checked"), *SMALL.split(), *asked(folder)]
    assert main(["check", *flags]) == 0
    said = capsys.readouterr().out
    assert "evaluated every 2 steps, before the first and after the last step" in said
    assert "arithmetic: 6 of 8 problems × 2, at most 40 tokens, temperature 1" in said
    assert main(["check", *flags, "--evaluate.benchmarks", "arithmetik"]) == 2
    assert "did you mean 'arithmetic'" in capsys.readouterr().err
    assert main(["check", *flags, "--evaluate.benchmarks", "hexphi"]) == 2
    assert "needs a judge" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_engine_answers_by_the_weights_of_the_step(folder) -> None:
    """What `eval` draws from the export of the last step afterwards is what was drawn inside the
    training, token by token; and the step-0 answers are those of the model that it began with."""
    from megaladder.cli import main

    more = ["--checkpoint.export-hf", "true", "--evaluate.temperature", "1.0"]
    assert sft(folder, "real", *asked(folder, *more)) == 0, (folder / "real.err").read_text()
    exported = folder / "real" / "hf" / "step_4"
    for step, model in ((0, folder / "model"), (4, exported)):
        flags = ["--model", str(model), "--benchmark", "arithmetic", "--limit", "6", "--n", "2"]
        flags += ["--max-tokens", "40", "--temperature", "1.0", "--rollout.dtype", "float32"]
        flags += ["--data-dir", str(folder / "bench"), "--out", str(folder / "eval"), "--name"]
        assert main(["eval", *flags, f"step_{step}"]) == 0
        drawn = {
            (row["id"], row["sample"]): row["response_ids"]
            for row in rows(folder / "eval" / f"step_{step}" / "arithmetic" / "journal.jsonl")
        }
        inside = folder / "real" / "evaluations" / f"step_{step}" / "arithmetic"
        assert drawn == {
            (row["id"], row["sample"]): row["response_ids"]
            for row in rows(inside / "journal.jsonl")
        }
