"""The live page: what it shows, that it reads on and never writes, and who may ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

from waiting import wait_until

from megaladder.analysis.report.collect import train_run
from megaladder.analysis.report.metrics import Metrics, stop_at
from megaladder.cli import main
from megaladder.console import QUIET, VOICE
from megaladder.watch.live import Live, changes
from megaladder.watch.now import standing
from megaladder.watch.server import WatchServer

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"


def write_run(folder, steps=3, grpo=True, reason="finished"):
    """A run folder with metrics, rollouts and a last word."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text("grpo: {}\n" if grpo else "train: {loss: sft}\n")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(row(step)) + "\n")
    write_rollouts(folder, 1)
    word = {"reason": reason, "status": 0 if reason == "finished" else None, "message": ""}
    word |= {"attempt": "1", "rank": 0, "host": "elsewhere", "pid": 1, "started": "1"}
    word |= {"step": steps, "saved": True, "saved_step": steps, "time": "now"}
    (folder / "last_word.json").write_text(json.dumps(word))
    return folder


def row(step):
    numbers = {"loss": 1 / step, "reward": step / 9, "step_s": 2.0, "mismatch_mean": step * 1e-6}
    return {"step": step, "total_steps": 10, **numbers, "rollouts_s": 1.5, "update_s": 0.5}


def write_rollouts(folder, step):
    rows = [
        {
            "step": step,
            "id": f"p{i}",
            "prompt": f"question {i}",
            "completion": HOSTILE if i == 0 else f"answer {i}",
            "gold": "1",
            "reward": i / 4,
            "correct": i > 1,
            "num_tokens": 3,
            "finish_reason": "length" if i == 3 else "stop",
        }
        for i in range(4)
    ]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "rollouts" / f"step_{step}.jsonl").write_text(text)


@contextmanager
def served(*folders):
    """A server of the folders, and a function that asks it: name, headers → status, headers, body."""
    live = Live(tuple(map(str, folders)))
    with WatchServer(live, tuple(map(str, folders)), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, lambda name, **headers: ask(server, f"/{server.token}/{name}", **headers)
        finally:
            server.shutdown()
            thread.join()
            live.wait_until_built()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def state(get, have=""):
    return json.loads(get(f"state?have={have}")[2])


def html_of(parts):
    return {part["id"]: part.get("html") for part in parts}


def test_the_page_and_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr("megaladder.watch.live.FRESH_S", 0.0)
    run = write_run(tmp_path / "runs" / "a")
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    with served(tmp_path / "runs") as (server, get):
        status, headers, page = get("")
        assert status == 200 and 'data-live="yes"' in page and "connect-src &#39;self&#39;" in page
        assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
        server.live.wait_until_built()
        first = state(get)["parts"]
        server.live.wait_until_built()
        first = state(get)["parts"]
        sections = [part["id"] for part in first]
        assert sections[0] == "now" and {"learning", "rewards", "mismatch", "phases"} < {*sections}
        assert "3 of 10" in html_of(first)["now"] and "finished" in html_of(first)["now"]
        have = ",".join(f"{p['id']}:{p['digests']['html']}:{p['digests']['charts']}" for p in first)
        again = [p for p in state(get, have)["parts"] if p["id"] != "now"]  # seconds pass
        assert all("html" not in part and "charts" not in part for part in again)
        assert sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*")) == before

        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(4)) + "\n" + '{"step": 5, "lo')
        news = {p["id"]: p for p in state(get, have)["parts"]}
        assert "4 of 10" in news["now"]["html"]
        assert "html" not in news["learning"], "only the points are new"
        curve = json.loads(news["learning"]["charts"])["charts"][0]["series"][0]
        assert curve["v"] == [1, 0.5, 0.33333, 0.25]


def test_runs_that_begin_later_are_rewound_or_go(tmp_path, monkeypatch):
    monkeypatch.setattr("megaladder.watch.live.FRESH_S", 0.0)
    live = Live((str(tmp_path / "a"), str(tmp_path / "b")))
    assert "not there yet" in live.parts()[0].html
    run = write_run(tmp_path / "a", reason="running")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("train: {}\n")
    (tmp_path / "b" / "last_word.json").write_bytes((run / "last_word.json").read_bytes())
    now = live.parts()[0].html
    assert "3 of 10" in now and "running" in now and now.count("<tr>") == 3
    assert "14.0 s" not in now and "14 s" in now, "seven steps of two seconds are left"
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "new").write_bytes(lines[0])
    os.replace(tmp_path / "new", run / "metrics.jsonl")
    assert "1 of 10" in live.parts()[0].html
    for path in [*run.rglob("*")][::-1]:
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
    assert "not there yet" in live.parts()[0].html
    (tmp_path / "b" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1}\n[]\n{"step": 2, "loss": 2}\n'
    )
    parts = {part.id: part.html for part in live.parts()}
    assert "metrics.jsonl:2: expected a JSON object" in parts["notes"], (
        "a broken line stops nothing"
    )
    live.wait_until_built()


def test_what_long_sections_show_comes_after_them(tmp_path, monkeypatch):
    monkeypatch.setattr("megaladder.watch.live.FRESH_S", 0.0)
    live = Live((str(write_run(tmp_path / "a")),))
    live.parts()
    live.wait_until_built()
    assert "runs" in [part.id for part in live.parts()]
    saved = [section.id for section in live.sections()]
    assert (
        saved[0] == "now" and "rollouts" in saved and saved.index("runs") < saved.index("learning")
    )


def test_a_hung_run_is_told_from_a_slow_one(tmp_path):
    run = train_run(
        write_run(tmp_path / "a", reason="running"), Metrics.of(tmp_path / "a", stop_at)
    )
    run.metrics.read()
    wrote = max(path.stat().st_mtime for path in (tmp_path / "a").glob("*"))
    assert standing(run, wrote + 30).state == "running"
    assert standing(run, wrote + 30).left_s == 14.0
    assert standing(run, wrote + 90).state == "nothing new for 1 min 30 s"
    assert standing(run, wrote + 90).left_s is None
    beats = tmp_path / "a" / ".heartbeats"
    beats.mkdir()
    beat = {"host": "h", "pid": 1, "turns": 1, "timeout_s": 9.0, "step": 1, "saved_step": None}
    for rank, doing in enumerate(("update", "all-reduce")):
        said = {**beat, "rank": rank, "doing": doing, "doing_s": 8.0, "number": 1, "parent": 1}
        (beats / f"rank_{rank}.json").write_text(json.dumps(said))
        os.utime(beats / f"rank_{rank}.json", (wrote - 20 * rank, wrote - 20 * rank))
    assert standing(run, wrote + 1).state == "rank 1 is silent for 20 s, all-reduce"
    assert standing(run, wrote + 40).state == "no sign of life for 40 s"


def test_rollouts_are_found_newest_first(tmp_path):
    run = write_run(tmp_path / "a")
    write_rollouts(run, 12)
    (run / "rollouts" / "step_13.jsonl").write_text('{"half')

    with served(run) as (_, get):
        get("state")

        def found(query):
            answer = json.loads(get(f"rollouts?{query}")[2])
            return [(one["step"], one["problem"]) for one in answer["rollouts"]], answer

        rows, answer = found("")
        assert rows[0] == (12, "p0") and len(rows) == 8
        assert answer["sources"] == [{"name": "a", "steps": [1, 12, 13]}]
        assert found("step=1&verdict=right")[0] == [(1, "p2"), (1, "p3")]
        assert found("cut=yes&step=12")[0] == [(12, "p3")]
        assert found("least=0.2&most=0.3&text=ANSWER+1")[0] == [(12, "p1"), (1, "p1")]
        assert found("problem=p2&source=a&step=12")[0] == [(12, "p2")]
        assert found("source=../../etc/passwd")[0] == []
        # lone controls are shown as symbols
        assert answer["rollouts"][0]["response"].startswith("</script><img") and (
            answer["rollouts"][0]["response"].endswith("⟨U+202E⟩")
        )


def test_save_gives_the_page_of_the_report(tmp_path):
    run = write_run(tmp_path / "a")
    with served(run) as (server, get):
        get("state")
        server.live.wait_until_built()
        status, headers, page = get("save")
    assert status == 200 and headers["Content-Disposition"] == 'attachment; filename="report.html"'
    assert "connect-src" not in page and "data-live" not in page and 'id="now"' in page
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )
    assert len(data["rollouts"]) == 4 and "<img" not in page
    assert any("<img" in rollout["response"] for rollout in data["rollouts"])


def test_only_this_machines_browser_with_the_secret_is_answered(tmp_path):
    run = write_run(tmp_path / "a")
    (tmp_path / "secret.txt").write_text("secret")
    with served(run) as (server, get):
        assert server.server_address[0] == "127.0.0.1"
        good = f"127.0.0.1:{server.server_port}"
        assert get("", Host=good)[0] == get("", Host=f"localhost:{server.server_port}")[0] == 200
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", ""):
            assert get("", Host=host)[0] == 403, host
        token = server.token
        paths = [
            "/",
            "/state",
            f"/{token}",
            f"/{token[:-1]}/",
            f"/{token}x/state",
            "//",
            "/%C3%A9/state",
        ]
        paths += [
            f"/{token}/../secret.txt",
            f"/{token}/..%2fsecret.txt",
            f"/{token}/%2e%2e/secret.txt",
        ]
        paths += [f"/{token}/state/x", f"/{token}//etc/passwd", f"/{token}/metrics.jsonl"]
        for path in paths:
            status, _, body = ask(server, path)
            assert (status, body) == (404, "Not Found\n"), path
        assert ask(server, f"/{token}/state", method="POST")[0] == 501


def test_changes_are_those_of_the_page_that_asks():
    from megaladder.analysis.report.render import Part

    part = Part("a", "A", "<p>1</p>", "{}", "")
    whole = changes([part], {})[0]
    digests = (whole["digests"]["html"], whole["digests"]["charts"])
    assert "html" in whole and "html" not in changes([part], {"a": digests})[0]
    assert "html" in changes([part], {"a": ("other", digests[1])})[0]


def test_the_verb_ends_with_ctrl_c(tmp_path):
    """The address is printed, the page is there, Ctrl-C ends it in good order."""
    run = write_run(tmp_path / "a")
    command = [
        sys.executable,
        "-m",
        "megaladder",
        "watch",
        str(run),
        str(tmp_path / "later"),
        "--quiet",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert "not there yet" in lines[0]
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/\S{20,}/ ", lines[1])[1])

        def is_up():
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/")
            return connection.getresponse().status == 404

        wait_until(is_up, "the server's answer")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_nothing_is_said_while_it_waits_for_a_browser(tmp_path, monkeypatch):
    monkeypatch.delenv(QUIET, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    told = []
    monkeypatch.setattr(WatchServer, "serve_forever", lambda _server: told.append(VOICE._tasks))
    assert main(["watch", str(write_run(tmp_path / "a"))]) == 0
    assert told == [[]]


def test_words_where_it_cannot_start(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    assert main(["watch", str(run / "metrics.jsonl")]) == 2
    assert "fix: megaladder watch" in capsys.readouterr().err
    assert main(["watch"]) == 2
    assert "fix: megaladder watch RUN_DIR" in capsys.readouterr().err
    with served(run) as (server, _):
        assert main(["watch", str(run), "--port", str(server.server_port)]) == 2
    assert "fix: --port 0" in capsys.readouterr().err
