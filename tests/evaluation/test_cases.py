"""Several evaluations by one engine: the same files as one by one, and one engine for models of one
shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tokenizer

from megaladder.cli import main
from megaladder.evaluation import verb
from megaladder.evaluation.benchmarks import turns

DRAWN = ("samples_aime24.jsonl", "fingerprint.json")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems, models a and b of one shape, and c of another; the fake engine reads no weights."""
    folder = tmp_path_factory.mktemp("toy")
    build_tokenizer(folder / "a")
    (folder / "data" / "aime24").mkdir(parents=True)
    rows = [{"id": 60 + i, "problem": f"{i}+1?", "answer": str(i + 1)} for i in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data" / "aime24" / "test.jsonl").write_text(text)
    for name, layers in (("b", 1), ("c", 2), ("a", 1)):
        if name != "a":
            shutil.copytree(folder / "a", folder / name)
        config = {"num_hidden_layers": layers, "_name_or_path": name}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").write_bytes(name.encode())
    return folder


def command(toy: Path, out: Path, *more: str) -> list[str]:
    words = ["eval", "--engine", "fake", "--benchmark", "aime24", "--n", "2", "--out", str(out)]
    return [*words, "--data-dir", str(toy / "data"), "--grade-workers", "1", *more]


def three_cases(toy: Path) -> str:
    cases = {
        "a": {"model.path": str(toy / "a")},
        "c": {"model.path": str(toy / "c")},
        "warm": {"model": {"path": str(toy / "b")}, "rollout.temperature": 1.0},
        "more": {"model.path": str(toy / "a"), "rollout.n": 3},
    }
    return json.dumps(cases)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines that were started."""
    started: list[Any] = []

    def make_engine(*asked: Any) -> Any:
        started.append(verb.make_engine(*asked))
        return started[-1]

    monkeypatch.setattr(turns, "make_engine", make_engine)
    return started


def test_cases_leave_what_single_evaluations_leave(
    toy: Path, tmp_path: Path, engines: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    asked = command(toy, together, "--cases", three_cases(toy), "--json", str(tmp_path / "j.json"))
    assert main(asked) == 0
    singly = {"a": ("a",), "c": ("c",), "warm": ("b", "--temperature", "1.0"), "more": ("a",)}
    for name, (model, *more) in singly.items():
        words = ["--name", name, "--model", str(toy / model), *more]
        assert main(command(toy, alone, *words, *(["--n", "3"] if name == "more" else []))) == 0
        for file in DRAWN:
            ours, theirs = (out / name / "aime24" / file for out in (together, alone))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)
    found = json.loads((tmp_path / "j.json").read_text())
    assert {name: one["aime24"]["n"] for name, one in found.items()} == {
        "a": 2,
        "c": 2,
        "warm": 2,
        "more": 3,
    }
    # a, then c of another shape, then b and a of the first
    assert [engine.loaded for engine in engines] == [[], [], [str(toy / "a")]]
    capsys.readouterr()
    assert main(asked) == 0
    assert "finished by an earlier start" in capsys.readouterr().out and len(engines) == 3


def test_what_is_there_is_neither_drawn_nor_loaded_again(
    toy: Path, tmp_path: Path, engines: list[Any]
) -> None:
    cases = {name: {"model.path": str(toy / name)} for name in ("a", "b")}
    asked = command(toy, tmp_path / "out", "--cases", json.dumps(cases))
    assert main(asked) == 0
    summary = tmp_path / "out" / "b" / "summary.json"
    summary.unlink()
    assert main(asked) == 0 and summary.is_file()
    assert [(engine.num_calls, len(engine.loaded)) for engine in engines] == [(16, 1), (0, 0)]


@pytest.mark.parametrize(
    ("cases", "told"),
    [
        ('{a: {model.path: "A", rollout.nn: 2}}', "cases.a: unknown key 'rollout.nn'"),
        ('{a: {model.path: "A", out: o}}', "cases.a.out is one for all; fix: leave it out"),
        ("{a: {rollout.n: 0}}", "cases.a: rollout.n: Input should be greater than"),
        ("{a: {rollout.engine: vllm}}", "cases.a: model.path is empty"),
        ('{a: {model.path: "A", budget.wait: W}}', "cases.a: budget.wait W is read with"),
    ],
)
def test_a_case_is_checked_as_an_evaluation_of_its_own(
    cases: str, told: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [word for word in command(toy, tmp_path, "--cases", cases) if word != "fake"]
    asked.remove("--engine")
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert told in said and "fix:" in said
