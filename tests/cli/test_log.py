"""What a run says: the step line, one row a step, sinks that cannot hurt."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from megaladder.events.callback import Callback
from megaladder.log import RunLog, StepMetrics, evaluation_command, format_table
from megaladder.run_dir import RunDir, read_jsonl


def metrics(step: int, **more: object) -> StepMetrics:
    usual = {
        "total_steps": 640,
        "loss": 0.81,
        "lr": 5e-5,
        "grad_norm": 1.2,
        "tokens": 40960,
        "step_s": 2.1,
    }
    return StepMetrics(**{"step": step, **usual, **more})


@pytest.fixture
def run(tmp_path):
    with RunDir(tmp_path / "run", writer=True) as folder:
        yield folder


def test_step_line() -> None:
    full = metrics(
        12,
        mfu=0.4123,
        non_padding_share=0.986,
        memory_bytes=int(4.1 * 1024**3),
        extra={"epoch": 0, "held_out_loss": 0.9},
    )
    assert (
        full.line()
        == "step 12/640  loss 0.8100  lr 5.00e-05  grad 1.200  19,505 tok/s  mfu 41.2%  filled"
        " 98.6%  mem 4.10 GiB  2.10 s  epoch 0  held_out_loss 0.9"
    )
    assert (
        metrics(1, loss=None, grad_norm=None).line()
        == "step 1/640  loss none  lr 5.00e-05  grad none  19,505 tok/s  2.10 s"
    )


def test_rows_are_full_precision_and_never_nan(run) -> None:
    log = RunLog(run, stream=io.StringIO())
    log.step(metrics(1, loss=0.1 + 0.2, extra={"entropy": float("nan")}))
    log.close()
    row = json.loads(run.metrics.read_text(), parse_constant=pytest.fail)
    assert row["loss"] == 0.30000000000000004
    assert row["entropy"] is None
    assert row["mfu"] is None
    assert row["tokens_per_s"] == 40960 / 2.1
    assert {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "mfu"} <= row.keys()


def test_a_resumed_run_has_every_step_once(run) -> None:
    first = RunLog(run, stream=io.StringIO())
    for step in range(1, 6):
        first.step(metrics(step))
        first.held_out(step, 1.0)
    first.close()
    second = RunLog(run, resumed_step=3, stream=io.StringIO())
    assert second.dropped_rows == 2
    for step in (4, 5, 6):
        second.step(metrics(step, loss=9.0))
        second.held_out(step, 2.0)
    second.close()
    for path in (run.metrics, run.held_out):
        assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in read_jsonl(run.metrics)][3:] == [9.0, 9.0, 9.0]


def test_only_rank_zero_speaks(capsys, tmp_path) -> None:
    log = RunLog(None)
    log.start_trackers({"bad": _Raising("on_start")})
    log.info("x")
    log.warn("x")
    log.step(metrics(1))
    log.held_out(1, 0.5)
    log.finish("t", [("a", "b")], "next")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_every_nth_line_and_the_last_one_but_every_row(run) -> None:
    out = io.StringIO()
    log = RunLog(run, every=10, stream=out)
    for step in range(631, 641):
        log.step(metrics(step))
    log.step(metrics(5))
    log.close()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["640/640"]
    assert len(list(read_jsonl(run.metrics))) == 11
    assert run.log_text.read_text().count("step ") == 1


class _Raising(Callback):
    """A tracker that fails at one event and counts what it hears."""

    def __init__(self, event: str):
        self.event, self.heard = event, []

    def _hear(self, event: str) -> None:
        self.heard.append(event)
        if event == self.event:
            raise ConnectionError("no route to host")

    def on_start(self, run) -> None:
        self._hear("on_start")

    def on_step(self, run, row) -> None:
        self._hear("on_step")

    def on_end(self, run, exit_status) -> None:
        self._hear("on_end")


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_end"])
def test_a_failing_tracker_warns_once_and_never_stops_the_run(run, capsys, event: str) -> None:
    bad, good = _Raising(event), _Raising("never")
    (run.path / "config.yaml").write_text("seed: 1\n")
    log = RunLog(run, stream=io.StringIO())
    log.start_trackers({"bad": bad, "good": good})
    for step in (1, 2, 3):
        log.step(metrics(step))
    log.finish("done", [], None)
    assert good.heard == ["on_start", "on_step", "on_step", "on_step", "on_end"]
    assert bad.heard == good.heard[: good.heard.index(event) + 1]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: bad failed at {event} and is called no more: ConnectionError: no route to host"
    ]
    assert len(list(read_jsonl(run.metrics))) == 3


def test_a_console_that_went_away_does_not_stop_the_run(run) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    log = RunLog(run, stream=Gone())
    log.step(metrics(1))
    log.finish("done", [("steps", "1")], "megaladder eval")
    assert "next: megaladder eval" in run.log_text.read_text()


def test_final_table_is_aligned() -> None:
    assert format_table(
        "SFT finished", [("steps", "640"), ("held-out loss", "1.2 → 0.8")]
    ).splitlines() == [
        "------------------------",
        "SFT finished",
        "------------------------",
        "steps          640",
        "held-out loss  1.2 → 0.8",
        "------------------------",
    ]


@pytest.mark.parametrize(
    ("data", "chosen"),
    [
        ("data/gsm8k/train.jsonl", "--benchmark gsm8k --data-dir data"),
        ("traces.parquet", "--benchmark NAME or FILE.jsonl (--benchmark list prints the names)"),
        ("train.jsonl", "--benchmark NAME or FILE.jsonl (--benchmark list prints the names)"),
    ],
)
def test_the_command_after_training_names_the_benchmark_that_the_data_belongs_to(
    data: str, chosen: str
) -> None:
    assert evaluation_command(Path("hf/step_8"), data) == (
        f"megaladder eval --model hf/step_8 {chosen}"
    )
