"""Child processes for tests that cost no imports: forks of a server which has imported what runs
need and computed nothing.

    status = run_in_fork(function, *args)        waits: 0 or the int it returns, an error's exit
    status, or minus the signal child = start_fork(function, *args)          a multiprocessing
    process: pid, kill(), join(), exitcode

A fork of pytest itself would inherit the threads, pools and locks that earlier tests left behind,
and could wait on them for ever. Functions may be closures of a test: they travel by value.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle

TESTS = Path(__file__).resolve().parent


def start_fork(
    function: Callable[..., object],
    *args: Any,
    stdout: Path | None = None,
    stderr: Path | None = None,
    kill_after_s: float | None = None,
) -> BaseProcess:
    """Runs `function(*args)` in a session of its own, with this process's environment; SIGKILL
    after `kill_after_s` seconds of it."""
    payload = (_by_value((function, args)), dict(os.environ), stdout, stderr, kill_after_s)
    child = _context().Process(target=_run, args=payload)
    child.start()
    return child


def run_in_fork(function: Callable[..., object], *args: Any, **how: Any) -> int:
    """start_fork, and waits for the end: the exit status, or minus the signal that ended it."""
    child = start_fork(function, *args, **how)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    before = os.environ.get("PYTHONPATH")
    # it imports by path alone; children get their environment with what they run
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(TESTS.parent), str(TESTS), before])
    )
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _by_value(what: Any) -> bytes:
    """Pickled; what test modules define goes along, because a child cannot import them by name."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).name.startswith("test_") and TESTS in Path(file).parents:
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(what)


def _run(
    payload: bytes,
    environment: dict[str, str],
    stdout: Path | None,
    stderr: Path | None,
    kill_after_s: float | None,
) -> None:
    status = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        for path, stream in ((stdout, 1), (stderr, 2)):
            if path is not None:
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        if kill_after_s is not None:
            threading.Timer(kill_after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        function, args = cloudpickle.loads(payload)
        result = function(*args)
        status = result if isinstance(result, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        traceback.print_exc()
        status = getattr(error, "exit_status", 1)
    finally:
        # helper processes of this one, such as a writer's manager, end with it
        multiprocessing.util._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
