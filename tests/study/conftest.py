"""A study of cheap stages: generated rows, stored answers, no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megaladder.config.verbs.analysis import StudyConfig
from megaladder.study.verb import run_study

STUDY = """\
title: A small study
source: nobody, arXiv 0000.00000
scales:
  toy:
    about: generated rows and stored answers
    report: [evaluate]
    stages:
      - name: data
        run:
          - data make arithmetic --rows 30 --out ${here}/train.jsonl
          - data make arithmetic --rows 20 --form problem --out ${here}/problems.jsonl
      - name: more
        sweep: {grid: {seed: [1, 2]}}
        run:
          - data select ${data}/train.jsonl --recipe ${study}/some.yaml --set n=${seed} --out ${here}/rows.jsonl
      - name: evaluate
        sweep: {cases: [{label: a, workers: 1}, {label: b, workers: 2}]}
        run:
          - grade --input ${study}/answers.jsonl --output ${here}/sums/samples_sums.jsonl --workers ${workers}
findings:
  - name: equal
    claim: The same answers are equally good.
    published: 0 points
    reproduced: {between: [-20, 20]}        # 20 problems without a difference: [-16.8, 16.8]
    opposite: {above: 20}
    measured:
      toy: {kind: difference, of: evaluate/a/sums, minus: evaluate/b/sums}
"""
RECIPE = "name: some\nseed: 1\nparams: {n: 1}\nstages:\n  - sample: {n: '{n}'}\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Its folder."""
    return write_study(tmp_path / "small")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, `small`, and what it made when nothing disturbed it, `out`."""
    folder = tmp_path_factory.mktemp("whole")
    study = write_study(folder / "small")
    run_study(StudyConfig(name=str(study), out=str(folder / "out"), jobs=2))
    return folder


def write_study(folder: Path) -> Path:
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY)
    (folder / "some.yaml").write_text(RECIPE)
    answers = [{"id": f"p{i}", "response": f"{i % 2}", "gold": "1"} for i in range(20)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return folder
