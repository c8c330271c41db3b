"""Engines behind HTTP: a stand-in that speaks vLLM's routes (and misbehaves), and, slow, vLLM's own
server with weights from a trainer."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from distributed import environment
from tiny_models import build_tiny_model
from waiting import wait_until

from megaladder.errors import ConfigError, EngineError
from megaladder.process.launch import hold_port
from megaladder.rollout.engine import SamplingParams, expand
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.remote.server import GENERATE, NEEDED, ServerOptions, ServerSpec
from megaladder.types import FinishReason

PROMPTS = [tuple(range(1, 3 + p)) for p in range(4)]
PARAMS = SamplingParams(n=3, seed=3, logprobs=True, stop=("x",), stop_token_ids=(9,))


class Server(ThreadingHTTPServer):
    """`routes` it has, `mark` (weight version) it holds, `asked` bodies by path; `refuse` prompts
    longer than this; `garbled`: bytes that it answers with instead, and how many are left out;
    `drips`: bytes that it sends one by one, without end."""

    daemon_threads = True

    def __init__(self, routes=NEEDED, refuse: int = 10**9) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes, self.refuse, self.mark = routes, refuse, "default"
        self.asked: list[tuple[str, dict]] = []
        self.garbled: tuple[bytes, int] | None = None
        self.drips: bytes | None = None
        self.hung_up = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[dict]:
        return [body for asked, body in self.asked if asked == path]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Silent."""

    def answer(self, value: dict, status: int = 200) -> None:
        self.answer_raw(json.dumps(value).encode(), 0, status)

    def answer_raw(self, raw: bytes, missing_bytes: int, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(raw) + missing_bytes))
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = missing_bytes > 0

    def drip(self, raw: bytes) -> None:
        """Half of an answer, then nothing; or a byte now and then, before any socket's timeout."""
        self.close_connection = True
        self.wfile.write(raw)
        try:
            while not self.server.hung_up.wait(0.02):
                self.wfile.write(raw[:1])
        except OSError:
            self.server.hung_up.set()

    def do_GET(self) -> None:
        schemas = {"GenerateRequest": {"properties": {"output_mode": 1}}}
        api = {"paths": dict.fromkeys(self.server.routes), "components": {"schemas": schemas}}
        self.answer(
            {
                "/health": {},
                "/openapi.json": api,
                "/v1/models": {"data": [{"max_model_len": 128}]},
                "/version": {"version": "0.32.0"},
                "/weight_info": {"weight_version": self.server.mark},
            }[self.path]
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body))
        if self.path == "/collective_rpc":
            self.answer({"results": [{"device": "cpu", "dtype": "float32"}]})
        elif self.path == "/update_weight_version":
            self.server.mark = body["new_version"]
            self.answer({})
        elif self.path == "/reset_prefix_cache":
            self.answer({"success": True})
        elif self.path == GENERATE and len(body["token_ids"]) > self.server.refuse:
            self.answer({"error": "too long for me"}, 400)
        elif self.path == GENERATE and self.server.drips is not None:
            self.drip(self.server.drips)
        elif self.path == GENERATE and self.server.garbled is not None:
            self.answer_raw(*self.server.garbled)
        elif self.path == GENERATE:
            seed = body["sampling_params"]["seed"]
            ids = [(sum(body["token_ids"]) + seed + i) % 97 for i in range(3)]
            content = [{"logprob": -float(i)} for i in range(3)]
            self.answer(
                {
                    "choices": [
                        {
                            "token_ids": ids,
                            "text": str(ids),
                            "finish_reason": "stop",
                            "logprobs": {"content": content},
                        }
                    ]
                }
            )
        else:
            self.answer({})


@pytest.fixture
def server():
    one = Server()
    yield one
    one.shutdown()
    one.server_close()


def engine(*servers: Server) -> ProcessEngine:
    return ProcessEngine(
        [ServerSpec(one.url, ServerOptions(concurrency=4, ping_s=0.2)) for one in servers],
        Limits(start_s=10, stall_s=10),
    )


def test_tokens_in_tokens_out_with_each_samples_own_seed(server):
    with engine(server) as one:
        groups = one.generate(PROMPTS, PARAMS)
        assert one.describe() == {
            "engine": "vllm server",
            "version": "0.32.0",
            "device": "cpu",
            "dtype": "float32",
            "max_model_len": 128,
            "tp": None,
            "replicas": 1,
        }
    asked = server.bodies(GENERATE)
    assert len(asked) == 12 and len({body["request_id"] for body in asked}) == 12
    assert len({body["sampling_params"]["seed"] for body in asked}) == 12
    params = asked[0]["sampling_params"]
    assert (params["logprobs"], params["stop"], params["stop_token_ids"]) == (
        0,
        ["x"],
        [9],
    ) and "n" not in params
    assert all(
        one.finish_reason is FinishReason.STOP and one.logprobs == (0.0, -1.0, -2.0)
        for group in groups
        for one in group
    )


def test_two_servers_answer_as_one(server):
    other = Server()
    with engine(server) as one:
        expected = one.generate(PROMPTS, PARAMS)
    server.asked.clear()
    with engine(server, other) as two:
        assert two.generate(PROMPTS, PARAMS) == expected
    assert len(server.bodies(GENERATE)) == len(other.bodies(GENERATE)) == 6
    other.shutdown()


def test_a_server_that_was_restarted_is_given_the_weights_again(server, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with engine(server) as one:
        one.update_weights(str(tmp_path), 2)
        assert server.mark.startswith("megaladder-")
        # what a fresh vLLM says: somebody restarted it, with the weights of its start
        server.mark = "default"
        one.generate(PROMPTS, PARAMS, expect_version=2)
        assert one.restarts == 1
    calls = [body for body in server.bodies("/collective_rpc") if body["method"] == "load_folder"]
    assert [call["kwargs"]["weights_path"] for call in calls] == [str(tmp_path)] * 2


def test_refusals_and_missing_routes_say_so(server):
    server.refuse = 3
    with (
        engine(server) as one,
        pytest.raises(ConfigError, match=r"refused a prompt of \d tokens.*too long for me"),
    ):
        one.generate(PROMPTS, PARAMS)
    plain = Server(routes=[route for route in NEEDED if route != GENERATE])
    with pytest.raises(
        EngineError, match=r"has no route /inference/v1/generate; fix: .*--enable-scale-out"
    ):
        engine(plain)
    plain.shutdown()


@pytest.mark.parametrize(
    ("raw", "missing_bytes", "words"),
    [
        (b'{"choices": [', 40, "was cut short"),
        (b"<html>proxy error</html>", 0, "is no JSON"),
        (b'{"choices": []}', 0, "IndexError"),
        (b'{"choices": [{"text": "x"}]}', 0, "KeyError"),
        (b"[]", 0, "TypeError"),
        (b"[" * 100_000, 0, "is no JSON"),
        (b"\xff\xfe", 0, "is no JSON"),
        (b'{"choices": [{"token_ids": ["1"], "text": 5, "finish_reason": null}]}', 0, "token_ids"),
        (b"{}", 1 << 40, "too long"),
    ],
)
def test_an_answer_that_is_none_loses_the_request_and_says_so(server, raw, missing_bytes, words):
    """No request may wait for an answer that nobody will read."""
    server.garbled = (raw, missing_bytes)
    with engine(server) as one, pytest.raises(EngineError, match=words) as raised:
        one.generate(PROMPTS, PARAMS)
    assert raised.value.exit_status == 3


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"H", HEAD + b'{"choices": [{"text": '])
def test_an_answer_that_does_not_end_is_given_up_within_the_configured_time(server, said):
    """Nothing, the status line byte by byte, half a body byte by byte: the server's own sign of life
    is well all the time."""
    server.drips = said
    options = ServerOptions(concurrency=4, ping_s=0.05, timeout_s=0.3)
    spec = ServerSpec(server.url, options)
    with ProcessEngine([spec], Limits(start_s=60, stall_s=1000, max_restarts=0)) as one:
        with pytest.raises(EngineError, match=r"generate: no whole answer within 0.3 s") as raised:
            one.generate(PROMPTS, PARAMS)
    assert raised.value.exit_status == 3 and server.url in str(raised.value)
    server.hung_up.set()


@pytest.mark.parametrize("connects_slowly", [False, True])
def test_closing_does_not_wait_for_answers(server, monkeypatch, connects_slowly):
    """Nor for one that is asked for while it closes."""
    closed, connect = threading.Event(), http.client.HTTPConnection.connect

    def connect_late(connection: http.client.HTTPConnection) -> None:
        connect(connection)
        if server.bodies(GENERATE):
            closed.wait()

    if connects_slowly:
        monkeypatch.setattr(http.client.HTTPConnection, "connect", connect_late)
    server.drips = b""
    options = ServerOptions(concurrency=4, ping_s=0.05, timeout_s=1000)
    one = ProcessEngine([ServerSpec(server.url, options)], Limits(start_s=60, stall_s=1000))
    stream = one.stream([request for prompt in PROMPTS for request in expand(prompt, PARAMS)])
    asking = threading.Thread(target=lambda: next(stream, None), daemon=True)
    asking.start()
    wait_until(lambda: server.bodies(GENERATE), "the first request")
    pool = one._replicas[0]._pool
    one.close()
    closed.set()
    pool.shutdown(wait=True)  # its threads have ended
    server.hung_up.set()


def test_a_server_that_dies_ends_the_call_with_status_3(server):
    with engine(server) as one:
        server.shutdown()
        server.server_close()
        with pytest.raises(EngineError, match="Connection refused") as raised:
            one._limits = Limits(start_s=1, stall_s=5)
            one.generate(PROMPTS, PARAMS)
        assert raised.value.exit_status == 3


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.timeout(600)
def test_grpo_with_vllms_own_server(tmp_path):
    """Four rounds from a server that was started with other weights: it holds the trainer's before
    the first token, to the last bit that it shows; log-probs agree to float32; a server that is
    killed stops the run with status 3, which goes on with the next one.
    """
    model, other = (
        build_tiny_model(tmp_path / "model"),
        build_tiny_model(tmp_path / "other", seed=5),
    )
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"question": f"What is {i} + {i}?", "answer": str(2 * i)}) + "\n"
            for i in range(40)
        )
    )
    held = hold_port()
    port = held.getsockname()[1]
    process = start_server(other, port, tmp_path / "server.log")
    flags = [
        "--run-dir",
        str(tmp_path / "run"),
        "--model.path",
        str(model),
        "--data.path",
        str(problems),
        "--data.seq-length",
        "128",
        "--rollout.n",
        "4",
        "--rollout.max-tokens",
        "64",
        "--rollout.check-sync",
        "always",
        "--grpo.preset",
        "grpo",
        "--grpo.entropy-coef",
        "0.1",
        "--grpo.prompts-per-step",
        "4",
        "--train.max-steps",
        "4",
        "--optim.lr",
        "1e-2",
        "--optim.schedule",
        "constant",
        "--optim.warmup-ratio",
        "0",
        "--rollout.servers",
        f"http://127.0.0.1:{port}",
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "megaladder", "grpo", *flags],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        held.close()
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "server.log").read_text()[-2000:]
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["version"] for row in rows] == [0, 1, 2, 3]
    assert all(row["mismatch_mean"] <= 2e-6 and row["mismatch_max"] <= 2e-5 for row in rows)
    assert rows[-1]["entropy"] < rows[0]["entropy"] - 0.01  # the weights have moved
    assert done.stdout.count("0 of 11 tensors differ") == 4


def start_server(model: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    variables = {
        **environment(),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--dtype",
        "float32",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-model-len",
        "128",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--enable-scale-out",
        "--logprobs-mode",
        "processed_logprobs",
        "--worker-extension-cls",
        "megaladder.rollout.worker_extension.WorkerExtension",
    ]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=variables, stdout=file, stderr=file, start_new_session=True
        )
