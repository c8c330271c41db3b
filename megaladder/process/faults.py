"""Fault points for tests.

`MEGALADDER_FAULT="after_save:3:SIGKILL"` makes the third passage through
`fault_point("after_save")` send that signal to its own process (or raise, with `RAISE`). Without
the variable a fault point does nothing.

`SIGTERM@launcher` sends it to the process that started the ranks (the rank itself where there is
none), `SIGTERM@group` to that process's group as well as its own: once a job, by rank 0;
`SIGTERM@rank1` is for rank 1 alone. What is done is said on stderr first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

_passages: Counter[str] = Counter()
# forked helpers of a rank pass fault points too
_RANK_PID = os.getpid()


def fault_point(name: str) -> None:
    """A place where a test may kill the process."""
    plan = os.environ.get("MEGALADDER_FAULT")
    if not plan:
        return
    target, count, action = plan.split(":")
    if target != name:
        return
    _passages[name] += 1
    if _passages[name] == int(count):
        _act(name, *action.split("@"))


def _act(name: str, action: str, target: str = "self") -> None:
    if action == "RAISE":
        raise RuntimeError(f"fault point {name}")
    number, rank = getattr(signal, action), os.environ.get("RANK", "0")
    if target in ("self", f"rank{rank}"):
        print(f"fault point {name}: {action}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)
    elif target in ("launcher", "group") and rank == "0":
        print(f"fault point {name}: {action}", file=sys.stderr, flush=True)
        main = int(os.environ.get("MEGALADDER_LAUNCHER_PID") or _RANK_PID)
        if target == "launcher":
            os.kill(main, number)
        else:
            for group in {os.getpgid(main), os.getpgid(0)}:
                os.killpg(group, number)
