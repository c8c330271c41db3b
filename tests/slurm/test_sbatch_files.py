"""The Slurm examples without a Slurm: they parse, say consistent things, and with stand-ins for
srun and python start what they promise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "slurm"
FILES = sorted(FOLDER.glob("*.sbatch"))
TRAINING = {"sft", "grpo", "sweep"}

# Stand-ins on PATH. `python3` answers --print-config and writes down everything else; `srun` runs
# its command here, as node 0.
PYTHON = """#!/bin/bash
if [[ " $* " == *" --print-config "* ]]; then
  [[ " $* " == *" bad "* ]] && { echo "megaladder: optim.lr: no number" >&2; exit 2; }
  echo "run_dir: $FAKE_RUN"; exit 0
fi
[[ $1 == -c ]] && exit 1  # where cuDNN is: nowhere
printf '%s\\n' "python3 $*" >>"$FAKE_LOG"
env | grep -E '^(OMP_NUM_THREADS|MASTER_|PYTHONPATH|TRITON_CACHE_DIR|SRUN_CPUS)' >>"$FAKE_LOG.env"
eval "$FAKE_RANKS"
"""
SRUN = """#!/bin/bash
printf '%s\\n' "srun $*" >>"$FAKE_LOG"
while [[ $1 == --* ]]; do shift; done
export SLURM_NODEID=0
"$@" &
trap 'kill -USR1 $!' USR1
until wait $!; code=$?; [ $code -lt 128 ] || ! kill -0 $! 2>/dev/null; do :; done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$*" in
  "show hostnames"*) printf 'n1\\nn2\\n' ;;
  "show node"*) echo "   NodeAddr=10.0.0.7 NodeHostName=n1" ;;
  *) printf '%s\\n' "scontrol $*" >>"$FAKE_LOG" ;;
esac
"""


class Fakes:
    """A batch shell as Slurm would start it, on stand-ins. `ranks`: shell that plays torchrun and
    its ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.run = folder, folder / "log", folder / "my run"
        (folder / "bin").mkdir()
        for name, text in (("python3", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_CPUS_ON_NODE": "64",
            "SLURM_GPUS_ON_NODE": "8",
            "FAKE_LOG": str(self.log),
            "FAKE_RUN": str(self.run),
            "MEGALADDER_VENV": str(folder / "none"),
        }

    def start(
        self, file: str, *arguments: str, ranks: str = ":", **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(FOLDER / f"{file}.sbatch"), *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.environment, "FAKE_RANKS": ranks, **environment},
        )

    def finish(
        self, file: str, *arguments: str, ranks: str = ":", **environment: str
    ) -> tuple[int, str]:
        job = self.start(file, *arguments, ranks=ranks, **environment)
        out, _ = job.communicate(timeout=240)
        return job.returncode, out

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def fakes(tmp_path) -> Fakes:
    (tmp_path / "run.yaml").write_text("run_dir: x\n")
    return Fakes(tmp_path)


@pytest.mark.parametrize(
    "path", [*FILES, FOLDER / "common.sh", FOLDER / "node.sh"], ids=lambda path: path.name
)
def test_it_parses(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def options(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_the_lines_promise(path: Path) -> None:
    """One torchrun a node; requeued logs are appended to; the warning comes to the batch shell,
    before the limit; no line after code."""
    found, text = options(path), path.read_text()
    assert (
        found["job-name"] == path.stem and found["nodes"] == "1" and found["ntasks-per-node"] == "1"
    )
    assert (
        "requeue" in found and found["open-mode"] == "append" and found["output"].startswith("%x-%")
    )
    hours, minutes, seconds = map(int, found["time"].split(":"))
    if "signal" in found:
        who, warning_s = re.fullmatch(r"(B:USR1)@(\d+)", found["signal"]).groups()
        assert who == "B:USR1" and int(warning_s) < (hours * 60 + minutes) * 60 + seconds
    assert ("signal" in found) == (path.stem != "rollout_servers")
    assert "cpus-per-task" in found and "mem" in found
    assert ("gpus-per-node" in found) == (path.stem != "convert")
    lines = text.splitlines()
    first_code = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    # sbatch stops reading there
    assert not any(line.startswith("#SBATCH") for line in lines[first_code:])
    assert all(f"examples/slurm/{name}" in text for name in (path.name, "common.sh"))


@pytest.mark.parametrize("verb", ["sft", "grpo"])
def test_the_command_of_a_node(fakes, verb: str) -> None:
    status, out = fakes.finish(verb, "run.yaml", "--optim.lr", "1e-5")
    assert status == 0, out
    srun, python = fakes.calls()
    assert (
        srun
        == f"srun --kill-on-bad-exit=0 --wait=120 bash {FOLDER}/node.sh {verb} run.yaml --optim.lr"
        " 1e-5"
    )
    assert (
        python == "python3 -m torch.distributed.run --nnodes 2 --node-rank 0 --nproc-per-node 8"
        " --master-addr 10.0.0.7 --master-port 20041 --signals-to-handle SIGINT,SIGHUP,SIGQUIT"
        f" --shutdown-timeout 60 -m megaladder {verb} run.yaml --optim.lr 1e-5"
        " --parallel.ranks 16"
    )
    environment = (fakes.folder / "log.env").read_text().splitlines()
    assert {"OMP_NUM_THREADS=8", "SRUN_CPUS_PER_TASK=64", f"PYTHONPATH={ROOT}"} <= set(environment)
    assert any(line.startswith("TRITON_CACHE_DIR=/") for line in environment)


def test_without_gpus_one_rank_a_node(fakes) -> None:
    assert fakes.finish("sft", "run.yaml", SLURM_GPUS_ON_NODE="0", SLURM_CPUS_ON_NODE="2")[0] == 0
    assert "--nproc-per-node 1 " in fakes.calls()[1]


def test_arrays_pick_their_recipe(fakes) -> None:
    (fakes.folder / "recipes").mkdir()
    for name in ("b", "a", "c"):
        (fakes.folder / "recipes" / f"{name}.yaml").touch()
    status, out = fakes.finish("sweep", "recipes", "--log.every", "5", SLURM_ARRAY_TASK_ID="1")
    assert status == 0, out
    assert fakes.calls()[0].endswith("node.sh sft recipes/b.yaml --log.every 5")
    status, out = fakes.finish("sweep", "run.yaml", SLURM_ARRAY_TASK_ID="3")
    assert status == 2 and "array task 3, but there are 1 recipes; fix: --array=0-0" in out


def test_single_process_verbs(fakes) -> None:
    assert fakes.finish("convert", "verify", "--hf", "a b", "--megatron", "c")[0] == 0
    assert (
        fakes.calls()[0]
        == "srun --nodes=1 --ntasks=1 python3 -m megaladder convert verify --hf a b --megatron c"
    )


def test_wrong_input_ends_before_any_rank_starts(fakes) -> None:
    assert fakes.finish("sft", "nowhere.yaml")[0] == 2
    status, out = fakes.finish("sft", "run.yaml", "--optim.lr", "bad", "bad")
    assert status == 2 and "optim.lr: no number" in out
    assert fakes.calls() == []


SAVES_AND_STOPS = f"""
{sys.executable} - <<'END' & wait $!; exit 1
import os, pathlib, signal, sys, time
def stop(*_):
    step = pathlib.Path(os.environ["FAKE_RUN"], "checkpoints", "step_7")
    step.mkdir(parents=True)
    (step / "COMMITTED").touch()
    pathlib.Path(os.environ["MEGALADDER_STATUS_FILE"]).write_text("3")
    sys.exit(3)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path(os.environ["FAKE_RUN"], "up").touch()
signal.pause()
END
"""


def test_the_warning_reaches_the_ranks_and_progress_is_requeued(fakes) -> None:
    """A rank that saves and ends with 3 (torchrun makes a 1 of it): requeued. The ranks are told
    although torchrun hears nothing."""
    job = fakes.start("sft", "run.yaml", ranks=SAVES_AND_STOPS)
    wait_until(lambda: (fakes.run / "up").exists() or job.poll() is not None, "start of the ranks")
    assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 3, out
    assert fakes.calls()[-1] == "scontrol requeue 41"
    assert "after step 7 (this attempt began at 0): requeueing" in out
    assert not list(fakes.run.glob(".status*"))


def test_a_stop_without_progress_is_not_requeued(fakes) -> None:
    """Non-finite loss at the same step again: round and round would help nobody. A checkpoint
    without its marker is no progress."""
    (fakes.run / "checkpoints" / "step_5").mkdir(parents=True)
    status, out = fakes.finish(
        "grpo", "run.yaml", ranks='echo 3 >"$MEGALADDER_STATUS_FILE"; exit 1'
    )
    assert status == 3 and "no new checkpoint in this attempt (step 0): not requeued" in out
    status, out = fakes.finish(
        "grpo", "run.yaml", ranks='echo 2 >"$MEGALADDER_STATUS_FILE"; exit 1'
    )
    assert status == 2 and "ended with status 2, the input" in out
    assert not [line for line in fakes.calls() if line.startswith("scontrol")]


def test_a_killed_rank_goes_on_where_a_bug_does_not(fakes) -> None:
    """A rank that was killed leaves no status; one with a bug leaves 1."""
    folder = fakes.run / "checkpoints" / "step_5"
    saved = f"mkdir -p '{folder}'; touch '{folder}/COMMITTED'"
    status, out = fakes.finish("sft", "run.yaml", ranks=f"{saved}; exit 1")
    assert status == 3 and fakes.calls()[-1] == "scontrol requeue 41", out
    status, out = fakes.finish(
        "sft", "run.yaml", ranks=f'{saved}; echo 1 >"$MEGALADDER_STATUS_FILE"; exit 1'
    )
    assert status == 1 and "status 1, a bug; not requeued" in out
