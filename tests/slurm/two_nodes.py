"""A real Slurm of two nodes on this machine, in a folder of its own: slurmctld and two slurmd, with
pre-emption by partition and requeue.

    with TwoNodes(tmp_path) as cluster:      # root, and slurm-wlm and munge installed (see
    `missing`)
        job = cluster.sbatch("examples/slurm/sft.sbatch", "run.yaml")
    python tests/slurm/two_nodes.py start DIR    then: export SLURM_CONF=DIR/slurm.conf; sinfo; …;
    python … stop DIR

Both nodes claim 64 cores and 8 GPUs that are not there (config_overrides), so that shipped #SBATCH
lines are accepted as they stand. Job processes are tracked by process group, the weakest way Slurm
has: what works here works under cgroups too. A requeued job may start again at once (Slurm's
default is two minutes).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from waiting import wait_until

from megaladder.process.launch import hold_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [
        name
        for name in PROGRAMS
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmctld for several users needs root"


class TwoNodes:
    """The cluster; `start` returns when both nodes are idle."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self.conf = self.folder / "slurm.conf"
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self.conf),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def __enter__(self) -> TwoNodes:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        for name in ("state", "log", "n1", "n2", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._start_munge()
        with ExitStack() as held:
            # each port stays ours until its daemon listens on it
            sockets = [held.enter_context(hold_port()) for _ in range(3)]
            self._write_conf([one.getsockname()[1] for one in sockets])
            self._run("slurmctld")
            for node in ("n1", "n2"):
                self._run("slurmd", "-N", node)
            wait_until(self._is_idle, "both nodes idle")

    def _is_idle(self) -> bool:
        said = set(self.run("sinfo", "-h", "-N", "-o", "%N-%t").split())
        return said == {"n1-idle", "n2-idle"}

    def stop(self) -> None:
        """Ends the jobs, then the daemons that this object started."""
        if (self.folder / "ctld.pid").is_file():
            subprocess.run(
                ["scancel", "--signal=KILL", "--full", "--user=root"],
                env=self.environment,
                capture_output=True,
                check=False,
            )
        for name in ("n1", "n2", "ctld", "munged"):
            path = self.folder / f"{name}.pid"
            if path.is_file():
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGTERM)

    def run(self, *command: str, cwd: Path = ROOT, **environment: str) -> str:
        """A Slurm command's output, errors included; raises when it fails."""
        variables = {**self.environment, **environment}
        done = subprocess.run(
            command,
            env=variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def sbatch(self, *arguments: str, **environment: str) -> int:
        """Submits and returns the job's number."""
        return int(
            re.findall(r"Submitted batch job (\d+)", self.run("sbatch", *arguments, **environment))[
                0
            ]
        )

    def state(self, job: int) -> dict[str, str]:
        """JobState, Restarts, ExitCode, NodeList … as scontrol says them."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", str(job))))

    def wait(self, job: int, *states: str, timeout_s: float = 240.0) -> dict[str, str]:
        """Until the job is in one of these states."""
        what = f"job {job} in {' or '.join(states)}"
        wait_until(lambda: self.state(job)["JobState"] in states, what, timeout_s)
        return self.state(job)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command,
            env=self.environment,
            check=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _start_munge(self) -> None:
        """A munge daemon of our own, with its own key and socket: the machine's, if it has one, is
        left alone."""
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for folder in (self.folder, self.folder / "munge"):
            folder.chmod(0o755)
        socket_file, pid = self.folder / "munge" / "socket", self.folder / "munged.pid"
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_file}",
            f"--pid-file={pid}",
            "--num-threads=2",
            f"--log-file={self.folder / 'munge' / 'log'}",
            f"--seed-file={self.folder / 'munge' / 'seed'}",
        )

    def _write_conf(self, ports: list[int]) -> None:
        """ports: of slurmctld and of the two slurmd."""
        host, folder = socket.gethostname(), self.folder
        lines = [
            "ClusterName=two",
            f"SlurmctldHost={host}(127.0.0.1)",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
            "ProctrackType=proctrack/pgid",
            "TaskPlugin=task/none",
            "ReturnToService=2",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/%n",
            f"SlurmctldPidFile={folder}/ctld.pid",
            f"SlurmdPidFile={folder}/%n.pid",
            f"SlurmctldLogFile={folder}/log/ctld.log",
            f"SlurmdLogFile={folder}/log/%n.log",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "MpiDefault=none",
            "GresTypes=gpu",
            "SlurmdParameters=config_overrides",
            "KillWait=30",
            "OverTimeLimit=0",
        ]
        for index, name in enumerate(("n1", "n2"), start=1):
            lines.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[index]}"
                " CPUs=64 RealMemory=500000 Gres=gpu:h200:8"
            )
        lines += [
            "PartitionName=low Nodes=n1,n2 Default=YES State=UP PriorityTier=1",
            "PartitionName=high Nodes=n1,n2 State=UP PriorityTier=10",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        for index in range(8):
            (folder / f"gpu{index}").touch()
        (folder / "gres.conf").write_text(
            f"NodeName=n1,n2 Name=gpu Type=h200 File={folder}/gpu[0-7]\n"
        )


if __name__ == "__main__":
    getattr(TwoNodes(Path(sys.argv[2])), {"start": "start", "stop": "stop"}[sys.argv[1]])()
