"""Words for whoever waits: lines in a pipe, a bar on a terminal, nothing with --quiet; results stay
on standard output."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from megaladder.cli import VERBS, dispatch, main
from megaladder.cli.table import Verb
from megaladder.console import voice as console
from megaladder.console.voice import FIRST_S, LATER_AFTER_S, LATER_S, LOOK_S, THEN_S, Task, Voice
from megaladder.log import RunLog, StepMetrics
from megaladder.run_dir import RunDir


def test_words_say_how_far_how_long_and_how_much_is_left() -> None:
    task = Task("tokenising d.jsonl", 1000, began=100.0, since=100.0)
    assert task.words(104.0) == "tokenising d.jsonl: 0 of 1,000 rows (0%), for 0:04"
    task.add(250)
    assert task.words(120.0) == (
        "tokenising d.jsonl: 250 of 1,000 rows (25%), for 0:20, about 1:00 left"
    )
    # what a resumed run had before does not count as speed
    resumed = Task("toy", 1000, "samples", done=600.0, first=500.0, began=100.0, since=100.0)
    assert resumed.left_s(120.0) == pytest.approx(80.0)
    assert Task("loading", since=0.0).words(3725.0) == "loading: for 1:02:05"


@pytest.fixture
def voice(monkeypatch) -> Voice:
    """One whose thread does not look by itself, so that the test's clock counts."""
    monkeypatch.delenv(console.QUIET, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(Voice, "_run", lambda _self, _ended: None)
    return Voice()


def lines_told(voice: Voice, task: Task, seconds: float, capsys) -> list[float]:
    """Seconds after the start at which a line was printed."""
    told, at = [], task.since
    while at <= task.since + seconds:
        voice.look(at)
        if capsys.readouterr().err:
            told.append(at - task.since)
        at += LOOK_S
    return told


def test_a_pipe_gets_a_line_soon_and_then_few(voice: Voice, capsys) -> None:
    task = Task("loading")
    voice.open(task)
    voice._said = task.since
    told = lines_told(voice, task, 300, capsys)
    gaps = [b - a for a, b in zip([0.0, *told], told, strict=False)]
    assert gaps[0] == FIRST_S and gaps[1] == THEN_S and gaps[-1] == LATER_S
    assert max(gaps) <= LATER_S + LOOK_S
    assert len(told) <= 1 + LATER_AFTER_S / THEN_S + (300 - LATER_AFTER_S) / LATER_S + 1
    voice.close(task)


def test_nobody_is_told_twice(voice: Voice, capsys) -> None:
    """A line of the run itself counts as words; the innermost task is what is told."""
    voice.turn("training step 3")
    root = voice._root
    voice._said = root.since
    voice.look(root.since + FIRST_S)
    assert "training step 3: for 0:04" in capsys.readouterr().err
    voice.said()
    voice.look(voice._said + FIRST_S - LOOK_S)
    assert capsys.readouterr().err == ""
    voice.steps(10, 100)
    inner = Task("sampling a round", 64, "answers", done=16)
    voice.open(inner)
    voice.look(voice._said + FIRST_S)
    assert capsys.readouterr().err.startswith("sampling a round: 16 of 64 answers (25%)")
    voice.close(inner)
    voice.look(voice._said + THEN_S)
    assert "training step 3: 10 of 100 steps (10%)" in capsys.readouterr().err
    voice.end()


@pytest.mark.parametrize(("name", "value"), [(console.QUIET, "1"), ("RANK", "1")])
def test_quiet_runs_and_ranks_that_do_not_speak_say_nothing(
    name, value, voice: Voice, capsys, monkeypatch
) -> None:
    monkeypatch.setenv(name, value)
    voice.turn("training")
    assert voice._tasks == []
    monkeypatch.setattr(console, "VOICE", voice)
    console.tell("a line")
    assert capsys.readouterr().err == ""


def steps_of_a_run(run: RunDir, out: io.StringIO) -> str:
    log = RunLog(run, stream=out)
    log.info("model m")
    for step in (1, 2, 3):
        log.step(StepMetrics(step, 3, 0.5, 1.0, 1.0, 1, 1.0))
    log.warn("odd")
    log.finish("done", [("steps", "3")], "megaladder eval")
    run.close()
    return out.getvalue()


def test_a_quiet_run_prints_its_result_and_keeps_its_log(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv(console.QUIET, raising=False)
    loud = steps_of_a_run(RunDir(tmp_path / "loud", writer=True), io.StringIO())
    assert [("ETA" in line) for line in loud.splitlines() if line.startswith("step ")] == [
        False,
        True,
        False,
    ]
    monkeypatch.setenv(console.QUIET, "1")
    run = RunDir(tmp_path / "quiet", writer=True)
    quiet = steps_of_a_run(run, io.StringIO())
    assert "step 1/3" not in quiet and "model m" not in quiet
    assert "steps  3" in quiet and "next: megaladder eval" in quiet
    assert "warning: odd" in capsys.readouterr().err
    assert "step 1/3" in run.log_text.read_text()


def test_quiet_stands_anywhere_on_the_line_and_ends_with_the_call(monkeypatch, capsys) -> None:
    monkeypatch.delenv(console.QUIET, raising=False)
    assert main(["examples", "--quiet"]) == 0
    assert console.QUIET not in os.environ and "configs/" in capsys.readouterr().out


ON_A_TERMINAL = """
import sys, time
from megaladder.console import voice as console
with console.doing("counting words", total=4) as task:
    for number in range(4):
        task.add()
        console.VOICE.look(time.monotonic())
        print(f"result {number}", flush=True)
print("all", flush=True)
"""


def on_a_terminal(*command: str, **environment: str) -> tuple[str, bytes]:
    """Standard output, a pipe as with `megaladder … > file`, and what a terminal as error is sent."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", console.QUIET: ""}
    for name in ("RANK", "NO_COLOR", "FORCE_COLOR"):
        environ.pop(name, None)
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**environ, **environment},
        text=True,
    )
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 65536):
            drawn += chunk
    except OSError:
        pass  # the terminal's other side is closed: all is read
    os.close(ours)
    return done.stdout, drawn


ESCAPE = b"\x1b["
# foreground, background, bright ones, of 256, of 16 million
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
RESULTS = [*(f"result {number}" for number in range(4)), "all"]


@pytest.mark.parametrize("quiet", ["", "1"])
def test_a_terminal_shows_a_bar_and_standard_output_stays_clean(quiet: str) -> None:
    said, drawn = on_a_terminal("-c", ON_A_TERMINAL, **{console.QUIET: quiet})
    assert said.splitlines() == RESULTS
    assert (b"counting words" in drawn and b"75%" in drawn) is not bool(quiet)
    assert b"\x1b[?25l" not in drawn  # the cursor is never hidden


def test_a_bar_without_colour_stays_a_bar() -> None:
    coloured = on_a_terminal("-c", ON_A_TERMINAL)[1]
    said, drawn = on_a_terminal("-c", ON_A_TERMINAL, NO_COLOR="1")
    assert COLOUR.search(coloured) and not COLOUR.search(drawn)
    assert said.splitlines() == RESULTS and b"75%" in drawn


def test_a_terminal_that_cannot_draw_over_gets_lines() -> None:
    script = (
        f"from megaladder.console import voice; voice.FIRST_S = voice.THEN_S = 0\n{ON_A_TERMINAL}"
    )
    said, drawn = on_a_terminal("-c", script, TERM="dumb")
    assert said.splitlines() == RESULTS and ESCAPE not in drawn
    lines = drawn.decode().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"counting words: {number} of 4 rows ({number / 4:.0%})" for number in (1, 2, 3, 4)
    ]


WRONG = ("-m", "megaladder", "plan", "--modl", "Qwen3-14B")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_messages_follow_what_the_terminal_can(environment: dict[str, str]) -> None:
    drawn = on_a_terminal(*WRONG, **environment)[1]
    assert b"--model" in drawn and not COLOUR.search(drawn)
    assert ESCAPE not in drawn or "TERM" not in environment


@pytest.mark.parametrize("words", [WRONG, ("-m", "megaladder", "plan", "--help")], ids="-".join)
def test_a_pipe_gets_no_escape_at_all(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True)
    assert b"--model" in done.stdout + done.stderr and ESCAPE not in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_characters_is_shown_the_others_as_question_marks(encoding: str) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    words = [sys.executable, "-m", "megaladder"]
    for arguments, status in ((["--help"], 0), (["chat", "α"], 2)):
        done = subprocess.run([*words, *arguments], capture_output=True, env=environ)
        assert done.returncode == status, done.stderr
        assert b"?" in done.stdout + done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_no_verb_works_without_words(verb: Verb, monkeypatch) -> None:
    """From before its imports until it ends something is open that is told after some seconds."""
    monkeypatch.delenv(console.QUIET, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    heard: list[list[str]] = []

    def listen(*_: object) -> None:
        heard.append([task.what for task in console.VOICE._tasks])

    monkeypatch.setattr(dispatch, "config_class_of", listen)
    monkeypatch.setattr(dispatch, "resolve_words", listen)
    monkeypatch.setattr(dispatch, "_place_ranks", listen)
    monkeypatch.setattr(dispatch, "load", lambda target: listen)
    assert main(verb.name.split(" ")) == 0
    assert len(heard) >= 3 and all(words == [f"{verb.name} is at work"] for words in heard)
    assert console.VOICE._tasks == []
