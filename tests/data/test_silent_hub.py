"""A hub that cannot be reached, or takes a request and says nothing: told within its own patience."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import environment
from fake_hub import FakeHub

SCRIPTS = {
    "commit": "from megaladder.data.sources.hub import resolve_commit; resolve_commit('a/b')",
    "push": "from megaladder.cli import main; sys.exit(main(['push', sys.argv[1], '--to', 'hf://a/b']))",
}


def run(what: str, hub: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script with `hub` as its hub, which gets 0.2 s for an answer."""
    (folder / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / "model" / name).write_text('{"model_type": "qwen3"}')
    (folder / "model" / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    start = "import sys; import megaladder.data.sources.hub as hub; hub.HUB_TIMEOUT_S = 0.2; "
    with FakeHub({}) as other:
        variables = {**other.environment(folder), "HF_ENDPOINT": hub, "HF_TOKEN": "hf_none"}
    command = [sys.executable, "-c", start + SCRIPTS[what], str(folder / "model")]
    env = {**os.environ, **environment(), **variables}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("listens", [True, False], ids=["silent", "not there"])
def test_a_hub_that_says_nothing_is_told(what, listens, tmp_path):
    with socket.socket() as hub:
        hub.bind(("127.0.0.1", 0))
        if listens:
            hub.listen()
        done = run(what, f"http://127.0.0.1:{hub.getsockname()[1]}", tmp_path)
    how = "timed out" if listens else "Connection refused"
    if what == "commit":
        assert "DataError: a/b: expected the hub to say" in done.stderr, done.stderr
    else:
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        assert "the hub did not take a/b" in done.stderr and how in done.stderr
