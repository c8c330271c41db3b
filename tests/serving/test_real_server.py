"""`serve` and `chat` with the real vLLM on this machine's CPU: OpenAI's own client is answered, text
comes piece by piece, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import build_tiny_model
from waiting import descendants, is_alive, wait_until

from megaladder.rollout.engine import Piece, SamplingParams, expand
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def megaladder(*words: str) -> list[str]:
    return [sys.executable, "-m", "megaladder", *words]


@contextmanager
def serving(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address; killed if the test did not end it."""
    command = megaladder("serve", str(model), "--port", "0", "--cpu-kv-cache-gib", "0.25")
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said: list[str] = []
        for line in parent.stdout:
            said.append(line)
            if line.startswith("serving at "):
                yield parent, line.split()[2]
                return
        raise AssertionError(f"it never served: {said}")
    finally:
        parent.kill()
        parent.wait()


def test_openais_client_is_answered_and_ctrl_c_leaves_nothing(model: Path) -> None:
    openai = pytest.importorskip("openai")
    with serving(model) as (parent, address):
        assert address.startswith("http://127.0.0.1:")
        client = openai.OpenAI(base_url=address, api_key="none")
        assert [found.id for found in client.models.list()] == ["tiny"]
        asked = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "What is 2+3?"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**asked)
        assert 1 <= whole.usage.completion_tokens <= 12
        parts = [part.choices[0] for part in client.chat.completions.create(**asked, stream=True)]
        assert "".join(part.delta.content or "" for part in parts) == (
            whole.choices[0].message.content or ""
        )
        started = descendants(parent.pid)
        assert len(started) >= 2  # the server and its engine
        parent.send_signal(signal.SIGINT)
        rest, _ = parent.communicate()
        assert parent.returncode == 0 and "stopped" in rest
    assert [line for pid, line in started.items() if is_alive(pid)] == []


def test_a_killed_serve_takes_its_server_along(model: Path) -> None:
    with serving(model) as (parent, _address):
        started = descendants(parent.pid)
        parent.kill()
    wait_until(lambda: not any(map(is_alive, started)), f"the end of {started}")


@pytest.mark.usefixtures("forked_engines")
def test_an_answer_comes_piece_by_piece(model: Path, tmp_path: Path) -> None:
    options = VllmOptions(
        str(model), max_model_len=256, cpu_kv_cache_gib=0.25, log_dir=str(tmp_path)
    )
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    request = expand(tuple(range(5, 14)), params)[0]
    with VllmEngine(options) as engine:
        whole = engine.generate([request.prompt_ids], params)[0][0]
        pieces: list[Piece] = []
        assert engine.answer(request, pieces.append) == whole
        assert "".join(piece.text for piece in pieces) == whole.text and len(pieces) > 5

        def break_off(_piece: Piece) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.answer(request, break_off)
        assert engine.generate([request.prompt_ids], params)[0][0] == whole  # and it goes on


def test_chat_answers_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    words = ["--max-tokens", "8", "--temperature", "0", "--rollout.cpu-kv-cache-gib", "0.25"]
    done = subprocess.run(
        megaladder("chat", str(model), "--prompt", "Hello", *words),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert "cut at max_tokens" in done.stdout or done.stdout.strip()
    assert "engine ready" in done.stderr and "engine ready" not in done.stdout
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("megaladder-")]
    assert left == [], json.dumps(left)
