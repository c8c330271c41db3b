"""How long a fault goes unnoticed, and who is named: a row for each, as docs/faults.md shows them.

PYTHONPATH=.:tests python -m chaos.liveness [NAME …]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forked_engines
from distributed import environment
from rollout.test_process_engine import PARAMS, PROMPTS, engine
from rollout.test_server_replica import HEAD, Server
from tiny_models import build_tiny_model
from waiting import is_alive, wait_until

from megaladder.errors import EngineError, MegaladderError
from megaladder.process.ranks import is_stopped
from megaladder.rewards import child, worker
from megaladder.rewards.worker import GradePool, GradeTask
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.remote.server import ServerOptions, ServerSpec
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions

Found = tuple[float, str]
BACKGROUND = ("--checkpoint.async-save", "true")
_GRADER = """\
import os, signal, struct, sys, time
def say(raw): sys.stdout.buffer.write(struct.pack(">I", len(raw)) + raw); sys.stdout.buffer.flush()
def read():
    head = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack(">I", head)[0]) if head else sys.exit()
read()
say(b'{"ready": []}')
"""


def grader(does: str, folder: Path) -> Found:
    """One sample for a process that does this instead of grading; it is tried twice."""
    path = folder / "grader.py"
    path.write_text(_GRADER + textwrap.dedent(does))

    class Stub:
        __file__ = str(path)
        frame, PROGRESS = staticmethod(child.frame), child.PROGRESS

    worker.child = Stub  # type: ignore[assignment]
    with GradePool(num_workers=1) as pool:
        begun = time.monotonic()
        pool.grade_many([GradeTask("sample 7", "5" * 200_000, "5")])
        return (time.monotonic() - begun) / 2, f"{pool.failures[0].id}: {pool.failures[0].detail}"


def engine_child(plan: dict[str, object], folder: Path) -> Found:
    """From the first request to the words, without a restart."""
    with engine(folder, plan, stall_s=1800.0, max_restarts=0) as one:
        return _until_raised(lambda: one.generate(PROMPTS, PARAMS))


def server(prepare: Callable[[Server], None], folder: Path) -> Found:
    """A server with `rollout.timeout_s` 3."""
    there = Server()
    spec = ServerSpec(there.url, ServerOptions(concurrency=4, timeout_s=3.0))
    try:
        with ProcessEngine([spec], Limits(start_s=60, stall_s=1800, max_restarts=0)) as one:
            prepare(there)
            return _until_raised(lambda: one.generate(PROMPTS, PARAMS))
    finally:
        there.hung_up.set()
        there.shutdown()
        there.server_close()


def _until_raised(action: Callable[[], object]) -> Found:
    begun = time.monotonic()
    try:
        action()
    except MegaladderError as error:
        return time.monotonic() - begun, str(error)
    raise AssertionError("nobody noticed")


def rank(fault: str, folder: Path, *flags: str) -> Found:
    """A training on two ranks with `train.timeout_s` 20, from the fault to the end of the command."""
    from faults.test_stopping import TWO_RANKS, Sft

    sft = Sft(folder)
    command = sft.command(folder / "run", *TWO_RANKS, "--train.timeout-s", "20", *flags)
    env = {**os.environ, **environment(), "MEGALADDER_FAULT": fault}
    running = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    begun = 0.0
    for line in running.stderr:
        begun = time.monotonic() if "fault point" in line and not begun else begun
    running.wait()
    word = json.loads((folder / "run" / "last_word.json").read_text())
    return time.monotonic() - begun, f"status {running.returncode}, {word['message']}"


class _Heard(io.StringIO):
    """What is said on stderr, and since when."""

    since = 0.0

    def write(self, text: str) -> int:
        self.since = self.since or time.monotonic()
        return super().write(text)


def vllm(fault: str, action: Callable[[VllmEngine, str], object], folder: Path) -> Found:
    """The real one (a fork of a process that has imported it), lost at that place; afterwards it
    generates with new weights. From the request to the words."""
    model = str(build_tiny_model(folder / "model"))
    options = VllmOptions(model, max_model_len=256, cpu_kv_cache_gib=0.1, log_dir=str(folder))
    os.environ["MEGALADDER_FAULT"] = fault
    with forked_engines.server() as door, forked_engines.using(door):
        with VllmEngine(options, Limits(stall_s=1800.0, max_restarts=1)) as one:
            del os.environ["MEGALADDER_FAULT"]
            begun, heard = time.monotonic(), _Heard()
            with contextlib.redirect_stderr(heard):
                words = _words_of(lambda: action(one, model))
            seconds = (heard.since or time.monotonic()) - begun
            one.update_weights(model, 2)
            assert len(one.generate(PROMPTS, LONG, expect_version=2)) == len(PROMPTS)
            assert one.restarts == 1
    return seconds, heard.getvalue() or f"{words}; the next update starts another"


def _words_of(action: Callable[[], object]) -> str:
    try:
        action()
    except EngineError as error:
        return str(error)
    return ""


def hub(folder: Path) -> Found:
    """A hub that accepts and says nothing, with a patience of 3 s."""
    from megaladder.data.sources import hub as asked

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        os.environ["HF_HUB_OFFLINE"] = "0"

        asked.HUB_TIMEOUT_S = 3.0
        return _until_raised(lambda: asked.resolve_commit("some-owner/some-data"))


def judge(said: bytes, drip: bytes, folder: Path) -> Found:
    """A judge's address that says this and then that over and over, with a patience of 3 s."""
    from megaladder.config.verbs.evaluation import JudgeSection
    from megaladder.evaluation import judge as asked

    asked.HTTP_TIMEOUT_S = 3.0
    with socket.create_server(("127.0.0.1", 0)) as there:
        section = JudgeSection(
            url=f"http://127.0.0.1:{there.getsockname()[1]}", model="m", retries=0
        )
        threading.Thread(target=_babble, args=(there, said, drip), daemon=True).start()
        by = asked.HttpJudge(section)
        return _until_raised(lambda: list(by.judge([asked.Exchange("q", "r")])))


def _babble(there: socket.socket, said: bytes, drip: bytes) -> None:
    connection, _ = there.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(said)
        while True:
            threading.Event().wait(0.1)
            connection.sendall(drip)


def orphan(folder: Path) -> Found:
    """An engine's process that stands still while the trainer is killed: until it is gone."""
    code = (
        "import sys, signal; from pathlib import Path; from rollout.test_process_engine import engine;"
        "one = engine(Path(sys.argv[1]), {}); print(*one.pids, flush=True); signal.pause()"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), "a stopped engine")
    begun = time.monotonic()
    trainer.kill()
    wait_until(lambda: not is_alive(pid), "the end of the engine")
    return time.monotonic() - begun, "nobody: there is nobody left"


def _drip(said: bytes) -> Callable[[Server], None]:
    return lambda there: setattr(there, "drips", said)


def _garble(raw: bytes) -> Callable[[Server], None]:
    return lambda there: setattr(there, "garbled", (raw, 0))


def _end(there: Server) -> None:
    there.shutdown()
    there.server_close()


LONG = SamplingParams(n=2, max_tokens=64, ignore_eos=True, seed=1)
IN_VLLM: dict[str, tuple[str, Callable[[VllmEngine, str], object]]] = {
    "a rollout": ("engine_step:20", lambda one, _: one.generate(PROMPTS, LONG)),
    "a weight update": ("engine_update:1", lambda one, model: one.update_weights(model, 1)),
    "sleep": ("engine_sleep:1", lambda one, _: one.sleep(1)),
    "wake": ("engine_wake:1", lambda one, _: one.wake()),
}
ROWS: dict[str, Callable[[Path], Found]] = {
    "grader does not read": lambda f: grader("time.sleep(100_000)", f),
    "grader is stopped": lambda f: grader("os.kill(os.getpid(), signal.SIGSTOP)", f),
    "grader dies": lambda f: grader("read(); os.kill(os.getpid(), signal.SIGKILL)", f),
    "engine is stopped": lambda f: engine_child({"stop_after": 3}, f),
    "engine is stopped and does not read": lambda f: engine_child({"deaf": True}, f),
    "engine says garbage": lambda f: engine_child(
        {"garble_after": 3, "garbage": "00000002fffffffd7b7b"}, f
    ),
    "engine dies": lambda f: engine_child({"die_after": 3}, f),
    "server answers garbage": lambda f: server(_garble(b"<html>"), f),
    "server answers half, then drips": lambda f: server(_drip(HEAD + b'{"choices": [{'), f),
    "server drips a head": lambda f: server(_drip(b"H"), f),
    "server says nothing": lambda f: server(_drip(b""), f),
    "server is gone": lambda f: server(_end, f),
    "judge drips a head": lambda f: judge(b"", b"H", f),
    "judge drips a body": lambda f: judge(HEAD + b"{", b" ", f),
    "engine is stopped, trainer is killed": orphan,
    "hub is silent": hub,
    "checkpoint writer is killed": lambda f: rank("write_files:1:SIGKILL", f),
    "checkpoint writer is stopped": lambda f: rank("write_files:1:SIGSTOP", f),
    "rank is stopped in a save": lambda f: rank("writing:1:SIGSTOP@rank1", f),
    "background save is stopped": lambda f: rank("writing:1:SIGSTOP@rank1", f, *BACKGROUND),
    "background save is killed": lambda f: rank("writing:1:SIGKILL@rank1", f, *BACKGROUND),
    "rank is killed in a save": lambda f: rank("writing:1:SIGKILL@rank1", f),
    "rank is killed": lambda f: rank("update:6:SIGKILL@rank1", f),
    "rank is stopped": lambda f: rank("update:6:SIGSTOP@rank1", f),
    **{
        f"vLLM is {done} in {place}": partial(vllm, f"{point}:{by}", action)
        for place, (point, action) in IN_VLLM.items()
        for done, by in (("stopped", "SIGSTOP"), ("killed", "SIGKILL"))
    },
}


def main() -> int:
    for name in sys.argv[1:] or ROWS:
        with tempfile.TemporaryDirectory(prefix="liveness-") as folder:
            seconds, words = ROWS[name](Path(folder))
        print(f"| {name} | {seconds:.1f} | {' '.join(words.split())[:300]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
