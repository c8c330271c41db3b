"""The numbers of the page: rounded once, in one place; curves thinned by a stated rule; files of
metrics read on from where they were left."""

from __future__ import annotations

import ast
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import megaladder.analysis.report as report
from megaladder.analysis.report import formats
from megaladder.analysis.report.blocks import Excerpt, Rollout
from megaladder.analysis.report.charts import Chart, Encoder, Series, points_a_line, thin
from megaladder.analysis.report.metrics import Metrics, Tail, stop_at
from megaladder.analysis.report.sections.curves import group_of
from megaladder.analysis.report.sections.rollouts import fit
from megaladder.analysis.report.svg import signed_log
from megaladder.errors import DataError

FOLDER = Path(report.__file__).parent
# coordinates of drawings, and of the axis of a chart, are no numbers that a reader sees
APART = {"formats.py", "svg.py", "charts.py"}


def test_numbers_are_rounded_in_one_module():
    """No other module of the page formats a float, so none can round what was rounded."""
    found = []
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            spec = ast.unparse(node.format_spec) if _formats(node) else ""
            rounds = isinstance(node, ast.Call) and ast.unparse(node.func) in ("round", "format")
            if rounds or any(f".{n}{kind}" in spec for n in range(10) for kind in "feg%"):
                found.append(f"{path.name}:{node.lineno}")
    assert [place for place in found if place.split(":")[0] not in APART] == []


def _formats(node):
    return isinstance(node, ast.FormattedValue) and node.format_spec is not None


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.amount(1234.49), "1.234k"),
        (formats.amount(999_999), "1M"),  # not 1000k
        (formats.amount(12.5), "12.5"),
        (formats.amount(None), "–"),
        (formats.amount(1.23456e17), "1.235e+17"),
        (formats.fixed(0.05), "0.1"),
        (formats.fixed(math.nan), "–"),
        (formats.percent(0.12345), "12.3 %"),
        (formats.signed_span((-1.25, 3.0)), "[-1.2, +3.0]"),
        (formats.span(None), "–"),
        (formats.hours(1.0, "NVIDIA H200"), "1 NVIDIA H200-h"),
        (formats.mean_std(0.5, 0.25), "0.50 ± 0.25"),
        (formats.clock(0.42), "0.4 s"),
        (formats.clock(59.7), "1 min 00 s"),
        (formats.clock(7384), "2 h 03 min"),
        (formats.clock(200_000), "2 d 07 h"),
        (formats.clock(math.inf), "–"),
        (formats.chart_number(0.123456), "0.12346"),
        (formats.chart_number(math.inf), "null"),
    ],
)
def test_formats(shown, expected):
    assert shown == expected


@given(st.floats(min_value=1e-12, max_value=1e14))
def test_an_amount_is_within_half_a_unit_of_its_last_digit(value):
    text = formats.amount(value)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1.0)
    size = float(text.rstrip("kMGT")) * scale
    half = 0.5 * 10 ** (math.floor(math.log10(value)) - 3)
    assert abs(size - value) <= half * (1 + 1e-6)


def test_a_line_of_means_keeps_sum_and_says_how_many_steps():
    series = Series("a", [(float(i), float(i * i)) for i in range(1000)])
    short = thin(series, 400)
    assert short.every == 3 and len(short.points) == 334
    assert short.points[0] == (1.0, pytest.approx(5 / 3))
    weights = [3.0] * 333 + [1.0]
    total = sum(w * y for w, (_, y) in zip(weights, short.points, strict=True))
    assert total == pytest.approx(sum(y for _, y in series.points))
    assert thin(series, 1000) is series
    dots = Series("a", series.points, line=False)
    assert thin(dots, 10) is dots


def test_points_of_a_page_are_shared_out():
    assert points_a_line(1) == points_a_line(300) == 400
    assert points_a_line(4000) == 30 and points_a_line(10**6) == 16


def test_charts_as_json():
    encoder = Encoder(400)
    bounds = [(0.5, 1.5), None, (2.5, 3.5)]
    curves = [
        Series("<b>", [(1, 1.0), (2, 2.0), (3, math.inf)], 9, bounds),
        Series("b", [(1, 4.0), (2, 5.0), (3, 1234567.0)]),
        Series("dots", [(3, 1.0), (1, 2.0)], labels=["three", "one"], line=False),
        Series("none", []),
    ]
    assert encoder.add(Chart("t", "step", "y", curves, y_range=(0, 1))) == 0
    assert encoder.add(Chart("t", "k", "y", [Series("c", [(i, 1.0) for i in range(9)])])) == 1
    data = json.loads(encoder.text())
    assert data["xs"] == [[1, 2, 3], [1, 3], {"from": 0, "by": 1, "n": 9}]
    first, second, dots = data["charts"][0]["series"]
    assert (first["n"], first["s"], first["v"]) == ("<b>", 1, [1, 2, None])
    assert (first["lo"], first["hi"]) == ([0.5, None, 2.5], [1.5, None, 3.5])
    assert second["x"] == first["x"] and second["v"][2] == 1.2346e6
    assert dots["dots"] and (dots["v"], dots["labels"]) == ([2, 1], ["one", "three"])
    assert data["charts"][0]["range"] == [0, 1]


@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats()), max_size=30))
def test_any_numbers_can_be_a_chart(points):
    encoder = Encoder(16)
    encoder.add(Chart("t", "x", "y", [Series("s", [(float(x), y) for x, y in points])]))
    json.loads(encoder.text(), parse_constant=lambda name: pytest.fail(name))


def test_signed_log():
    assert signed_log(-99) == -2 and signed_log(0) == 0


def test_each_key_has_one_section():
    sections = {
        "loss": "learning",
        "tokens_per_s": "learning",
        "held_out_loss": "learning",
        "engine_restarts": "learning",
        "reward": "rewards",
        "old_kl": "rewards",
        "mismatch_k3": "mismatch",
        "correction_weight": "mismatch",
        "rollouts_s": "phases",
    }
    assert {key: group_of(key).id for key in sections} == sections


def test_texts_share_the_room_that_there_is():
    def rollout(text):
        return Rollout("s", 1, "p", Excerpt(""), Excerpt(text), "", "", None, None, None, None)

    short, long = [rollout("x" * 100)] * 10, [rollout("y" * 5000)] * 10
    kept, cut = fit([*short, *long], 100_000)
    assert cut is None and kept == [*short, *long]
    kept, cut = fit([*short, *long], 21_000)
    assert cut == 2000 and kept[:10] == short
    assert all(r.response.left_out == 3000 for r in kept[10:])


@given(st.text(max_size=300), st.integers(4, 320), st.integers(4, 320))
def test_a_text_that_is_cut_twice_counts_what_is_left_out(text, first, second):
    once = Excerpt.of(text, first)
    twice = once.cut(second)
    for excerpt in (once, twice):
        assert len(excerpt.head) + len(excerpt.tail) + excerpt.left_out == len(text)
        assert text.startswith(excerpt.head) and text.endswith(excerpt.tail)
    assert len(twice.head) + len(twice.tail) <= second


# ---- growing files


def rows_of(*steps, **values):
    return b"".join(
        json.dumps({"step": s, "loss": float(s), **values}).encode() + b"\n" for s in steps
    )


def test_only_what_is_new_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path, stop_at)
    assert not tail.read()  # a run that begins later
    path.write_bytes(rows_of(*range(1, 1001)))
    assert tail.read() and not tail.read()
    before = tail.lines.read_bytes
    with path.open("ab") as file:
        file.write(rows_of(1001)[:-9])
    assert not tail.read() and tail.lines.torn
    with path.open("ab") as file:
        file.write(rows_of(1001)[-9:])
    assert tail.read() and not tail.lines.torn
    # the torn line twice, the rest never again
    assert tail.lines.read_bytes - before < 3 * len(rows_of(1001))
    steps, values = tail.columns.curve("loss")
    assert steps.tolist() == list(range(1, 1002)) and values[-1] == 1001.0


def test_a_file_that_was_rewound_or_removed_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(rows_of(1, 2, 3, 4))
    tail = Tail(path, stop_at)
    tail.read()
    other = tmp_path / "other"
    other.write_bytes(rows_of(1, 2) + rows_of(3, 4, 5, loss=0.5))
    os.replace(other, path)  # as a resumed run drops rows
    assert tail.read()
    assert tail.columns.curve("loss")[1].tolist() == [1.0, 2.0, 0.5, 0.5, 0.5]
    path.write_bytes(rows_of(7))  # shorter, same file
    assert tail.read() and tail.columns.curve("loss")[0].tolist() == [7]
    path.write_bytes(rows_of(8, 9))  # longer, same file
    assert tail.read() and tail.columns.curve("loss")[0].tolist() == [8, 9]
    path.unlink()
    assert tail.read() and not len(tail.columns.steps) and not tail.read()


def test_columns_of_rows_that_differ(tmp_path):
    lines = [
        {"step": 1, "a": 1},
        {"step": 2, "b": True, "c": "x"},
        {"step": 3, "a": None, "d": 10**400},
    ]
    lines += [{"step": 2, "a": 5.5}, {"step": 4, "a": math.nan}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "held_out.jsonl").write_bytes(rows_of(0, 4, held_out_loss=2.0))
    metrics = Metrics.of(tmp_path)
    assert metrics.read() and metrics.keys == ["a", "d", "loss", "held_out_loss"]
    steps, values = metrics.curve("a")
    assert steps.tolist() == [1, 2] and values.tolist() == [1.0, 5.5]
    assert metrics.last("a") == 5.5 and metrics.last("none") is None and metrics.total("a") == 6.5
    assert metrics.last_step == 4 and metrics.curve("held_out_loss")[0].tolist() == [0, 4]
    assert np.isfinite(metrics.curve("d")[1]).all()


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"loss": 1}', '{"step": true}', '{"step": 1e3}', "[" * 9999]
)
def test_a_broken_line_is_told_with_its_place(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: .*fix: delete that line"):
        Metrics.of(tmp_path).read()
