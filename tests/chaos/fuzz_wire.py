"""Readers of what another process or machine says: answers and requests of HTTP, messages of
engines and nodes, verdicts of graders, of programs' supervisors and of a user's commands."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chaos import fuzz_inputs as wrong
from chaos.fuzz_readers import JSON, LINES, Case

from megaladder.errors import DataError

HTTP = (wrong.raw, wrong.by_http)
FRAMES, MESSAGES = (wrong.raw, wrong.by_frames), (wrong.raw, wrong.by_messages)
NOBODY = 0x7FFFFFFF  # above every process id of Linux
PIPE_BYTES = 60_000  # what a pipe takes without a reader


# --- HTTP


class Answers:
    """A server that answers every request with the same bytes, whatever they are."""

    def __init__(self) -> None:
        self.said = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(self.said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass


@cache
def _answers_of(pid: int) -> tuple[Answers, Any]:
    from megaladder.rollout.remote.http_client import HttpClient

    del pid  # threads do not live on in a fork
    answers = Answers()
    return answers, HttpClient(answers.url, may_refuse=("/a",))


def _read_http(path: Path) -> object:
    from megaladder.rollout.remote.http_client import Refused

    answers, client = _answers_of(os.getpid())
    answers.said = path.read_bytes()
    try:
        return client.get("/a", timeout_s=5.0)
    except (OSError, Refused) as error:  # as it is said; another server is asked
        raise DataError(str(error)) from None


def _read_judge(path: Path) -> object:
    from megaladder.config.verbs.evaluation import JudgeSection
    from megaladder.evaluation import judge

    answers, _ = _answers_of(os.getpid())
    answers.said = path.read_bytes()
    judge.HTTP_TIMEOUT_S = 5.0
    section = JudgeSection(url=answers.url, model="m", retries=0)
    return list(judge.HttpJudge(section).judge([judge.Exchange("a", "b")]))


def _read_choice(path: Path) -> object:
    """A server's completion, as an engine hands it on."""
    from megaladder.rollout import wire
    from megaladder.rollout.remote import server

    try:
        item = {"id": 0, **server._completion(json.loads(path.read_bytes()))}
    except Exception as error:
        raise DataError(str(error)) from None
    return wire.completion_of(item, 0)


@cache
def _watched(folder: Path) -> Any:
    from watch.test_watch import write_run

    from megaladder.watch.live import Live
    from megaladder.watch.server import WatchServer

    run = str(write_run(folder / "run"))
    server = WatchServer(Live((run,)), (run,), 0)
    server.token, server.server_port = "t", 80
    return server


def _read_request(path: Path) -> object:
    """A request to the live page."""
    server = _watched(path.parent)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(path.read_bytes()[: 2 * PIPE_BYTES])
        ours.shutdown(socket.SHUT_WR)
        reader = threading.Thread(target=_drained, args=(ours,), daemon=True)
        reader.start()
        try:
            server.RequestHandlerClass(theirs, ("127.0.0.1", 1), server)
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            reader.join()
    return None


def _drained(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


def _http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nServer: a"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _chunked(body: bytes) -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


_JUDGED = b'{"choices": [{"message": {"content": "#thereason: so\\n#thescore: 5"}}]}'
_CHOICE = (
    b'{"token_ids": [1, 2], "text": "a", "finish_reason": "stop", "routed_experts": null,'
    b' "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}}'
)
_REQUESTS = tuple(
    f"GET /t/{name} HTTP/1.1\r\nHost: localhost:80\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
    for name in ("state?have=a:1:2", "rollouts?text=a&step=1&least=0.5&verdict=right", "")
)


# --- engines and nodes


def _ends(raw: bytes) -> tuple[socket.socket, socket.socket]:
    """A connection over which these bytes have come, and nothing more will."""
    ours, theirs = socket.socketpair()
    theirs.sendall(raw[: 2 * PIPE_BYTES])
    theirs.shutdown(socket.SHUT_WR)
    return ours, theirs


def _read_child(path: Path) -> object:
    """An engine whose child says this, one answer being owed."""
    from megaladder.rollout.engine import SamplingParams
    from megaladder.rollout.process_engine import Limits, ProcessEngine
    from megaladder.rollout.replica import ChildSpec, Replica

    class Heard(Replica):
        """A replica without a process, which has said everything by now."""

        alive, stopped = True, False

        def start(self) -> None:
            from megaladder.rollout.wire import Channel

            self.incarnation += 1
            ours, theirs = _ends(path.read_bytes())
            with theirs:
                self._read(Channel(ours), self.incarnation)
            ours.close()

        def send(self, message: dict[str, Any]) -> bool:
            return True

        def post_mortem(self) -> str:
            return "ended"

        def kill(self) -> None: ...
        def stop(self, patience_s: float) -> None: ...

    class Spec(ChildSpec):
        def open(self, index: int, inbox: Any) -> Replica:
            return Heard(index, inbox, self)

    spec = Spec((), {}, path.parent / "log")
    with ProcessEngine([spec], Limits(5.0, 5.0, max_restarts=0)) as engine:
        return engine.generate([[1]], SamplingParams())


def _read_node(path: Path) -> object:
    """What another node says of its replica."""
    from megaladder.rollout.remote.nodes import RemoteReplica, RemoteSpec
    from megaladder.rollout.wire import Channel

    ours, theirs = _ends(path.read_bytes())
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with theirs, patch.object(threading, "Thread"):
        replica = RemoteReplica(0, inbox, RemoteSpec(1, 0, Channel(ours)))
        replica.incarnation = 1
        replica._read()
    return replica.post_mortem(), [inbox.get() for _ in range(inbox.qsize())]


def _read_greeting(path: Path) -> object:
    """What a connection to rank 0 says first; what is none turns it away."""
    from megaladder.rollout.remote.nodes import _Greeting

    ours, theirs = _ends(path.read_bytes())
    with ours, theirs:
        greeting = _Greeting(ours, "token")
        try:
            while (words := greeting.hear()) is None:
                pass
        except (OSError, ValueError) as error:
            raise DataError(str(error)) from None
    return words.get("error"), words["node"], words.get("slot")


def _frame(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body


_READY = {"op": "ready", "describe": {"engine": "a"}, "features": {}}
_ITEM = {"id": 0, "ids": [1], "text": "a", "finish": "stop", "logprobs": [-0.5], "experts": ""}
_DONE = {"op": "done", "call": 1, "items": [_ITEM]}
_BEAT, _BROKEN = {"op": "beat"}, {"op": "broken", "message": "no memory"}
_REFUSED = {"op": "refused", "call": 1, "id": 0, "message": "too long"}
_OF_NODE = {"incarnation": 1, "message": _DONE, "how": "", "pid": 2}
_GREETING = {"node": 1, "slot": 0, "slots": 1}


# --- processes of ours that run others' programs


def _pipe(raw: bytes) -> Any:
    out, into = os.pipe()
    os.write(into, raw[:PIPE_BYTES])
    os.close(into)
    return os.fdopen(out, "rb")


@contextlib.contextmanager
def _instead(raw: bytes, status: int = 0, said: bytes = b"") -> Iterator[None]:
    """In place of every process: one that says this and has ended."""

    class Ended:
        """What is used of `subprocess.Popen`."""

        pid, returncode = NOBODY, status

        def __init__(self, *words: Any, **how: Any) -> None:
            self.stdin = open(os.devnull, "wb", buffering=0)  # noqa: SIM115
            self.stdout, self.stderr = _pipe(raw), _pipe(said)

        def poll(self) -> int:
            return status

        def wait(self, timeout: float | None = None) -> int:
            return status

        def terminate(self) -> None: ...

    with patch.object(subprocess, "Popen", Ended):
        yield


def _read_grader(path: Path) -> object:
    """What a grading process says, a frame at a time; it owes three verdicts."""
    from megaladder.rewards import worker
    from megaladder.rewards.worker import GradePool, GradeTask

    def read(of: Any) -> bool:
        head = os.read(of.output.fileno(), 4)
        size = struct.unpack(">I", head)[0] if len(head) == 4 else 0
        of._buffer += head + os.read(of.output.fileno(), min(size, PIPE_BYTES))
        return bool(head)

    frames = patch.object(worker._Worker, "read", read)
    with _instead(path.read_bytes()), frames, GradePool(num_workers=1) as pool:
        return pool.grade_many([GradeTask(f"s{number}", "5", "5") for number in range(3)])


def _read_function(path: Path) -> object:
    """What the process of a reward function says; it owes two values."""
    from megaladder.rewards.terms.function_pool import FunctionPool

    source = path.parent / "reward.py"
    source.touch()
    pool = FunctionPool(f"{source}:reward", 1, 5.0)
    with _instead(path.read_bytes()):
        try:
            return pool.values([{"id": "a"}, {"id": "b"}])
        finally:
            pool.close()


def _read_program(path: Path) -> object:
    """What the process beside a generated program reports."""
    from megaladder.rewards.programs.judge import Test
    from megaladder.rewards.programs.runner import ProgramLimits, judge

    tests = [Test("1", "2"), Test("2", "3")]
    with _instead(path.read_bytes()):
        return judge("print(2)", tests, ProgramLimits())


def _read_sandbox(path: Path) -> object:
    """What a user's command prints about a program."""
    from megaladder.evaluation.sandbox import SandboxPool
    from megaladder.rewards.worker import GradeTask

    task = GradeTask("s", "```python\nprint(1)\n```", "[]", "exact")
    with _instead(path.read_bytes(), said=b"\xff"), SandboxPool("a", 1, 5.0) as pool:
        return pool._grade(task)


def _read_holder(path: Path) -> object:
    """Who holds a run folder, by its guard file."""
    from megaladder.process import lock

    holder = lock._read_holder(path)
    return lock._holder_in_words(holder), lock._is_dead(holder, 1.0)


def _holder() -> tuple[bytes, ...]:
    from megaladder.process import lock

    return (json.dumps(lock._myself()).encode(), b'{"pid": 1, "host": "a", "started": "5"}')


_VERDICT = [True, "5", "exact", ""]
_REPORTS = b'{"status": "done", "output": "2\\n"}\n{"status": "error", "detail": "exit status 1"}\n'


def _http_cases() -> dict[str, Case]:
    answers = _http(b'{"a": [1, 2]}'), _http(b"no", "404 No"), _chunked(b'{"a": [1, 2]}')
    judged = _http(_JUDGED), _chunked(_JUDGED)
    return {
        "HTTP answer": Case("answer", answers[::2], _read_http, HTTP),
        "judge's answer": Case("judged", judged, _read_judge, HTTP),
        "server's completion": Case("choice", (_CHOICE,), _read_choice, JSON),
        "request to watch": Case("request", _REQUESTS, _read_request, HTTP),
    }


def _frames(*values: Any) -> bytes:
    return b"".join(map(_frame, values))


def _messages(*values: Any) -> bytes:
    from megaladder.rollout.wire import _packed

    return b"".join(map(_packed, values))


def wire_cases() -> dict[str, Case]:
    """Every reader of what others say, by name."""
    child = _messages(_READY, _BEAT, _DONE)
    begun = _frames({"ready": ["seccomp"]}, [_VERDICT], [_VERDICT, [None, None, "no_answer", "x"]])
    function = _frames({"batched": True}, {"values": [0.5, None]})
    greeting = b"token" + _messages(_GREETING)
    node = _messages(_OF_NODE, {**_OF_NODE, "message": None})
    return {
        **_http_cases(),
        "engine's messages": Case("child", (child,), _read_child, MESSAGES),
        "node's messages": Case("node", (node,), _read_node, MESSAGES),
        "node's greeting": Case("greeting", (greeting,), _read_greeting, _after(b"token")),
        "grader's frames": Case("grader", (begun,), _read_grader, FRAMES),
        "reward function's frames": Case("function", (function,), _read_function, FRAMES),
        "program's report": Case("report", (_REPORTS,), _read_program, LINES),
        "sandbox's verdict": Case(
            "verdict", (b'{"passed": true, "detail": "a"}',), _read_sandbox, JSON
        ),
        "holder of a run folder": Case(".guard", _holder, _read_holder, JSON),
    }


def _after(start: bytes) -> tuple[wrong.Mutate, ...]:
    """Mutations of what follows this."""

    def by_messages(seed: bytes, rng: Any) -> bytes:
        return start + wrong.by_messages(seed.removeprefix(start), rng)

    return wrong.raw, by_messages
