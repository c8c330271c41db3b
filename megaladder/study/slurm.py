"""A study as Slurm job arrays: a file a stage, one array task a job, and the order between them.

Every task is `megaladder study … --only JOB`, which records what it did as a local start would; a
task that stopped in good order is requeued and goes on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megaladder.run_dir import atomic_write
from megaladder.study.plan import Job, Plan

TEMPLATE = """\
#!/usr/bin/env bash
# {title}
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/%x-%A_%a.log
# GPUs, memory and time are your cluster's: give them to submit.sh, which hands them on to sbatch.
jobs=({jobs})
trap 'kill -USR1 "$child"' USR1
trap 'kill -TERM "$child"' TERM
{command} --only "${{jobs[$SLURM_ARRAY_TASK_ID]}}" &
child=$!
while :; do
  wait "$child"
  status=$?
  kill -0 "$child" 2>/dev/null || break
done
# stopped in good order before the time limit: it goes on where it was
if [ "$status" = 3 ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi
exit "$status"
"""


def write_arrays(plan: Plan, command: Sequence[str], title: str) -> Path:
    """Writes OUT/slurm/STAGE.sbatch and OUT/slurm/submit.sh; returns the latter.

    `command` starts this very study."""
    folder = plan.out / "slurm"
    program = shlex.join([sys.executable, "-m", "megaladder", *command])
    lines = [
        "#!/usr/bin/env bash",
        f"# {title}: every stage as a job array, each after the one before it.",
        "#   bash submit.sh --partition gpu --gpus-per-node 8 --mem 0 --time 24:00:00",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        "after=()",
    ]
    for stage, jobs in plan.stages:
        names = [job.name for job in jobs]
        _write(folder, stage, _task(stage, names, program, folder))
        lines.append(_submit(stage, jobs))
    _write(folder, "findings", _task("findings", ["findings"], program, folder))
    lines.append('sbatch --array=0 "${after[@]}" "$@" findings.sbatch')
    atomic_write(folder / "submit.sh", "\n".join(lines) + "\n")
    return folder / "submit.sh"


def _submit(stage: str, jobs: Sequence[Job]) -> str:
    array = f"--array=0-{len(jobs) - 1}"
    told = f'id=$(sbatch --parsable {array} "${{after[@]}}" "$@" {stage}.sbatch)'
    return f'{told}; after=(--dependency="afterok:${{id%%;*}}"); echo "{stage}: $id"'


def _task(stage: str, jobs: Sequence[str], program: str, folder: Path) -> str:
    return TEMPLATE.format(
        title=f"stage {stage}: {len(jobs)} job(s)",
        name=stage,
        logs=folder,
        jobs=" ".join(shlex.quote(job) for job in jobs),
        command=program,
    )


def _write(folder: Path, stage: str, text: str) -> None:
    atomic_write(folder / f"{stage}.sbatch", text)
