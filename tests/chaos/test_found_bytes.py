"""Bytes that once broke a reader: each is read, or refused in words that name what is wrong."""

import io
import json
import struct
from pathlib import Path

import pytest
from chaos.fuzz_caches import _FINDING, _STUDY, _SUMMARY, _sealed
from chaos.fuzz_readers import Case, cases
from chaos.fuzz_wire import _GREETING, _OF_NODE, _frames, _http, _messages

from megaladder.errors import MegaladderError

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
HOST = b" HTTP/1.1\r\nHost: localhost:80\r\nConnection: close\r\n\r\n"
DEEP, HUGE = b"[" * 3000, b"1" + b"0" * 400
NO_DIGITS = {"ops": "done"}


def _doubled_columns() -> bytes:
    import pyarrow

    table = pyarrow.table(
        [["What is 1?"], ["#### 1"], [None]], names=["question", "answer", "answer"]
    )
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


DONE = {"op": "done", "call": 1, "items": [{"id": 0, "ids": ["a"], "text": "", "finish": "stop"}]}
READY = {"op": "ready", "describe": {}, "features": {}}
TYPED = b'{"features": {"question": {"dtype": "string", "None": "Value"}}}'
FOUND = {
    "Arrow stream": _doubled_columns(),
    "yaml": b'a: "\\ud800"\n',
    "study.yaml": b'name: a\ntitle: "\\ud800"\n',
    "import yaml of others": b"stage: sft\nmodel_name_or_path: a\ndataset: true\n",
    "import script of others": b"llamafactory-cli train --model_name_or_path a --dataset a - -\n",
    "dataset_info.json": b'{"one": [1], "two": {"columns": [1], "file_name": 5}}',
    "saved data set's dataset_info.json": TYPED,
    "parameters by headers": struct.pack("<Q", len(DEEP)) + DEEP,
    "teacher's journal": _sealed({"id": "q", "fingerprint": "", "finish_reason": "stop"}),
    "judgements": _sealed({"key": ["a"], "score": 1.0}),
    "followed rows": b'{"step": 1}\n{"loss": 1}\n[1]\n{\n\xff\n',
    "scores while training": b'{"step": 1, "benchmark": "a"}\n',
    "cost of a run": b'{"step": 1, "tokens": %b}\n' % HUGE,
    "held-out losses": b'{"step": 1, "held_out_loss": %b}\n' % HUGE,
    "samples to compare with": b'{"doc": {"id": "q", "samples": {"exact_matches": [{}]}}}\n',
    "summary of a card": json.dumps({"benchmarks": {"a": {**_SUMMARY, "metrics": 5}}}).encode(),
    "shift of a study": b'{"tokens": [{"rank": "a"}]}\n\xff\n',
    "loss of a study": b'{"step": 1, "held_out_loss": {}}\n',
    "thinking of a study": b'{"doc": [1], "num_thinking_tokens": [1]}\n',
    "problems of a finding": b'{"tier": "easy"}\n',
    "page of an analysis": json.dumps(
        {**_STUDY, "findings": [{**_FINDING, "ci95": [1.0], "published": {}}]}
    ).encode(),
    "page of a selection": b'{"stages": [{"stage": "a", "rows_in": 1, "rows_out": %b}]}' % HUGE,
    "page of difficulties": b'{"success_rate": %b}\n' % HUGE,
    "page of rollouts": b'{"id": "q", "prompt": "a", "completion": "b", "reward": NaN}\n',
    "page of samples": b'{"doc": {"id": "q", "samples": {"exact_matches": [1], "num_tokens": [%b]}},'
    b' "resps": [["a"]]}\n' % HUGE,
    "HTTP answer": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"-5\r\nabc\r\n0\r\n\r\n",
    "judge's answer": b"HTTP/1.1 204 No\r\n" + CHUNKED + b"ffffffffffff\r\n",
    "request to watch": b"GET //[" + HOST,
    "engine's messages": _messages(READY, DONE),
    "node's messages": _messages({**_OF_NODE, "message": NO_DIGITS}, {"a": 1}),
    "node's greeting": b"token" + _messages({**_GREETING, "slots": "x"}),
    "grader's frames": _frames({"ready": ["a"]}, [[True, "5", ["exact"], ""]]),
    "reward function's frames": _frames({"batched": True}, {"values": 5}),
    "program's report": b'{"status": "done", "output": "2',
    "sandbox's verdict": b"\xff\xfe" + DEEP,
    "holder of a run folder": b'{"pid": "\\u0000", "host": [1], "started": {}}',
}


@pytest.fixture(scope="module")
def readers() -> dict[str, Case]:
    return cases()


@pytest.mark.parametrize("name", FOUND)
def test_bytes_that_broke_a_reader(name: str, readers: dict[str, Case], tmp_path: Path):
    path = tmp_path / readers[name].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FOUND[name])
    try:
        readers[name].read(path)
    except MegaladderError as error:
        assert "fix:" in str(error) or name in ANSWERS, error


# of these the reader only hears that it was none: another server, node or process is asked
ANSWERS = ("HTTP answer", "node's greeting", "engine's messages")


def test_no_answer_is_read_beyond_its_bound(readers: dict[str, Case], tmp_path: Path, monkeypatch):
    """Nor is one that says that it has no body, and has one in chunks."""
    from megaladder.rollout.remote import http_client

    monkeypatch.setattr(http_client, "MAX_BODY_BYTES", 1 << 20)
    chunk = b"%x\r\n%b\r\n" % (1 << 20, b"a" * (1 << 20))
    for status in (b"200 OK", b"204 No"):
        path = tmp_path / "answer"
        path.write_bytes(b"HTTP/1.1 %b\r\n" % status + CHUNKED + chunk * 8 + b"0\r\n\r\n")
        with pytest.raises(MegaladderError, match="more than 1,048,576 bytes"):
            readers["HTTP answer"].read(path)


def test_half_of_an_answer_is_none(readers: dict[str, Case], tmp_path: Path):
    (tmp_path / "answer").write_bytes(_http(b'{"a": 1}')[:-8] + b"12")
    with pytest.raises(MegaladderError, match="cut short"):
        readers["HTTP answer"].read(tmp_path / "answer")


def test_a_tokenizer_that_its_library_panics_over_is_told(monkeypatch, tmp_path: Path):
    import transformers

    from megaladder.data.chat.tokenizer import load_tokenizer

    class PanicException(BaseException):
        """As PyO3 raises it."""

    def panic(*words: object, **how: object) -> None:
        raise PanicException("range end index 26 out of range for slice of length 13")

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(MegaladderError, match="expected a loadable tokenizer, found Panic"):
        load_tokenizer(tmp_path)
