"""The benchmark runs end to end without a GPU, reports missing peers as such, and refuses to invent
figures."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest


def run(repository, *arguments: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "megaladder.tools.bench_kernels",
        "--device",
        "cpu",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=240)


@pytest.mark.slow  # it compiles
def test_table_of_a_small_shape(repository, tmp_path):
    out = tmp_path / "bench.csv"
    sizes = ["--tokens", "24", "--hidden", "16", "--vocab", "64", "--shards", "2", "--rounds", "2"]
    # compiling takes longer than everything else here
    sizes += ["--skip", "torch.compile", "--cases", "logp"]
    done = run(repository, *sizes, "grpo step 50% inactive", "--csv", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader(out.open()))
    ran = [row for row in rows if row["rounds"] != "0"]
    ours = [row for row in ran if row["contender"].startswith("ours")]
    assert len(ours) == 4
    assert all(row["vocab"] == "32" and float(row["max_abs_error"]) < 1e-5 for row in ours)
    assert all(
        float(row["ratio"]) == 1.0
        for row in rows
        if (row["case"], row["contender"])
        in (("logp", "copy"), (rows[-1]["case"], "three products"))
    )
    assert all(row["note"] for row in rows if row["rounds"] == "0"), (
        "a contender that did not run says why"
    )
    assert "says nothing about the kernels" in done.stdout


def test_full_size_without_a_gpu_is_not_measured(repository):
    done = run(repository)
    assert done.returncode == 2
    assert done.stdout.startswith("not measured: these sizes need a CUDA device")
