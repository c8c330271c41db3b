"""The process beside a generated program.

For each test it forks a child that locks itself and runs the program, and reports what came out.
Expected outputs never come here.

Started by `runner` as a script with an empty environment. One JSON job on stdin: {"code", "inputs",
"function" or null, "cpu_s", "memory_bytes", "output_bytes", "readable", "paths"}; one JSON line a
test on stdout: {"status", "output" or "result", "detail"}. Statuses: done, error (it raised, or
ended with another status than 0), cpu, idle, threads, killed, unfair (the machine was too busy to
judge).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, TextIO

# the environment is empty, and the package may stand in a folder that is not installed
sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[".."] * 3)))
from megaladder.rewards.programs import lock

sys.path.pop(0)

POLL_S = 0.002
IDLE_GRACE_S = 5.0
"""Seconds that a program may sleep or wait for input that never comes."""
UNFAIR_FACTOR, UNFAIR_S = 30, 60
"""Wall time after which a program that never got its CPU seconds is given up without a verdict."""
MAX_THREADS = 128
LOCK_FAILED = 97
DETAIL_CHARS = 300
_WHY = {
    "idle": "it waited",
    "unfair": "busy machine",
    "threads": f"more than {MAX_THREADS} at once",
}


def main() -> None:
    """Runs the job's tests until one does not end well."""
    lock.die_with_parent(os.getppid())
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for text in job["inputs"]:
        outcome = run(job, text)
        out.write(json.dumps(outcome) + "\n")
        out.flush()
        if outcome["status"] != "done":
            break


def run(job: dict[str, Any], text: str) -> dict[str, Any]:
    """One test in a child of its own."""
    files = {name: os.memfd_create(name) for name in ("input", "output", "result")}
    with os.fdopen(os.dup(files["input"]), "wb") as stream:
        stream.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(files["input"], 0, os.SEEK_SET)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _in_child(job, text, files, parent)
    try:
        status, usage = _wait(child, job["cpu_s"])
        return _outcome(job, files, status, usage)
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _wait(child: int, cpu_s: float) -> tuple[str | int, Any]:
    """(wait status or why we killed it, resource usage).

    Only time that the program itself spent counts: its CPU seconds (the kernel ends it), and
    seconds in which it wanted no CPU."""
    began = time.monotonic()
    killed: str | None = None
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return (killed or status), usage
        wall = time.monotonic() - began
        if killed is None:
            killed = _why_to_kill(child, wall, cpu_s)
            if killed:
                os.kill(child, signal.SIGKILL)
        time.sleep(POLL_S if wall < 1 else 0.02)


def _why_to_kill(child: int, wall: float, cpu_s: float) -> str | None:
    if _num_threads(child) > MAX_THREADS:
        return "threads"
    if wall <= IDLE_GRACE_S:
        return None
    on_cpu, waiting = _schedule(child)
    if wall - on_cpu - waiting > IDLE_GRACE_S:
        return "idle"
    return "unfair" if wall > UNFAIR_FACTOR * cpu_s + UNFAIR_S else None


def _num_threads(child: int) -> int:
    """Threads of the child: the folder of its tasks has a link for each, and two more."""
    try:
        return os.stat(f"/proc/{child}/task").st_nlink - 2
    except OSError:  # it ended meanwhile
        return 0


def _schedule(child: int) -> tuple[float, float]:
    """Seconds on a CPU and seconds in the queue for one, summed over the child's threads."""
    on_cpu = waiting = 0
    try:
        for thread in os.listdir(f"/proc/{child}/task"):
            with open(f"/proc/{child}/task/{thread}/schedstat", encoding="ascii") as file:
                ran, queued, _ = file.read().split()
            on_cpu, waiting = on_cpu + int(ran), waiting + int(queued)
    except OSError:  # it ended meanwhile
        return 0.0, float("inf")
    return on_cpu / 1e9, waiting / 1e9


def _outcome(
    job: dict[str, Any], files: dict[str, int], status: str | int, usage: Any
) -> dict[str, Any]:
    if isinstance(status, str):
        return {"status": status, "detail": _WHY[status]}
    code = os.waitstatus_to_exitcode(status)
    said = _content(files["result"], job["output_bytes"])
    if code == LOCK_FAILED:
        return {"status": "unlocked", "detail": said[-DETAIL_CHARS:]}
    if code == -signal.SIGKILL or code == -signal.SIGXCPU:
        spent = usage.ru_utime + usage.ru_stime
        return {"status": "cpu" if spent >= job["cpu_s"] - 0.5 else "killed", "detail": ""}
    if code != 0:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return {"status": "error", "detail": f"{how}: {said[-DETAIL_CHARS:]}"}
    if job["function"]:
        return {"status": "done", "result": said}
    return {"status": "done", "output": _content(files["output"], job["output_bytes"])}


def _content(descriptor: int, most: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read(most).decode("utf-8", "replace")


def _in_child(job: dict[str, Any], text: str, files: dict[str, int], parent: int) -> None:
    """Never returns.

    Everything of ours that the program could use against us is gone before it starts: descriptors,
    the job, the environment."""
    status = LOCK_FAILED
    try:
        lock.die_with_parent(parent)
        null = os.open(os.devnull, os.O_WRONLY)
        for source, target in ((files["input"], 0), (files["output"], 1), (null, 2)):
            os.dup2(source, target)
        os.dup2(files["result"], 3) if files["result"] != 3 else None
        os.closerange(4, 1024)
        code, function = job["code"], job["function"]
        arguments = [json.loads(line) for line in text.split("\n") if line] if function else []
        sys.path[:] = [*sys.path, *job["paths"]]
        sys.argv = ["program"]
        lock.limit(job["cpu_s"], job["memory_bytes"], job["output_bytes"])
        lock.lock(job["readable"])
        job.clear()
        status = _run_program(code, function, arguments)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        _tell(traceback.format_exc())
    os._exit(status)


def _run_program(code: str, function: str | None, arguments: list[Any]) -> int:
    """Exit status of the program, or of its function's call."""
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", errors="surrogatepass")
    out = sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace")
    for name in ("stdin", "stdout", "stderr"):  # programs go back to these after a redirection
        setattr(sys, f"__{name}__", getattr(sys, name))
    tell, dumps, exit_now = _tell, json.dumps, os._exit
    # exit and quit are what an interpreter adds that is started as usual
    space: dict[str, Any] = {"__name__": "__main__", "exit": sys.exit, "quit": sys.exit}
    status = 0
    try:
        try:
            exec(compile(code, "program", "exec"), space)
            if function:
                solve = getattr(space["Solution"](), function) if "Solution" in space else None
                answer = (solve or space[function])(*arguments)
                tell(dumps(answer, default=list))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        _end_as_usual(out)
    except BaseException:  # noqa: BLE001  the program's own fault
        tell(traceback.format_exc(limit=-2))
        exit_now(1)
    return status


def _end_as_usual(out: TextIO) -> None:
    """What an interpreter does at its end: threads are waited for, handlers run, output written."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    if not out.closed:
        out.flush()


def _tell(text: str) -> None:
    data = text.encode("utf-8", "replace")
    while data:
        data = data[os.write(3, data) :]


if __name__ == "__main__":
    main()
