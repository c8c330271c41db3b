"""Ranks killed under torchrun, where no launcher of ours watches: who is named, and whether the same
command comes to the same end.

    PYTHONPATH=.:tests python -m chaos.torchrun [--kills 20] [--seed 0]

A tiny SFT by tensor parallelism over two ranks. Each kill is drawn: the rank, and where it is.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos.places import fast_folder
from chaos.programs.base import workload
from chaos.programs.forked import forked_programs
from chaos.programs.trainings import STEPS, Trained

from megaladder.process import last_word

# the update, and the way of a save: before it, while it writes, before and after its commit; the
# last three are rank 0's
PLACES = ("update", "before_save", "writing", "after_write", "before_commit", "after_commit")
OF_BOTH = PLACES[:3]


def under_torchrun(words: list[str], fault: str, said: Path) -> int:
    """The status of `torchrun -m megaladder words…`, all its processes as forks of this one."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.environ["MEGALADDER_FAULT"] = fault
            status = _torchrun(words)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _torchrun(words: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "megaladder", *words]
    with forked_programs():
        subprocess_handler.Popen = subprocess.Popen  # type: ignore[misc]
        return subprocess.Popen(torchrun).wait()


def killed(program: Trained, place: str, count: int, rank: int, scratch: Path) -> str | None:
    """What does not hold of a kill there and the start after it."""
    folder, said = scratch / "at", scratch / "said"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = program.words(scratch / "inputs", folder)
    status = under_torchrun(words, f"{place}:{count}:SIGKILL@rank{rank}", said)
    text = said.read_text(errors="replace")
    word = last_word.truth(folder / "run") or {}
    if f"fault point {place}" not in text or status == 0:
        return f"nobody was killed: status {status}, {text[-1000:]}"
    if (word.get("reason"), word.get("rank")) != ("rank_died", rank):
        return f"the last word is {word}; {text[-1000:]}"
    if f"megaladder: rank {rank} was killed" not in text:
        return f"nobody said who was killed: {text[-1000:]}"
    status = under_torchrun(words, "", said)
    if status:
        return f"the next start ends with {status}: {said.read_text(errors='replace')[-1000:]}"
    return None if program.result(folder) == program.expected else "another result"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, began, failed = random.Random(given.seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="torchrun-", dir=fast_folder()) as place:
        scratch = Path(place)
        program = workload("sft-tp2")
        assert isinstance(program, Trained)
        (scratch / "sft-tp2").mkdir()
        program.prepare(scratch / "sft-tp2")
        _undisturbed(program, scratch)
        for _ in range(given.kills):
            where, count = rng.choice(PLACES), rng.randint(1, STEPS)
            rank = rng.randrange(2) if where in OF_BOTH else 0
            found = killed(program, where, count, rank, scratch)
            failed += found is not None
            print(f"rank {rank} at {where} {count}: {found or 'held'}", flush=True)
    print(f"{given.kills} kills, {failed} did not hold; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _undisturbed(program: Trained, scratch: Path) -> None:
    folder, said = scratch / "at", scratch / "said"
    folder.mkdir()
    status = under_torchrun(program.words(scratch / "inputs", folder), "", said)
    assert status == 0, said.read_text(errors="replace")[-3000:]
    program.expected = program.result(folder)


if __name__ == "__main__":
    sys.exit(main())
