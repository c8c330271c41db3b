"""Chat templates of strangers: whatever they do, they end within bounds and touch nothing here."""

from __future__ import annotations

import gc
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from megaladder.data.chat import rendering
from megaladder.data.chat.rendering import TemplateFailed, render
from megaladder.errors import ModelError, RunStopped

TURNS = [{"role": "user", "content": "Hi\ud800"}]
FINE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


class Templated:
    """A tokenizer of which only the template counts."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, turns: Any, tokenize: bool = False, **options: Any) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        del tokenize
        return render_jinja_template([turns], chat_template=self.chat_template, **options)[0][0]


def children() -> set[int]:
    """Processes that this one has started, zombies among them."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()}


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time"),
        ("{{ lipsum(n=10 ** 9) }}", "time"),
        ("{{ 'a' * 10 ** 11 }}", "MiB"),
        ("{{ 'a' | center(10 ** 11) }}", "MiB"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
            "{% endfor %}{{ n.x }}",
            "MiB|time",
        ),
    ],
)
def test_a_bomb_is_refused_and_the_next_template_renders(monkeypatch, template, what) -> None:
    monkeypatch.setattr(rendering, "CPU_S", 0.2)
    monkeypatch.setattr(rendering, "MEMORY_BYTES", 1 << 27)
    before = children()
    tokenizer = Templated(template)
    with pytest.raises(ModelError, match=f"chat template takes more than .*({what})"):
        render(tokenizer, TURNS)
    tokenizer.chat_template = FINE
    assert render(tokenizer, TURNS) == "user: Hi\ud800"
    del tokenizer
    gc.collect()
    assert children() == before


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for", "unexpected|expected"),
    ],
)
def test_whatever_a_template_raises_is_told(template: str, said: str) -> None:
    with pytest.raises(TemplateFailed, match=said) as caught:
        render(Templated(template), TURNS)
    assert caught.value.exit_status == 2


def test_a_fork_that_somebody_killed_is_replaced() -> None:
    """No limit of ours kills: nobody's template is to blame."""
    tokenizer = Templated(FINE)
    before = children()
    assert render(tokenizer, TURNS) == "user: Hi\ud800"
    (fork,) = children() - before
    os.kill(fork, signal.SIGKILL)
    assert render(tokenizer, TURNS) == "user: Hi\ud800"


def test_a_fork_that_is_killed_again_stops_the_run_which_goes_on_later(monkeypatch) -> None:
    """As where a machine has no memory left: nothing is wrong with the input, so not status 2."""
    monkeypatch.setattr(rendering, "_rendered", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunStopped, match=r"killed twice by SIGKILL.*fix: free memory") as caught:
        render(Templated(FINE), TURNS)
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("wrong", [b"?\0\0\0\1x", b"t\xff\xff\xff\xff", b"t\0\0\0\7half"])
def test_an_answer_that_is_none_is_asked_for_again(monkeypatch, tmp_path, wrong) -> None:
    """The first fork garbles it, or stops in the middle of it."""
    monkeypatch.setattr(rendering, "REST_S", 0.2)
    serve, first = rendering._serve, tmp_path / "first"

    def garbled(tokenizer: Any, theirs: socket.socket) -> None:
        if first.exists():
            serve(tokenizer, theirs)
        first.touch()
        theirs.recv(1 << 16)
        theirs.sendall(wrong)
        signal.pause()

    monkeypatch.setattr(rendering, "_serve", garbled)
    assert render(Templated(FINE), TURNS) == "user: Hi\ud800"


def test_a_request_that_is_cut_short_does_not_hold_the_fork_up(monkeypatch) -> None:
    monkeypatch.setattr(rendering, "REST_S", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\0\0\0\7half")
        with pytest.raises(TimeoutError):
            rendering._request(theirs)


def test_a_template_that_crashes_its_process_is_named(monkeypatch) -> None:
    monkeypatch.setattr(rendering, "_rendered", lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(ModelError, match=r"the chat template takes so much .*status -11"):
        render(Templated(FINE), TURNS)


def test_the_fork_holds_no_file_of_ours(tmp_path) -> None:
    """Locks belong to an open file: a fork that kept it would keep the run folder's lock."""
    with (tmp_path / "lock").open("w") as held:
        before = children()
        tokenizer = Templated(FINE)
        render(tokenizer, TURNS)
        (fork,) = children() - before
        there = {os.readlink(path) for path in Path(f"/proc/{fork}/fd").iterdir()}
        assert held.name not in there and len(there) == 2  # /dev/null and the socket


def test_templates_are_rendered_in_one_place_only() -> None:
    root = Path(rendering.__file__).parents[3]
    callers = [
        path.relative_to(root)
        for path in (root / "megaladder").rglob("*.py")
        if ".apply_chat_template(" in path.read_text("utf-8")
    ]
    assert callers == [Path("megaladder/data/chat/rendering.py")]
