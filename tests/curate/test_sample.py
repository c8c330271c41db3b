"""`data sample`: what is kept, what the rows hold, and that a killed or failing run loses and
doubles nothing.

The grader here is the real one, called in this process; the engine is the fake one. With real vLLM:
tests marked slow.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megaladder.config.sections.shared import ModelSection
from megaladder.config.verbs.data import SampleConfig, TeacherRolloutSection, sample_config_class
from megaladder.curate.make.arithmetic import ArithmeticSpec, arithmetic_rows
from megaladder.curate.make.run import problem_row
from megaladder.curate.rows import RowWriter
from megaladder.curate.teacher.journal import TeacherJournal
from megaladder.curate.teacher.sample import (
    Counts,
    TeacherTask,
    draw,
    kept_samples,
    prepare,
    run_sample,
    training_row,
    write_difficulty,
    write_kept,
)
from megaladder.data.layouts.learn import ReadOptions
from megaladder.data.read_examples import ExampleReader
from megaladder.errors import ConfigError, DataError, EngineError
from megaladder.rewards.grade import grade
from megaladder.rollout.engine import SampleRequest, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine, Faults
from megaladder.types import Completion, FinishReason, Message, Problem

NUM_PROBLEMS, N = 12, 5


class InProcessGrader:
    """`grade_many` of the pool, without its processes."""

    cpu_s = 0.0

    def grade_many(self, tasks):
        return [grade(task.response, task.gold, task.kind) for task in tasks]


def problems() -> list[Problem]:
    rows = arithmetic_rows(ArithmeticSpec(), NUM_PROBLEMS, seed=1)
    return [Problem(row["id"], (Message("user", row["question"]),), row["gold"]) for row in rows]


def teacher(request: SampleRequest) -> Completion:
    """Right for even seeds and always for problem 0, never for problem 1; ids carry the number;
    every fifth answer is cut."""
    index = request.prompt_ids[0]
    right = index == 0 or (index != 1 and request.params.seed % 2 == 0)
    text = f"\\boxed{{{problems()[index].gold if right else 'none'}}}"
    reason = FinishReason.LENGTH if request.params.seed % 5 == 0 else FinishReason.STOP
    ids = (index, request.params.seed % 1000, 1)
    return Completion(ids, text, reason, (-0.5, -0.25, -0.0))


def task(n: int = N) -> TeacherTask:
    found = problems()
    return TeacherTask(
        found,
        [p.prompt[0].content for p in found],
        [(i,) for i in range(len(found))],
        SamplingParams(n=n, seed=3, logprobs=True),
    )


def finish(folder: Path, keep: str, n: int = N) -> tuple[list[dict], Counts]:
    """The kept rows of a journal; no tokenizer says that texts tokenise as sampled, so no log-probs
    are written."""

    class Other:
        eos_token_id = 1

        def encode(self, text, add_special_tokens):
            return [0]

    counts = Counts()
    with TeacherJournal(folder, {"test": 1}) as journal, RowWriter(folder / "out.jsonl") as writer:
        write_kept(
            SampleConfig(path="p", out="o.jsonl", keep=keep),
            task(n),
            journal,
            writer,
            (Other(), counts),
        )
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()], counts


def run_once(folder: Path, engine: FakeEngine, n: int = N) -> Counts:
    with TeacherJournal(folder, {"test": 1}) as journal:
        return draw(task(n), engine, InProcessGrader(), journal, progress_s=1e9)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_once(folder, FakeEngine(teacher))
    return folder


def test_every_sample_once_and_graded(finished: Path) -> None:
    rows, counts = finish(finished, "all")
    assert len(rows) == NUM_PROBLEMS * N
    assert [(row["problem_id"], row["sample"]) for row in rows] == [
        (problem.id, sample) for problem in problems() for sample in range(N)
    ]
    for row in rows:
        right = row["response"] == f"\\boxed{{{row['gold']}}}"
        assert (row["correct"], row["advantage"]) == (right, 1.0 if right else -1.0)
        assert (row["mean_logprob"], row["entropy_estimate"], row["num_tokens"]) == (-0.25, 0.25, 3)
    assert (
        counts.without_logprobs["cut at max_tokens"]
        == sum(row["finish_reason"] == "length" for row in rows)
        > 0
    )


def test_policies_on_the_same_samples(finished: Path) -> None:
    rows, _ = finish(finished, "all")
    correct = Counter(row["problem_id"] for row in rows if row["correct"])
    ids = [problem.id for problem in problems()]
    assert (correct[ids[0]], correct[ids[1]]) == (N, 0)
    assert [row["id"] for row in finish(finished, "correct")[0]] == [
        row["id"] for row in rows if row["correct"]
    ]
    one = finish(finished, "one_correct")[0]
    assert Counter(row["problem_id"] for row in one) == dict.fromkeys(correct, 1)
    assert all(row["correct"] for row in one)
    mixed = finish(finished, "mixed")[0]
    assert Counter(row["problem_id"] for row in mixed) == {
        name: N for name in ids if 0 < correct[name] < N
    }
    assert all(row["success_rate"] == correct[row["problem_id"]] / N for row in rows)


def test_one_correct_is_a_uniform_choice_by_seed() -> None:
    chosen = Counter(
        kept_samples("one_correct", {0: False, 1: True, 2: True, 3: True}, seed, "q")[0]
        for seed in range(600)
    )
    assert set(chosen) == {1, 2, 3}
    assert all(150 < count < 250 for count in chosen.values())
    assert kept_samples("one_correct", {0: False}, 1, "q") == []


def test_difficulty_is_the_measured_success_rate(finished: Path, tmp_path: Path) -> None:
    with TeacherJournal(finished, {"test": 1}) as journal:
        rates = write_difficulty(str(tmp_path / "d.jsonl"), task(), journal)
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [row["success_rate"] for row in rows] == rates
    assert (rates[0], rates[1]) == (1.0, 0.0)
    assert all(
        row["success_rate"] == row["correct"] / row["num_samples"] == row["correct"] / N
        for row in rows
    )


def _run_with_fault(folder: Path, fault: str) -> None:
    os.environ["MEGALADDER_FAULT"] = fault
    run_once(folder, FakeEngine(teacher))


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_kill_and_resume_loses_and_doubles_nothing(
    finished: Path, tmp_path: Path, cut: int
) -> None:
    """kill -9 before and after appends, the journal's tail torn by `cut` bytes; in the end the same
    rows as without any kill."""
    folder = tmp_path / "run"
    for fault in (
        "before_append:1:SIGKILL",
        "after_append:9:SIGKILL",
        "before_append:20:SIGKILL",
        "after_append:1:SIGKILL",
    ):
        assert run_in_fork(_run_with_fault, folder, fault) == -signal.SIGKILL
        journal = folder / "journal.jsonl"
        if cut and journal.stat().st_size > cut:
            os.truncate(journal, journal.stat().st_size - cut)
    counts = run_once(folder, FakeEngine(teacher))
    assert 0 < counts.new < NUM_PROBLEMS * N, "only what was missing"
    for keep in ("all", "one_correct"):
        assert finish(folder, keep)[0] == finish(finished, keep)[0]


def test_a_lost_engine_keeps_what_it_finished(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(EngineError):
        run_once(folder, FakeEngine(teacher, faults=Faults(die_from=23), max_restarts=1))
    assert len((folder / "journal.jsonl").read_text().splitlines()) == 22
    assert run_once(folder, FakeEngine(teacher)).new == NUM_PROBLEMS * N - 22
    assert finish(folder, "all")[0] == finish(finished, "all")[0]


def test_more_samples_later_only_add(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_once(folder, FakeEngine(teacher), n=2).new == 2 * NUM_PROBLEMS
    assert run_once(folder, FakeEngine(teacher), n=N).new == (N - 2) * NUM_PROBLEMS
    assert finish(folder, "all")[0] == finish(finished, "all")[0]
    assert len(finish(folder, "all", n=2)[0]) == 2 * NUM_PROBLEMS, (
        "a smaller n reads the first ones"
    )


def test_aborted_samples_are_left_for_the_next_start(tmp_path: Path) -> None:
    def moody(request: SampleRequest) -> Completion:
        answer = teacher(request)
        return Completion((), "", FinishReason.ABORT) if request.prompt_ids[0] == 4 else answer

    counts = run_once(tmp_path, FakeEngine(moody))
    assert (counts.aborted, counts.new) == (N, (NUM_PROBLEMS - 1) * N)
    assert run_once(tmp_path, FakeEngine(teacher)).new == N


def test_other_settings_are_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match="holds samples made with other settings"):
        TeacherJournal(finished, {"test": 2})


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    """One token a character; `\\boxed` answers of digits survive decode and encode."""
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = sorted(set("\\boxed{}0123456789 <>/thinkWhats?*+.\nusera=-"))
    vocab = {"<eos>": 0, "<s>": 1, **{character: i + 2 for i, character in enumerate(characters)}}
    core = Tokenizer(models.WordLevel({**vocab, "?": vocab["?"]}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    fast.save_pretrained(folder)
    return folder


def test_logprobs_are_written_where_the_text_gives_the_sampled_ids(tokenizer_folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tokenizer_folder))
    problem, text = problems()[0], "\\boxed{12}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    stored = {
        "sample": 0,
        "response": text,
        "response_ids": [*ids, 0],
        "logprobs": [-0.1] * (len(ids) + 1),
        "finish_reason": "stop",
        "correct": True,
        "answer": "12",
        "reason": "exact",
    }
    counts = Counts()
    row = training_row(problem, stored, tokenizer, counts)
    assert row["logprob"] == stored["logprobs"]
    assert not counts.without_logprobs
    assert "logprob" not in training_row(
        problem, {**stored, "response_ids": [5, *ids[1:], 0]}, tokenizer, counts
    )
    assert "logprob" not in training_row(
        problem, {**stored, "finish_reason": "length"}, tokenizer, counts
    )
    assert counts.without_logprobs == {"text tokenises differently": 1, "cut at max_tokens": 1}


def test_the_verb_with_the_fake_engine_and_its_rows_in_the_sft_reader(
    tokenizer_folder: Path, tmp_path: Path, capsys
) -> None:
    source = tmp_path / "problems.jsonl"
    source.write_text(
        "".join(
            json.dumps(problem_row(row)) + "\n" for row in arithmetic_rows(ArithmeticSpec(), 6, 1)
        )
    )
    config = SampleConfig(
        path=str(source),
        out=str(tmp_path / "out.jsonl"),
        keep="all",
        model=ModelSection(tokenizer=str(tokenizer_folder)),
        rollout=TeacherRolloutSection(engine="fake", n=3, max_tokens=40),
    )
    run_sample(config)
    reader = ExampleReader(tmp_path / "out.jsonl", ReadOptions())
    assert reader.layout.name == "scored"
    assert len(list(reader)) == 18
    first = (tmp_path / "out.jsonl").read_bytes()
    run_sample(config)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    shown = capsys.readouterr().out
    assert "resumes: 18 of 18 samples are there" in shown
    assert "18 samples of 6 problems (n 3), 0 new" in shown


@pytest.mark.parametrize(("duplicates", "left"), [("drop", 1), ("keep", 3)])
def test_repeated_problems_are_left_out_or_kept_and_counted(
    tokenizer_folder: Path, tmp_path: Path, capsys, duplicates: str, left: int
) -> None:
    """Sets for reinforcement learning are published with every row many times."""
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n' * 3)
    config = SampleConfig(
        path=str(tmp_path / "p.jsonl"),
        out=str(tmp_path / "out.jsonl"),
        duplicates=duplicates,
        model=ModelSection(tokenizer=str(tokenizer_folder)),
    )
    assert len({problem.id for problem in prepare(config)[0].problems}) == left
    what = "left out" if duplicates == "drop" else "kept"
    assert f"2 rows that repeat an earlier one: {what}" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"p.jsonl:2: expected a new row, found one that repeats"):
        prepare(config.model_copy(update={"duplicates": "error"}))


def test_a_kept_sample_trains_on_the_prompt_that_it_was_drawn_with(tmp_path: Path) -> None:
    tools, arguments = ({"name": "adder_tool"},), {"enable_thinking": False}
    prompt = (Message("user", "1+1?"),)
    problem = Problem("p", prompt, "2", tools=tools, template_kwargs=arguments)
    stored = {"sample": 0, "response": "2", "response_ids": [1], "logprobs": [], "correct": True}
    stored |= {"finish_reason": "stop", "reason": "exact"}
    row = training_row(problem, stored, None, Counts())
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = ExampleReader(tmp_path / "rows.jsonl", ReadOptions())
    assert example.tools == tools and example.template_kwargs == arguments
    assert example.messages[:-1] == prompt


def test_short_flags() -> None:
    args = ["p.jsonl", "--model", "M", "--n", "8", "--max-tokens=64", "--out", "o.jsonl"]
    assert sample_config_class(args) is SampleConfig
    assert args == [
        "p.jsonl",
        "--model.path",
        "M",
        "--rollout.n",
        "8",
        "--rollout.max-tokens=64",
        "--out",
        "o.jsonl",
    ]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
def test_real_vllm_killed_and_resumed(tmp_path: Path) -> None:
    """kill -9 after 20 of 48 samples of a real engine; the resumed run has every sample once, the
    same ones as an unbroken run (fp32)."""
    from tiny_models import build_tiny_model

    model = build_tiny_model(tmp_path / "model")
    source = tmp_path / "problems.jsonl"
    source.write_text(
        "".join(
            json.dumps(problem_row(row)) + "\n" for row in arithmetic_rows(ArithmeticSpec(), 12, 1)
        )
    )

    def sample(name: str, fault: str = "") -> int:
        command = [
            sys.executable,
            "-m",
            "megaladder",
            "data",
            "sample",
            str(source),
            "--model",
            str(model),
            "--n",
            "4",
            "--keep",
            "all",
            "--max-tokens",
            "16",
            "--rollout.dtype",
            "float32",
            "--rollout.cpu-kv-cache-gib",
            "0.25",
            "--rollout.max-model-len",
            "256",
            "--out",
            str(tmp_path / name),
        ]
        environment = {**os.environ, "MEGALADDER_FAULT": fault}
        return subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            timeout=240,
            check=False,
        ).returncode

    assert sample("whole.jsonl") == 0
    assert sample("killed.jsonl", "after_append:20:SIGKILL") == -signal.SIGKILL
    assert len((tmp_path / "killed.jsonl.samples" / "journal.jsonl").read_text().splitlines()) == 20
    assert sample("killed.jsonl") == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len((tmp_path / "whole.jsonl").read_text().splitlines()) == 48
