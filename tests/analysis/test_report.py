"""The report: self-contained, harmless whatever a model wrote, every number in the CSV, missing
parts named."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from megaladder.analysis.report.sections.rollouts import pick, visible
from megaladder.analysis.report.verb import csv_text
from megaladder.rewards.grade import grader_label

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    (
        "</pre></details></main><style>*{display:none}</style><meta http-equiv=refresh"
        " content='0;url=http://evil'>"
    ),
    "{{ 7 * 7 }} {% for x in y %}",
    "left \u202eright-to-left override\u202c \u2066isolate\u2069 \u200f mark",
    "lone \ud800 surrogate, \x00 nul, \x1b[31m escape, \r carriage",
    "A" * 1_000_000,
    "]]> <!-- --> \" ' ` &amp; </script",
    '=HYPERLINK("http://evil")',
]
ALLOWED_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "nav",
        "section",
        "div",
        "span",
        "script",
    ),
    *(
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "a",
        "bdi",
        "pre",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
        "figure",
        "caption",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "button", "input", "select", "option"),
    *("svg", "g", "line", "path", "circle", "rect", "noscript", "form", "label"),
}


class Page(HTMLParser):
    """Tags, attributes, scripts and visible text of a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.text, self._script = [], [], [], [], False
        self.feed(text)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._script = tag == "script"

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        (self.scripts if self._script else self.text).append(data)


@pytest.fixture
def folders(write, tmp_path):
    """An SFT run, a GRPO run with rollouts, three evaluated models; hostile names and texts among
    them."""
    rng = np.random.default_rng(0)
    for run, key in (("sft-a", "held_out_loss"), ("grpo-b", "reward_mean")):
        write(
            f"{run}/metrics.jsonl",
            [
                {
                    "step": i,
                    "loss": 2.0 / i,
                    "lr": 1e-5,
                    "tokens": 1000,
                    "step_s": 2.0,
                    key: 0.1 * i,
                }
                for i in range(1, 9)
            ],
        )
        write(f"{run}/config.yaml", f"model: {{path: {run}}}\nparallel: {{ranks: 2}}\n")
    write(
        "grpo-b/rollouts/step_4.jsonl",
        [
            {
                "id": f"q{i}",
                "problem": "p",
                "gold": "1",
                "responses": [text, "fine"],
                "rewards": [0.0, 1.0],
                "correct": [False, True],
            }
            for i, text in enumerate(HOSTILE)
        ],
    )
    for model, skill in (("m-base", 0.2), ("<b>sft</b>", 0.6), ("=cmd|x", 0.7)):
        for name in ("aime24", "gsm8k"):
            ids = range(60, 90) if name == "aime24" else range(40)
            rows = [
                {
                    "doc": {"id": i, "problem": HOSTILE[i % 8][:500], "answer": "7"},
                    "resps": [["r1", HOSTILE[i % 8], "r3", "r4"]],
                    "exact_matches": (rng.random(4) < skill).astype(int).tolist(),
                    "extracted_answers": ["7", None, "=1+1", "<i>"],
                    "num_tokens": rng.integers(20, 900, 4).tolist(),
                }
                for i in ids
            ]
            write(f"eval/{model}/{name}/samples_{name}.jsonl", rows)
            write(
                f"eval/{model}/{name}/results_{name}.json",
                json.dumps({"protocol": {"n": 4, "temperature": 0.6, "prompt": {"hash": "<u>"}}}),
            )
    return [tmp_path / name for name in ("sft-a", "grpo-b", "eval")]


def build(verb, tmp_path, *arguments):
    done = verb("report", *arguments, "--out", tmp_path / "r.html", with_json=False)
    assert done.status == 0, done.err
    return (tmp_path / "r.html").read_text(encoding="utf-8"), list(
        csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text(encoding="utf-8")))
    )


def test_hostile_text_is_only_text(verb, folders, tmp_path):
    text, _ = build(verb, tmp_path, *folders, "--max-rollouts", 4000)
    page = Page(text)
    assert (
        set(page.tags) <= ALLOWED_TAGS
        and page.tags.count("script") == 2  # data and code
        and page.tags.count("style") == 1
        and page.tags.count("meta") == 4
    )
    assert not [
        a
        for a in page.attributes
        if a[1].startswith("on") or a[2].strip().lower().startswith("javascript:")
    ]
    links = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "action", "xlink:href", "srcset")
    ]
    assert all(value.startswith("#") or value == "data:," for value in links)  # nothing is loaded
    assert not re.search(
        r"url\(|@import|https?://", "".join(re.findall(r"<style>.*?</style>", text, flags=re.S))
    )
    assert not re.search("[<>&]", page.scripts[0])
    shown = "".join(rollout["response"] for rollout in page.data["rollouts"])
    assert (
        "<script>alert(1)</script>" in shown
        and "{{ 7 * 7 }}" in shown
        and "⟨U+202E⟩right-to-left" in shown
        and "⟨U+0000⟩" in shown
    )
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00\x1b\ud800-\udfff]", text)
    assert (
        re.search(r"9\d\d,\d\d\d characters left out", shown)
        and len(text) < 2_500_000
        and max(map(len, text.split("\n"))) < 400_000
    )


def test_only_the_reports_own_script_may_run(verb, folders, tmp_path):
    text, _ = build(verb, tmp_path, *folders)
    policy = next(
        value
        for tag, name, value in Page(text).attributes
        if tag == "meta" and name == "content" and "default-src" in value
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "connect-src" not in policy
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, flags=re.S)[1]
        assert (
            f"{tag}-src"
            f" 'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
            in policy
        )


def test_every_number_is_in_the_csv(verb, folders, tmp_path):
    text, rows = build(verb, tmp_path, *folders)
    assert {row["section"] for row in rows} >= {
        "summary",
        "runs",
        "learning",
        "rewards",
        "accuracy",
        "pass-at-k",
        "budget",
        "rollouts",
    }
    values = {
        f"{float(row[name]):.1f}" for row in rows for name in ("y", "low", "high") if row[name]
    }
    accuracy = re.search(r'<section id="accuracy"[^>]*>.*?</section>', text, flags=re.S)[0]
    shown = re.findall(r'<td[^>]*class="num"[^>]*><bdi>([^<]*)</bdi>', accuracy)
    printed = [number for cell in shown for number in re.findall(r"\d+\.\d", cell)]
    assert len(printed) > 40 and not [number for number in printed if number not in values]
    curve = [
        float(row["y"]) for row in rows if row["figure"] == "loss" and row["series"] == "sft-a"
    ]
    assert curve == [2.0 / i for i in range(1, 9)]


def test_csv_cells_cannot_be_formulas(verb, folders, tmp_path):
    _, rows = build(verb, tmp_path, *folders)
    cells = [value for row in rows for value in row.values()]
    assert "'=cmd|x" in cells and not [
        c for c in cells if c.startswith(("=", "+", "@", "\t", "\r")) or re.match(r"-[^0-9.]", c)
    ]
    assert csv_text("-1+2") == '"\'-1+2"' and csv_text('a"b') == '"a""b"'


def test_the_real_eval_files_are_read(verb, tmp_path):
    """Files as `megaladder eval` writes them: every verdict arrives in report, ladder, compare,
    budget; judged benchmarks are shown."""
    from megaladder.evaluation import lm_eval_format, report
    from megaladder.evaluation.run import Task
    from megaladder.evaluation.store import Record
    from megaladder.rollout.engine import SamplingParams
    from megaladder.types import Problem

    problems = tuple(
        Problem(str(i), (), "7", source="aime24", metadata={"question": f"q{i}"})
        for i in range(60, 90)
    )
    prompts = tuple("p" for _ in problems)
    task = Task(
        "aime24",
        problems,
        prompts,
        tuple((1,) for _ in problems),
        SamplingParams(n=2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=9, seed=1),
    )
    protocol = {
        "decoding": {"temperature": 1.0, "seed": 1},
        "data": {"source": "s", "revision": "r", "num_rows": 30, "problems_sha256": "x"},
        "engine": {"dtype": "bf16"},
        "prompt": {"system": None, "chat_template_sha256": "y"},
        "fingerprint": "ab",
        "grader": grader_label("qwen"),
    }
    for model, right in (("base", lambda i, s: i < 63), ("tuned", lambda i, s: i + s < 85)):
        records = {
            (p.id, s): Record(
                p.id, s, f"answer {s}", [1] * (s + 3), "stop", right(int(p.id), s), "7", "exact"
            )
            for p in problems
            for s in (0, 1)
        }
        scores = report.score(problems, records, 2, 42)
        summary = report.summary_entry(scores, protocol, None)
        folder = tmp_path / "eval" / model / "aime24"
        lm_eval_format.write_samples(folder / "samples_aime24.jsonl", task, records, scores, "ab")
        (folder / "results_aime24.json").write_text(
            json.dumps(lm_eval_format.results_object(task, scores, summary, model))
        )
    judged = tmp_path / "eval" / "tuned" / "hex_phi"
    judged.mkdir()
    (judged / "samples_hex_phi.jsonl").write_text(
        json.dumps({"doc_id": 0, "doc": {"id": "a", "samples": {"exact_matches": [None]}}}) + "\n"
    )
    (judged / "results_hex_phi.json").write_text(
        json.dumps({"results": {"hex_phi": {"name": "hex_phi", "attack_success_rate,none": 0.25}}})
    )
    text, rows = build(verb, tmp_path, tmp_path / "eval")
    found = {
        (row["series"], row["x"]): float(row["y"])
        for row in rows
        if row["section"] == "accuracy" and row["figure"] == "aime24"
    }
    assert found["base", "avg@n"] == pytest.approx(10) and found["tuned", "avg@n"] == pytest.approx(
        100 * 49 / 60
    )
    assert found["base", "mean tokens"] == 3.5
    assert found["base", "undecided samples"] == 0
    assert text.count(grader_label("qwen")) == 4, "accuracy and protocol of two models"
    assert "attack success rate" in text and "temperature 1.0" in text and "answer 1" in text
    ladder = verb("analyze ladder", tmp_path / "eval")
    assert ladder.json["models"]["base"]["avg@n"] == pytest.approx(10) and ladder.err == ""
    tiers = ladder.json["models"]["base"]
    assert (tiers["easy"], tiers["exhard"]) == (25.0, 25.0)  # 60 of the easy, 62 of the exhard
    compared = verb(
        "analyze compare", "--base", tmp_path / "eval" / "base", tmp_path / "eval" / "tuned"
    )
    assert compared.json["comparisons"]["tuned/aime24"]["difference"] == pytest.approx(
        100 * 49 / 60 - 10
    )
    assert f"graded tuned/aime24: {grader_label('qwen')}, 0 undecided each" in compared.out
    cut = verb(
        "analyze budget",
        tmp_path / "eval" / "base" / "aime24" / "samples_aime24.jsonl",
        "--budgets",
        "3,4",
    )
    assert cut.json["accuracy"] == {"3": pytest.approx(0.05), "4": pytest.approx(0.1)}


def test_a_grpo_run_says_who_verified_and_what_stayed_undecided(verb, write, tmp_path):
    write(
        "run/metrics.jsonl",
        [{"step": i, "reward": i / 9, "num_groups": 4, "undecided_left_out": i} for i in (1, 2)],
    )
    write("run/config.yaml", "rollout: {n: 8}\nreward: {kind: auto, extract: first-box}\n")
    packages = {"environment": {"packages": {"megaladder": "9.8"}}}
    write("run/fingerprint.json", json.dumps(packages))
    row = {"id": "p", "prompt": "q", "completion": "r", "correct": True, "kind": "gsm8k"}
    write("run/rollouts/step_1.jsonl", [row, {**row, "kind": "countdown"}])
    text, _ = build(verb, tmp_path, tmp_path / "run")
    assert (
        "run: answers verified as countdown, gsm8k by megaladder 9.8, answers by first-box; 3 of 64"
        " undecided, counted apart from wrong and left out of training." in text
    )


def test_missing_parts_are_named_not_invented(verb, folders, tmp_path):
    text, _ = build(verb, tmp_path, folders[0])
    shown = html.unescape(text)
    assert (
        "Not in this report:" in shown
        and "pass@k: needs eval results" in shown
        and 'id="accuracy"' not in text
    )
    (tmp_path / "empty").mkdir()
    text, _ = build(verb, tmp_path, folders[0], tmp_path / "empty")
    assert "nothing of it is shown" in text
    assert (
        verb("report", tmp_path / "empty", "--out", tmp_path / "x.html", with_json=False).status
        == 2
    )
    assert (
        verb("report", tmp_path / "nowhere", "--out", tmp_path / "x.html", with_json=False).status
        == 2
    )
    assert (
        verb("report", folders[0], "--out", tmp_path / "x.pdf", with_json=False).status == 2
        and not (tmp_path / "x.html").exists()
    )


def test_each_run_says_how_it_ended(verb, folders, tmp_path):
    word = {"attempt": "1", "rank": 1, "host": "node7", "step": 8, "saved_step": 6, "saved": False}
    word |= {"reason": "rank_died", "status": 3, "message": "rank 1 was killed <b>now</b>"}
    (folders[0] / "last_word.json").write_text(json.dumps(word))
    text, rows = build(verb, tmp_path, *folders)
    shown = html.unescape(text)
    assert (
        "a rank was killed (rank 1 on node7); step 8 was finished, step 6 is saved" in shown
        and "no last_word.json" in shown  # the other run
        and "sft-a: rank 1 was killed &lt;b&gt;now" in text
    )
    statuses = [row for row in rows if row["x"] == "exit status"]
    assert [(row["series"], row["y"]) for row in statuses] == [("sft-a", "3"), ("grpo-b", "")]


def test_a_running_runs_torn_line_is_a_note_a_broken_one_an_error(verb, folders, tmp_path):
    metrics = folders[0] / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 9, "lo')
    text, rows = build(verb, tmp_path, folders[0])
    assert (
        "last line is torn" in text and len([row for row in rows if row["figure"] == "loss"]) == 8
    )
    metrics.write_bytes(b'{"step": 1, "loss": 1}\n{"step"\n{"step": 3}\n')
    done = verb("report", folders[0], "--out", tmp_path / "x.html", with_json=False)
    assert done.status == 2 and "metrics.jsonl:2: not JSON" in done.err


def test_results_of_the_verbs_are_shown(verb, write, tmp_path):
    curve = write(
        "a/c.csv", "model,benchmark,step,score,length\nm,b,0,50,10\nm,b,10,30,90\nm,b,20,60,40\n"
    )
    scores = write(
        "a/s.csv",
        "model,group,benchmark,score\nb,math,m,10\nb,other,o,10\nb,non,n,10\nx,math,m,30\nx,other,o,20\nx,non,n,5\n",
    )
    runs = write(
        "a/r.csv",
        "run,pass@1,pass@8,rl\n" + "".join(f"r{i},{i},{i * i % 7},{2 * i}\n" for i in range(8)),
    )
    scaling = write("a/t.csv", "method,setting,tokens,accuracy\nm,a,100,10\nm,b,200,20\n")
    for name, flags in (
        ("trajectory", ("--table", curve)),
        ("transfer", ("--table", scores, "--base", "b", "--sigma", "1,1,1")),
        ("predict", ("--table", runs, "--target", "rl", "--metrics", "pass@1,pass@8")),
        ("scaling", ("--table", scaling)),
    ):
        done = verb(f"analyze {name}", *flags)
        write(f"a/{name}.json", json.dumps(done.json))
    write(
        "a/shift.json",
        json.dumps(
            {
                "kl": 0.1,
                "mean_rank_shift": 2.0,
                "pca_shift": {"distance": None},
                "num_tokens": 3,
                "tokens": "../t/seen.jsonl",
            }
        ),
    )
    tokens = [
        {"token": "<a>", "rank": 1, "kl": 0.0},
        {"token": "\u202eb", "rank": 500, "kl": 2.0, "base_says": '"><x>'},
    ]
    write("t/seen.jsonl", [{"input": "<q>", "tokens": tokens}])
    text, rows = build(verb, tmp_path, tmp_path / "a")
    page = Page(text)
    assert set(page.tags) <= ALLOWED_TAGS
    for section in ("trajectory", "transfer", "predict", "scaling", "shift"):
        assert f'<section id="{section}"' in text and any(
            row["section"] == section for row in rows
        ), section
    assert "dip-and-recovery" in text and ("span", "class", "t4") in page.attributes
    write("a/scaling.json", json.dumps({"methods": {"m": {}}, "points": {"m": [{"tokens": 1}]}}))
    done = verb("report", tmp_path / "a", "--out", tmp_path / "x.html", with_json=False)
    assert done.status == 2 and "scaling.json: looks like a result of analyze scaling" in done.err


def test_rollouts_are_chosen_evenly_and_repeatably():
    from megaladder.analysis.report.blocks import Excerpt, Rollout

    rollouts = [
        Rollout("s", None, str(i), Excerpt(""), Excerpt(""), "", "", i % 10 == 0, None, None, None)
        for i in range(100)
    ]
    chosen = pick(rollouts, 20, 1)
    assert (
        sum(r.correct for r in chosen) == 10
        and chosen == pick(rollouts, 20, 1)
        and len(pick(rollouts, 500, 1)) == 100
    )


def test_visible_text_keeps_what_can_be_read():
    assert (
        visible("naïve 数学 עברית\n\tx", 100) == "naïve 数学 עברית\n\tx"
        and visible("a\u2028b\u0007", 100) == "a⟨U+2028⟩b⟨U+0007⟩"
    )
    cut = visible("x" * 1000, 100)
    assert (
        cut.startswith("x" * 75 + "\n")
        and cut.endswith("x" * 25)
        and "[900 characters left out]" in cut
    )
