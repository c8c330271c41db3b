"""Which model a name means, conversations, vLLM's server as a child (a stand-in here), model cards
and where they go."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fake_hub import COMMIT, FakeHub
from tiny_models import build_tokenizer
from waiting import is_alive, wait_until

from megaladder.cli import main
from megaladder.errors import ConfigError, StorageError
from megaladder.files.models import find_model
from megaladder.files.sums import export_damage, write_sums
from megaladder.process.launch import hold_port
from megaladder.rollout.engine import Piece, SamplingParams, expand
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.serving import push
from megaladder.serving.chat import Conversation
from megaladder.serving.serve import server_command
from megaladder.serving.server_child import PIPE_VARIABLE
from megaladder.serving.settings import ServeConfig
from megaladder.types import Completion, FinishReason


def make_model(folder: Path) -> Path:
    """What every verb here looks at: a configuration, weights, a tokenizer."""
    build_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with two exports."""
    folder = tmp_path / "my-run"
    for step in (9, 10):
        make_model(folder / "hf" / f"step_{step}")
    (folder / "config.yaml").write_text(
        "model: {path: Owner/Base}\ndata: {path: d.jsonl}\noptim: {lr: 1.0e-5}\n"
    )
    (folder / "fingerprint.json").write_text('{"data": {"sha256": "abc"}, "ranks": 2}')
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "train_tokens": 100, "train_flops": 2e9}\n'
        '{"step": 2, "train_tokens": 300, "train_flops": 4e9}\n'
    )
    return folder


def test_a_run_means_its_newest_export(run: Path) -> None:
    assert find_model(str(run)).hf == run / "hf" / "step_10"
    found = find_model(str(run / "hf" / "step_9"))
    assert (found.name, found.run) == ("my-run-step_9", run)
    (run / "hf" / "step_10" / "config.json").unlink()  # an export that was cut off
    assert find_model(str(run)).hf.name == "step_9"


def test_folders_without_a_model_name_the_next_step(tmp_path, run) -> None:
    with pytest.raises(ConfigError, match="no such folder; fix: a Hugging Face folder or a run"):
        find_model(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"has no config.json; fix:"):
        find_model(str(tmp_path))
    bare = tmp_path / "bare"
    for step in (9, 10, 11):
        (bare / "checkpoints" / f"step_{step}").mkdir(parents=True)
        if step != 11:  # a save that was cut off
            (bare / "checkpoints" / f"step_{step}" / "COMMITTED").touch()
    (bare / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"convert megatron-to-hf --megatron .*step_10 --out"):
        find_model(str(bare))


class Parrot:
    """Says the number of tokens that it was given, in two pieces; `broken_off`: Ctrl-C comes after
    the first. `restarted`: the engine is lost there once."""

    def __init__(self, broken_off: bool = False, restarted: bool = False):
        self.broken_off, self.restarted = broken_off, restarted

    def answer(self, request, on_piece):
        text = f"{len(request.prompt_ids)} tokens"
        on_piece(Piece(0, text[:2]))
        if self.broken_off:
            raise KeyboardInterrupt
        if self.restarted:
            on_piece(Piece(0, text[:2]))
        on_piece(Piece(2, text[2:]))
        cut = request.params.max_tokens == 1
        return Completion((1,), text, FinishReason.LENGTH if cut else FinishReason.STOP)


class Prompter:
    """Messages become their words, and are kept."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def render(self, messages):
        self.shown.append([message.content for message in messages])
        return " ".join(self.shown[-1])

    def ids(self, text):
        return tuple(range(len(text.split())))


def talk(parrot: Parrot, max_tokens: int = 8) -> Conversation:
    params = SamplingParams(max_tokens=max_tokens)
    return Conversation(parrot, Prompter(), params, io.StringIO())


def test_a_conversation_keeps_its_turns() -> None:
    chat = talk(Parrot())
    chat.ask("one two")
    chat.ask("three")
    assert chat.out.getvalue() == "2 tokens\n5 tokens\n"
    assert chat.prompter.shown == [["one two"], ["one two", "2 tokens", "three"]]
    cut = talk(Parrot(), max_tokens=1)
    cut.ask("x")
    assert cut.out.getvalue().endswith("… (cut at max_tokens)\n")


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came() -> None:
    chat = talk(Parrot(broken_off=True))
    chat.ask("one")
    assert chat.out.getvalue() == "1  … (broken off)\n"
    assert [turn.content for turn in chat.turns] == ["one", "1 "]


def test_an_answer_that_begins_anew_says_so() -> None:
    chat = talk(Parrot(restarted=True))
    chat.ask("one")
    assert chat.out.getvalue() == "1 \n… (the engine was restarted: from the beginning)\n1 tokens\n"


def test_the_pieces_of_an_answer_are_its_text() -> None:
    words = "  So 2 + 3\nis 5. "
    engine = FakeEngine(lambda _request: Completion((1,), words, FinishReason.STOP))
    pieces: list[Piece] = []
    request = expand((1, 2), SamplingParams(seed=1))[0]
    assert engine.answer(request, pieces.append).text == words
    assert "".join(piece.text for piece in pieces) == words and len(pieces) > 3
    assert all(words[piece.start :].startswith(piece.text) for piece in pieces)


def test_chat_by_prompt_and_by_lines(tmp_path, capsys, monkeypatch) -> None:
    """One answer a turn on standard output, nothing else."""
    model = make_model(tmp_path / "model")
    fake = ["--rollout.engine", "fake", "--max-tokens", "4", "--seed", "1"]
    assert main(["chat", str(model), *fake, "--prompt", "Hello"]) == 0
    first = capsys.readouterr()
    assert first.out.strip() and "loading" in first.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/new\nHello\n/quit\nnever\n"))
    assert main(["chat", str(model), *fake]) == 0
    assert capsys.readouterr().out == first.out * 2


def test_the_servers_command_has_the_template_of_the_export(tmp_path) -> None:
    model = make_model(tmp_path / "model")
    config = ServeConfig(model=str(model), port=8123, max_model_len=64)
    command = server_command(config, find_model(str(model)), 8123, tmp_path)
    options = [word for word in command[3:] if word != "--enforce-eager"]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--host"] == "127.0.0.1" and given["--served-model-name"] == "model"
    assert given["--max-model-len"] == "64"
    assert "<|im_start|>" in Path(given["--chat-template"]).read_text()


STAND_IN = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b"" if self.path == "/health" else self.path.encode())
    def log_message(self, *words): print("asked", flush=True)
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
open(sys.argv[1], "w").write(str(server.server_port))
server.serve_forever()
"""
PARENT = """
import os, sys, time
from pathlib import Path
from megaladder.serving.settings import ServeConfig
from megaladder.serving import serve as it
place, script = Path(sys.argv[1]), sys.argv[2]
it._answers = lambda _, real=it._answers: (place / "port").exists() and real(
    it.HttpClient("http://127.0.0.1:" + (place / "port").read_text()))
it.serve([sys.executable, "-c", script, str(place / "port")], os.environ, "http://x", place,
         ServeConfig(model="m"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_until_it_is_told_to_stop(tmp_path, number) -> None:
    # where a proxy is set, this machine is not asked through it (port 9 is nobody's)
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command = [sys.executable, "-c", PARENT, str(tmp_path), STAND_IN]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert "serving at http://x/v1" in parent.stdout.readline()
    address = f"http://127.0.0.1:{(tmp_path / 'port').read_text()}"
    with urllib.request.urlopen(f"{address}/v1/models") as answer:
        assert answer.read() == b"/v1/models"
    parent.send_signal(number)
    rest, _ = parent.communicate()
    assert parent.returncode == 0 and "stopped" in rest
    with pytest.raises(OSError):
        urllib.request.urlopen(address)


GROUP = """
import os, subprocess, sys
from megaladder.serving.server_child import end_with_parent
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
end_with_parent()
print(os.getpid(), worker.pid, flush=True)
worker.wait()
"""


def test_a_server_ends_with_its_parent_and_takes_its_workers_along() -> None:
    theirs, ours = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", GROUP],
        env={**os.environ, PIPE_VARIABLE: str(theirs)},
        pass_fds=(theirs,),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    started = [int(word) for word in child.stdout.readline().split()]
    assert all(map(is_alive, started))
    os.close(ours)  # what the kernel does when a parent is killed
    assert child.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, started)), "the end of server and worker")


def test_a_server_that_ends_by_itself_shows_its_last_lines(tmp_path) -> None:
    script = "import sys; print('no such weights'); sys.exit(7)"
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path), script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "ended with status 7; fix:" in done.stderr and "no such weights" in done.stderr


def test_a_port_in_use_is_refused(tmp_path, capsys) -> None:
    import socket

    model = make_model(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(model), "--port", str(port)]) == 2
    assert (
        f"port {port} of 127.0.0.1" in (shown := capsys.readouterr().err)
        and "fix: --port 0" in shown
    )


def test_a_port_stays_held_until_the_server_is_through(tmp_path) -> None:
    """Nobody else is given it, and the server may listen there."""
    import socket

    with hold_port() as held:
        number = held.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", number))
        with socket.socket() as server:  # as vLLM binds
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", number))
            server.listen()
    with pytest.raises(OSError):
        hold_port("203.0.113.7")  # no address of this machine (RFC 5737)


def make_scores(folder: Path) -> Path:
    entry = {
        "headline": "avg@4",
        "metrics": {"avg@4": 0.318},
        "ci95": {"avg@4": [0.282, 0.352]},
        "num_problems": 200,
        "n": 4,
        "protocol": {"decoding": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 128}},
    }
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"benchmarks": {"arithmetic": entry}}))
    return folder


def test_push_writes_a_folder_with_a_card_of_what_was_recorded(run, tmp_path, capsys) -> None:
    scores = make_scores(tmp_path / "scores")
    out = tmp_path / "out" / "model"
    out.parent.mkdir()
    command = [
        "push",
        str(run),
        "--to",
        str(out),
        "--evals",
        str(scores),
        "--license",
        "apache-2.0",
    ]
    assert main(command) == 0
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["base_model"] == "Owner/Base"
    assert "| arithmetic | avg@4 31.8 % | 28.2 to 35.2 % | 200 × 4 | T 1.0" in card
    assert "| train | 400 tokens, 6e+09 FLOPs |" in card  # the ledger's rows, added up
    assert "| data.sha256 | `abc` |" in card and "| `optim.lr` | `1e-05` |" in card
    assert (out / "model.safetensors").read_bytes() == b"weights"
    assert export_damage(out) is None and find_model(str(out)).hf == out
    assert (
        main(command) == 2
        and "not empty; fix: another folder, or --force" in capsys.readouterr().err
    )
    (out / "model.safetensors").write_bytes(b"weightz")
    assert export_damage(out) is not None
    assert main([*command, "--force"]) == 0 and export_damage(out) is None


def test_push_needs_weights_and_scores_that_are_there(run, tmp_path, capsys) -> None:
    assert main(["push", str(run), "--to", str(tmp_path / "o"), "--evals", str(tmp_path)]) == 2
    assert "no summary.json; fix: the folder of one model" in capsys.readouterr().err
    (run / "hf/step_10/model.safetensors").unlink()
    assert main(["push", str(run), "--to", str(tmp_path / "o")]) == 2
    assert "has no *.safetensors; fix:" in capsys.readouterr().err


def test_push_to_the_hub_by_the_hubs_own_client(run, tmp_path) -> None:
    """A hub on this machine: the repository is private, holds the model's files and the card."""
    weights = bytes(range(256)) * 20
    (run / "hf/step_10/model.safetensors").write_bytes(weights)
    command = [
        sys.executable,
        "-m",
        "megaladder",
        "push",
        str(run),
        "--to",
        "hf://some-owner/some-model",
    ]
    with FakeHub({}) as hub:
        environ = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "hf_0"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        there = hub.repos["some-owner/some-model"]
        assert hub.private == {"some-owner/some-model"} and hub.large == {}
        assert f"/some-owner/some-model/commit/{COMMIT}" in done.stdout
        again = subprocess.run(command, env=environ, capture_output=True, check=False)
        assert again.returncode == 0
    assert there["model.safetensors"] == weights
    assert {"config.json", "tokenizer.json"} <= there.keys()
    assert b"my-run-step_10" in there["README.md"]


def test_a_hub_that_cannot_be_reached_is_named(run, monkeypatch) -> None:
    """Tests run with the hub off: the real client says so."""
    with pytest.raises(StorageError, match=r"the hub did not take .*fix: hf auth login"):
        push._to_hub(
            find_model(str(run)), "card", "o/m", SimpleNamespace(private=True, message="m")
        )


def test_a_network_that_fails_is_told_in_words(run, tmp_path) -> None:
    """The client's errors of a connection are the HTTP library's: no OSError, and no bug of ours."""
    with hold_port() as held:  # nobody listens there
        environ = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{held.getsockname()[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_0",
        }
        done = subprocess.run(
            [sys.executable, "-m", "megaladder", "push", str(run), "--to", "hf://o/m"],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3 and "the hub did not take o/m" in done.stderr
    assert "fix: hf auth login" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_not_there_yet_is_no_upload(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(run), "--to", "published/my-model"]) == 0
    assert (tmp_path / "published/my-model/model.safetensors").is_file()
    assert main(["push", str(run), "--to", "hf:/typo://x"]) == 2


def test_damaged_exports_are_refused(run) -> None:
    write_sums(run / "hf/step_10", ["model.safetensors"])
    (run / "hf/step_10/model.safetensors").write_bytes(b"weightz")
    with pytest.raises(Exception, match="fix:"):
        find_model(str(run))
