"""On a real Slurm of two nodes: shipped files are accepted; pre-empted, or with its time up, a run
comes back and loses nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny_model
from waiting import wait_until

sys.path.insert(0, str(Path(__file__).parent))
from two_nodes import ROOT, TwoNodes, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
CPU = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=4000")
STEPS = 80


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged insists
    with TwoNodes(folder) as two:
        yield two


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    build_tiny_model(folder / "model")
    rows = [
        {"message": f"What is {i} + {i}?", "response": f"It is {2 * i}.", "advantage": 1.0}
        for i in range(256)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(
        f"run_dir: {folder}/plain\nmodel: {{path: {folder}/model}}\ndata: {{path:"
        f" {folder}/data.jsonl, seq_length: 256}}\nparallel: {{tp: 2, ranks: 2}}\ntrain:"
        f" {{global_batch_size: 64, max_steps: {STEPS}, epochs: 100}}\noptim: {{lr:"
        " 1.0e-3}\ncheckpoint: {every: 10}\n"
    )
    return folder


def submit(cluster: TwoNodes, work: Path, name: str, *options: str) -> int:
    return cluster.sbatch(
        *CPU,
        f"--output={work}/{name}.log",
        *options,
        "examples/slurm/sft.sbatch",
        str(work / "run.yaml"),
        "--run_dir",
        str(work / name),
        MEGALADDER_VENV=str(Path(sys.executable).parents[1]),
    )


def rows(work: Path, name: str) -> list[tuple]:
    path = work / name / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"], row["tokens"]) for row in found]


def wait_for_steps(work: Path, name: str, count: int) -> None:
    wait_until(lambda: len(rows(work, name)) >= count, f"{count} steps of {work / name}.log")


@pytest.fixture(scope="module")
def plain(cluster, work) -> list[tuple]:
    job = submit(cluster, work, "plain")
    assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", (
        work / "plain.log"
    ).read_text()
    return rows(work, "plain")


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "examples" / "slurm").glob("*.sbatch"))
)
def test_sbatch_accepts_it_as_it_stands(cluster, name: str) -> None:
    assert "to start at" in cluster.run(
        "sbatch", "--test-only", f"examples/slurm/{name}", "run.yaml"
    )


def test_preempted_requeued_resumed_to_the_bit(cluster, work, plain) -> None:
    job = submit(cluster, work, "preempted")
    wait_for_steps(work, "preempted", 13)
    urgent = cluster.sbatch(
        "-p",
        "high",
        "-N2",
        "--exclusive",
        "--mem=1000",
        "--output=/dev/null",
        "--wrap",
        "srun sleep 1",
    )
    cluster.wait(urgent, "COMPLETED")
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1", (
        work / "preempted.log"
    ).read_text()
    log = (work / "preempted.log").read_text()
    assert (
        "DUE TO PREEMPTION" in log and "stopped by a signal after step" in log and "start 2" in log
    )
    assert rows(work, "preempted") == plain


def test_time_is_up_requeued_resumed_to_the_bit(cluster, work, plain) -> None:
    """The limit is set to a minute away once a few steps are done: the warning, 300 s before it, is
    due at once. Then there is time."""
    job = submit(cluster, work, "timed", "--time=60", "--signal=B:USR1@300")
    wait_for_steps(work, "timed", 5)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    log = work / "timed.log"
    wait_until(lambda: ": requeueing" in log.read_text(), f"the requeueing in {log}")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT")["JobState"] == "COMPLETED", (
        work / "timed.log"
    ).read_text()
    assert "time limit ahead" in (work / "timed.log").read_text()
    assert rows(work, "timed") == plain
