"""A real SFT run on three sources by weight over two epochs, killed with SIGKILL inside both: the
samples come in the order of a run that nobody disturbed, and their counts are exact."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import yaml
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

# rows and weight of each source; seven steps of eight samples are an epoch of 60 rows
PARTS = {"a": (10, 5), "b": (20, 3), "c": (30, 2)}
STEPS = 14


def write_run(folder: Path) -> Path:
    """The configuration of the run; its model and its three files beside it."""
    mixture = []
    for name, (rows, weight) in PARTS.items():
        path = folder / f"{name}.jsonl"
        lines = [
            {"id": f"{name}{i}", "question": f"{name}: what is {i}+1?", "answer": f"{i + 1}"}
            for i in range(rows)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        mixture.append({"source": str(path), "weight": weight})
    config = {
        "model": {"path": str(build_tiny_model(folder / "model", hidden=32))},
        "data": {"mixture": mixture, "seq_length": 128, "cache_dir": str(folder / "cache")},
        "train": {"global_batch_size": 8, "epochs": 2},
        "optim": {"lr": 1e-2},
        "checkpoint": {"every": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def run_sft_in_fork(config: Path, run_dir: Path, fault: str = "") -> int:
    """The exit status, or minus the signal; each step's sample ids are added to `order.jsonl`."""

    def run() -> int:
        from megaladder.config.resolve import resolve
        from megaladder.config.sft import SftConfig
        from megaladder.train.sft import run_sft
        from megaladder.train.supervised.report import SftReport

        plain = SftReport.record

        def recorded(self, step, result, stats) -> None:
            row = {"step": step, "names": self._data.names(stats.sample_ids)}
            with (run_dir.parent / "order.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            plain(self, step, result, stats)

        SftReport.record = recorded
        os.environ["MEGALADDER_FAULT"] = fault
        return run_sft(resolve(SftConfig, [str(config), "--run-dir", str(run_dir)], prog="test"))

    return run_in_fork(run, stdout=Path(os.devnull), stderr=run_dir.parent / "stderr.txt")


def order_of(folder: Path) -> list[tuple[int, list[str]]]:
    rows = map(json.loads, (folder / "order.jsonl").read_text().splitlines())
    return [(row["step"], row["names"]) for row in rows]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows]


def test_a_mixture_of_three_sources_goes_on_in_its_order(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run_sft_in_fork(config, whole / "run") == 0, (whole / "stderr.txt").read_text()
    # in steps 6 and 12, two after a checkpoint
    for fault in ("update:6:SIGKILL", "update:8:SIGKILL"):
        assert run_sft_in_fork(config, killed / "run", fault) == -9
    assert run_sft_in_fork(config, killed / "run") == 0, (killed / "stderr.txt").read_text()

    expected = dict(order_of(whole))
    assert list(expected) == list(range(1, STEPS + 1))
    assert [step for step, _ in order_of(killed)] == [*range(1, 6), *range(5, 12), *range(11, 15)]
    assert all(names == expected[step] for step, names in order_of(killed))
    assert losses(killed / "run") == losses(whole / "run")

    seen = [name for names in expected.values() for name in names]
    assert Counter(name[0] for name in seen) == {"a": 56, "b": 34, "c": 22}
    # nothing of a source repeats before all of it was seen
    for part, (rows, _) in PARTS.items():
        times = Counter(name for name in seen if name[0] == part)
        assert len(times) == min(rows, sum(times.values()))
        assert max(times.values()) - min(times.values()) <= (len(times) == rows)
