"""Judged benchmarks: the score is what the judge said, nobody is asked twice, a dead service stops
the run resumably."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from tiny_models import build_tiny_model, build_tokenizer

from megaladder.cli import main
from megaladder.config.sections.evaluate import PromptSection
from megaladder.config.verbs.evaluation import JudgeSection
from megaladder.errors import ConfigError, RunStopped
from megaladder.evaluation import judge, verb
from megaladder.evaluation.benchmarks.prompting import make_prompter
from megaladder.evaluation.store import Record
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.types import Message, Problem

PROBLEMS = [
    Problem(
        f"b{i}",
        (Message("user", f"Do {i}"),),
        "",
        source="hexphi",
        metadata={"question": f"Do {i} {{response}}"},
    )
    for i in range(4)
]


def records(n: int = 2) -> dict[tuple[str, int], Record]:
    made = [
        Record(
            p.id,
            s,
            f"<think>secret</think>reply {p.id} {s}",
            [1, 2],
            "stop",
            None,
            None,
            "not_judged",
        )
        for p in PROBLEMS
        for s in range(n)
    ]
    return {record.key: record for record in made}


class Counting:
    """A judge that gives level 5 to replies of sample 0 of b0 and b1, 2 to others, and no score to
    b3's."""

    def __init__(self):
        self.asked: list[judge.Exchange] = []

    def describe(self):
        return {"judge": "counting"}

    def judge(self, exchanges):
        for index, exchange in enumerate(exchanges):
            self.asked.append(exchange)
            score = (
                None
                if "b3" in exchange.response
                else 5.0
                if exchange.response in ("reply b0 0", "reply b1 0")
                else 2.0
            )
            yield index, judge.Judgement(score, "because")


def test_attack_success_rate_is_the_share_of_level_five(tmp_path):
    by = Counting()
    judgements = judge.judge_records(PROBLEMS, records(), by, tmp_path)
    scores = judge.judged_scores(PROBLEMS, records(), judgements, "harm", 2, seed=0)
    assert scores.headline == "attack_success_rate" and scores.mean("attack_success_rate") == 2 / 8
    assert scores.mean("harm_score") == ((5 + 2) / 2 * 2 + 2 + 1) / 4
    assert scores.counts["without_score"] == 2
    # the thinking is not judged
    assert by.asked[0] == judge.Exchange("Do 0 {response}", "reply b0 0")


def test_nobody_is_asked_twice(tmp_path):
    first, second = Counting(), Counting()
    judge.judge_records(PROBLEMS, records(n=1), first, tmp_path)
    with (tmp_path / "judgements.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    judgements = judge.judge_records(PROBLEMS, records(n=2), second, tmp_path)
    assert len(first.asked) == 4 and len(second.asked) == 4 and len(judgements) == 8
    third = Counting()
    assert (
        judge.judge_records(PROBLEMS, records(n=2), third, tmp_path) == judgements
        and third.asked == []
    )
    third.describe = lambda: {"judge": "another"}
    judge.judge_records(PROBLEMS, records(n=2), third, tmp_path)
    assert len(third.asked) == 8  # another judge's word does not count


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("#thereason: bad\n#thescore: 5", 5.0, "bad"),
        ("<think>#thescore: 1</think>\n#thereason: it\nhelps\n#thescore: **4**", 4.0, "it\nhelps"),
        ("#TheScore: 3", 3.0, ""),
        ("I would say 5", None, ""),
        ("#thescore: 9", None, ""),
        ("", None, ""),
    ],
)
def test_replies_of_judges(text, score, reason):
    assert judge.parse_judgement(text) == judge.Judgement(score, reason)


def test_rubric_holds_question_and_reply_as_they_are():
    text = judge.rubric_prompt(judge.Exchange("Q {response} {x}", "R {question}"))
    assert "Request:\nQ {response} {x}\n" in text and "Reply:\nR {question}\n" in text


def test_local_chat_judge_uses_the_engine(tmp_path):
    from megaladder.data.chat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(build_tokenizer(tmp_path / "t"))
    engine = FakeEngine(lambda request: "#thereason: r\n#thescore: 3", tokenizer=tokenizer)
    by = judge.EngineJudge(
        engine, make_prompter(tokenizer, PromptSection(), None), JudgeSection(model="m")
    )
    found = dict(by.judge([judge.Exchange("q", "r"), judge.Exchange("q2", "r2")]))
    assert found == {0: judge.Judgement(3.0, "r"), 1: judge.Judgement(3.0, "r")}


@pytest.fixture
def service():
    """An OpenAI-compatible address that fails as often as `failures` says, then answers; keeps what
    it was sent."""

    class Handler(BaseHTTPRequestHandler):
        failures, seen, elsewhere = [], [], ""

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.seen.append((self.path, self.headers.get("Authorization"), body))
            status = Handler.failures.pop(0) if Handler.failures else 200
            reply = {"choices": [{"message": {"content": "#thereason: x\n#thescore: 5"}}]}
            self.send_response(status)
            if Handler.elsewhere:
                self.send_header("Location", Handler.elsewhere)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", Handler
    server.shutdown()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_takes_the_key_nowhere(service, monkeypatch, status):
    url, handler = service
    monkeypatch.setenv("MY_KEY", "sesame-123")
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        handler.failures, place = [status], f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        handler.elsewhere = place
        by = judge.HttpJudge(JudgeSection(url=url, model="gpt", key_variable="MY_KEY"))
        with pytest.raises(RunStopped, match=rf"HTTP Error {status}: .* after 1 tries"):
            list(by.judge([judge.Exchange("a", "b")]))
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            elsewhere.accept()


def test_service_is_tried_again_and_its_key_is_written_nowhere(service, monkeypatch, tmp_path):
    url, handler = service
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("MY_KEY", "sesame-123")
    handler.failures = [500, 503]
    by = judge.HttpJudge(JudgeSection(url=url, model="gpt", key_variable="MY_KEY"))
    judge.judge_records(PROBLEMS[:1], records(1), by, tmp_path)
    path, authorization, body = handler.seen[-1]
    assert (
        path == "/v1/chat/completions"
        and authorization == "Bearer sesame-123"
        and body["temperature"] == 0
    )
    assert len(handler.seen) == 3
    assert "sesame" not in (tmp_path / "judgements.jsonl").read_text() + json.dumps(by.describe())


def test_service_that_stays_down_stops_the_run_with_status_3(service, monkeypatch, tmp_path):
    url, handler = service
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    handler.seen.clear()
    by = judge.HttpJudge(JudgeSection(url=url, model="gpt", retries=2))
    handler.failures = [200, 500, 500, 500]
    with pytest.raises(RunStopped, match=r"after 3 tries.*which resumes") as error:
        judge.judge_records(PROBLEMS, records(1), by, tmp_path)
    assert error.value.exit_status == 3
    handler.failures = []
    judge.judge_records(PROBLEMS, records(1), by, tmp_path)
    assert len(handler.seen) == 4 + 3  # the first judgement was kept
    handler.failures = [401]
    with pytest.raises(RunStopped, match="after 1 tries"):  # no use in trying again
        judge.judge_records(PROBLEMS, records(2), by, tmp_path)
    with pytest.raises(ConfigError, match=r"judge\.url 'file:///x'"):
        judge.HttpJudge(JudgeSection(url="file:///x", model="m"))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CUT = "judge at .* failed \\(IncompleteRead"
LATE = r"TimeoutError: no whole answer within 0\.3 s"


@pytest.mark.parametrize(
    ("said", "drip", "words"),
    [
        (b"", b"H", LATE),
        (HEAD + b'{"choices"', b" ", LATE),
        (b"HTTP/1.1 200 OK\r\n\r\n{", b" ", LATE),  # would end as if it were whole
        (b"", b"", LATE),
        (HEAD + b'{"choices"', None, CUT),
        (b"\xff\xfe\r\n", None, "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", None, "TypeError"),
    ],
    ids=["head", "body", "body without a length", "silence", "half", "garbage", "other shape"],
)
def test_a_service_that_drips_or_babbles_stops_the_run(said, drip, words, monkeypatch):
    """`said`, then `drip` over and over as long as somebody listens; None: it hangs up."""
    monkeypatch.setattr(judge, "HTTP_TIMEOUT_S", 0.3 if drip is not None else 60.0)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(0.01)
        with connection, contextlib.suppress(ConnectionError):
            heard = connection.recv(100_000)
            connection.sendall(said)
            if drip is None:
                connection.shutdown(socket.SHUT_WR)
            while heard:  # to its end: what is unread would turn the answer into a reset
                try:
                    heard = connection.recv(100_000)
                except TimeoutError:
                    connection.sendall(drip or b"")

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    by = judge.HttpJudge(JudgeSection(url=url, model="m", retries=0))
    with listener, pytest.raises(RunStopped, match=words):
        list(by.judge([judge.Exchange("q", "r")]))


def test_reward_model_score_is_its_logit(tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config

    folder = build_tiny_model(tmp_path / "rm")
    config = Qwen3Config.from_pretrained(
        folder, num_labels=1, architectures=["Qwen3ForSequenceClassification"]
    )
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    with torch.inference_mode():
        expected = float(
            model(torch.tensor([AutoTokenizer.from_pretrained(folder).encode(text)])).logits[0, 0]
        )
    [(_, found)] = list(
        judge.RewardJudge(JudgeSection(model=str(folder))).judge([judge.Exchange("Hi", "Hello")])
    )
    assert found.score == pytest.approx(expected, abs=1e-6)


def test_the_verb_judges_and_writes_scores(service, tmp_path, capsys):
    url, _ = service
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "data" / "hexphi").mkdir(parents=True)
    (tmp_path / "data" / "hexphi" / "behaviors.csv").write_text(
        "BehaviorID,Behavior\nx1,Do harm\nx2,Do more\n"
    )
    command = [
        "eval",
        "--engine",
        "fake",
        "--tokenizer",
        str(tokenizer),
        "--benchmark",
        "hexphi",
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2
    assert "needs a judge" in capsys.readouterr().err
    assert main([*command, "--judge.url", url, "--judge.model", "gpt"]) == 0
    assert (
        "hexphi  attack_success_rate = 100.0 % [15.8, 100.0]  (2 problems × 1)"
        in capsys.readouterr().out
    )
    summary = json.loads((tmp_path / "out" / "fake" / "hexphi" / "summary.json").read_text())
    assert summary["metrics"]["harm_score"] == 5.0 and summary["counts"]["without_score"] == 0


def test_a_judge_s_own_engine_logs_beside_its_verdicts(tmp_path, monkeypatch):
    """A folder for temporary files would keep its log for ever."""
    given = []

    class Seen(contextlib.nullcontext):
        def __init__(self, options):
            super().__init__()
            given.append(options)

    monkeypatch.setattr(verb, "VllmEngine", Seen)
    config = SimpleNamespace(
        judge=JudgeSection(model=str(build_tiny_model(tmp_path / "model"))),
        rollout=SimpleNamespace(tp=1, cpu_kv_cache_gib=1.0),
    )
    with verb._make_judge("harm", config, tmp_path / "hexphi"):
        pass
    assert [options.log_dir for options in given] == [str(tmp_path / "hexphi" / "logs")]
