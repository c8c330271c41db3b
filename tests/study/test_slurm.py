"""The job arrays of a study, as Slurm would work them off: a stand-in for `sbatch` that knows arrays
and dependencies, and one for `scontrol requeue`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest
from study.interrupt import results
from waiting import wait_until

from megaladder.config.verbs.analysis import StudyConfig
from megaladder.study.verb import run_study

# notes what it is asked and answers as Slurm does: `ID;CLUSTER` with --parsable
SBATCH = """\
import json, os, sys
queue = os.environ["QUEUE"]
words = sys.argv[1:]
jobs = open(queue).read().splitlines()
script = os.path.abspath(next(word for word in words if word.endswith(".sbatch")))
print(f"{len(jobs) + 100};cluster" if "--parsable" in words else f"Submitted batch job {len(jobs) + 100}")
with open(queue, "a") as file:
    file.write(json.dumps({"script": script, "words": words}) + "\\n")
"""
SCONTROL = """\
import os, sys
assert sys.argv[1] == "requeue", sys.argv
open(os.environ["QUEUE"] + ".again", "a").write(sys.argv[2] + "\\n")
"""


@dataclass
class Cluster:
    """Works off what was submitted, job by job in an order that the dependencies allow."""

    folder: Path

    def __post_init__(self) -> None:
        for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
            program = self.folder / name
            program.write_text(f"#!{sys.executable}\n{text}")
            program.chmod(0o755)
        self.queue.touch()

    @property
    def queue(self) -> Path:
        return self.folder / "queue.jsonl"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "QUEUE": str(self.queue)}

    def submit(self, script: Path, *words: str) -> None:
        """`bash submit.sh words…`."""
        subprocess.run(["bash", str(script), *words], env=self.environment, check=True)

    def jobs(self) -> dict[str, dict[str, list[str]]]:
        """Job id → what `sbatch` was told."""
        rows = [json.loads(line) for line in self.queue.read_text().splitlines()]
        return {str(100 + number): row for number, row in enumerate(rows)}

    def work_off(self) -> list[str]:
        """Runs every task whose dependencies ended well; the names of those that ran, in order."""
        done: set[str] = set()
        ran: list[str] = []
        for job, told in self.jobs().items():
            options = dict(word.split("=", 1) for word in told["words"] if "=" in word)
            after = re.findall(r"\d+", options.get("--dependency", ""))
            if not done.issuperset(after):
                continue
            first, _, last = options["--array"].partition("-")
            tasks = [str(number) for number in range(int(first), int(last or first) + 1)]
            ran += [f"{Path(str(told['script'])).stem}/{task}" for task in tasks]
            if self._tasks_end_well(job, str(told["script"]), tasks):
                done.add(job)
        return ran

    def _tasks_end_well(self, job: str, script: str, tasks: list[str]) -> bool:
        """All tasks of an array at a time; those that are requeued once more."""
        waiting, good = deque(self.start(job, script, task) for task in tasks), True
        while waiting:
            task, process = waiting.popleft()
            status, asked = process.wait(), Path(f"{self.queue}.again")
            again = asked.read_text().split() if asked.exists() else []
            if f"{job}_{task}" in again:
                asked.write_text("\n".join(one for one in again if one != f"{job}_{task}"))
                waiting.append(self.start(job, script, task))
            else:
                good = good and status == 0
        return good

    def start(self, job: str, script: str, task: str) -> tuple[str, subprocess.Popen[bytes]]:
        """A task as slurmd starts it: the script in a shell of its own."""
        own = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
        with Path(f"{self.queue}.{job}_{task}.log").open("ab") as log:
            command = ["bash", script]
            environment = {**self.environment, **own}
            return task, subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Cluster(folder)


def written(out: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """Rows without what names a folder of the test, and the findings."""
    rows = {name: text for name, text in results(out).items() if "dropped" not in name}
    return rows, json.loads((out / "findings.json").read_text())["findings"]


def arrays(study: Path, out: Path) -> Path:
    """submit.sh of the study."""
    run_study(StudyConfig(name=str(study), out=str(out), launcher="slurm"))
    return out / "slurm" / "submit.sh"


@pytest.mark.slow
def test_the_arrays_make_what_a_local_start_makes(
    study: Path, whole: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cluster.submit(arrays(study, out), "--partition", "gpu")
    assert all("--partition" in told["words"] for told in cluster.jobs().values())
    assert cluster.work_off() == [
        "data/0",
        "more/0",
        "more/1",
        "evaluate/0",
        "evaluate/1",
        "findings/0",
    ]
    assert written(out) == written(whole / "out")


@pytest.mark.slow
def test_what_depends_on_a_failed_task_never_starts(
    study: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = arrays(study, out)
    (study / "answers.jsonl").write_text("no row\n")
    cluster.submit(script)
    assert cluster.work_off() == ["data/0", "more/0", "more/1", "evaluate/0", "evaluate/1"]
    assert not (out / "findings.json").exists()


@pytest.mark.slow
def test_a_task_that_is_told_its_time_is_up_is_requeued_and_goes_on(
    study: Path, whole: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """USR1 to the batch shell, as `--signal=B:USR1` sends it."""
    out = tmp_path / "out"
    cluster.submit(arrays(study, out))
    job, told = next(iter(cluster.jobs().items()))
    task, process = cluster.start(job, str(told["script"]), "0")
    wait_until((out / ".study/data/all/log.txt").exists, "the first command")
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 3
    assert Path(f"{cluster.queue}.again").read_text() == f"{job}_{task}\n"
    Path(f"{cluster.queue}.again").unlink()
    assert cluster.work_off()[-1] == "findings/0"
    assert written(out) == written(whole / "out")
