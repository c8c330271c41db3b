"""Hub ids with configuration, split and revision, `data get`, and the ends of answers of a model on
the hub, through the real `datasets` and `huggingface_hub`, against a hub on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from fake_hub import COMMIT, FakeHub
from pyarrow import parquet

CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train-*}, {split: test, path: main/test-*}]
- config_name: socratic
  data_files: [{split: test, path: socratic/test-*}]
---
"""


def table(*questions: str) -> bytes:
    rows = [{"question": text, "answer": f"so\n#### {i}"} for i, text in enumerate(questions)]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "main/train-00000-of-00002.parquet": table("train a", "train b"),
    "main/train-00001-of-00002.parquet": table("train c"),
    "main/test-00000-of-00001.parquet": table("test a"),
    "socratic/test-00000-of-00001.parquet": table("socratic a", "socratic b"),
}
SCRIPT = """
import json, sys
from megaladder.cli import main
from megaladder.data.sources.find import SourceSpec
from megaladder.data.sources.source import open_source
for given in json.loads(sys.argv[1]):
    try:
        rows = open_source(SourceSpec("openai/gsm8k", **given)).rows()
        print("ROWS", json.dumps([row.data["question"] for row in rows]))
    except Exception as error:
        print("ROWS", json.dumps([type(error).__name__, str(error)]))
from types import SimpleNamespace
from megaladder.data.chat.stops import stop_token_ids
bare = SimpleNamespace(chat_template=None, eos_token_id=1)
for model, revision in (("org/tiny", "main"), ("org/bare", None), ("org/tiny", "f" * 40)):
    try:
        print("STOPS", json.dumps(stop_token_ids(bare, model, revision)))
    except Exception as error:
        print("STOPS", json.dumps([type(error).__name__]))
print("STATUS", main(["data", "get", "gsm8k", "--out", sys.argv[2], "--revision", "main"]))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    models = {
        "org/tiny": {"generation_config.json": b'{"eos_token_id": [7, 9]}'},
        "org/bare": {"config.json": b"{}"},
    }
    with FakeHub({"datasets/openai/gsm8k": FILES, **models}) as hub:
        yield hub


def test_what_a_hub_id_means(hub: FakeHub, tmp_path: Path) -> None:
    asked = [
        {"config": "main", "revision": COMMIT},
        {"config": "main", "split": "test", "revision": COMMIT},
        {"config": "socratic", "revision": COMMIT},
        {"config": "main", "split": "dev", "revision": COMMIT},
        {"revision": COMMIT},
        {"config": "main", "revision": "f" * 40},
        {"config": "main"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked), str(tmp_path / "out")],
        env={**os.environ, **hub.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "STATUS 0" in done.stdout, done.stdout + done.stderr + "\n".join(hub.asked)
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("ROWS")]
    assert found[:3] == [
        ["train a", "train b", "train c"],
        ["test a"],
        ["socratic a", "socratic b"],
    ]
    for (name, message), expected in zip(
        found[3:],
        (
            "expected the split 'dev', found test, train; fix: data.split",
            "data.config where that error lists several",
            f"at {'f' * 40}: expected a data set that can be downloaded",
            "data.revision set to a commit",
        ),
        strict=True,
    ):
        assert name == "DataError" and expected in message
    stops = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("STOPS")]
    assert stops == [[1, 7, 9], [1], ["ModelError"]]
    (line,) = (tmp_path / "out" / "gsm8k" / "test.jsonl").read_text().splitlines()
    assert json.loads(line)["question"] == "test a"
    source = json.loads((tmp_path / "out" / "gsm8k" / "source.json").read_text())
    assert source == {"repository": "openai/gsm8k", "revision": COMMIT, "rows": 1}
