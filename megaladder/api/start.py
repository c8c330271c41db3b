"""Runs a verb as the command line does, in a process of its own, and waits for it.

The notebook or script that calls keeps its memory, threads and signal handlers; the verb's process
ends with it (Linux). Its output is printed line by line; what it says last becomes the exception.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from megaladder.config.base import StrictModel
from megaladder.config.resolve import to_yaml
from megaladder.errors import MegaladderError, RunStopped
from megaladder.process import ending
from megaladder.process.signals import die_with_parent

LOOK_S = 0.5  # between two looks at the run folder
KEPT_LINES = 200
PREFIX = "megaladder: "


def run_verb(verb: str, config: StrictModel, look: Callable[[], None]) -> None:
    """`megaladder VERB config`; look: called about twice a second while it runs.

    Raises:
        RunStopped: status 3: the same call goes on from what is saved.
        MegaladderError: status 2: the message says what to change.
        RuntimeError: any other status: a bug, with the last lines.
    """
    with TemporaryDirectory(prefix="megaladder-") as folder:
        file = Path(folder) / f"{verb}.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        child = _start([sys.executable, "-m", "megaladder", verb, str(file)])
        said = _follow(child, look)
    raise_for(verb, child.wait(), said)


def _start(command: list[str]) -> subprocess.Popen[str]:
    """A session of its own: an interrupt reaches it once, handed on by `_follow`."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _follow(child: subprocess.Popen[str], look: Callable[[], None]) -> list[str]:
    """Prints what the child says until it closes its output; its last lines."""
    assert child.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
    reader.start()
    said: deque[str] = deque(maxlen=KEPT_LINES)
    while True:
        try:
            line = lines.get(timeout=LOOK_S)
            if line is None:
                break
            said.append(line.rstrip())
            print(line.rstrip(), flush=True)
        except queue.Empty:
            pass
        except KeyboardInterrupt:
            # saves, then ends with status 3; a second one ends it now
            child.send_signal(signal.SIGINT)
        look()
    reader.join()
    return list(said)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def raise_for(verb: str, status: int, said: list[str]) -> None:
    """The exception of an exit status, with the words that came before it; nothing for 0."""
    if status == 0:
        return
    blocks = [i for i, line in enumerate(said) if line.startswith(PREFIX)]
    # of a refusal the first block is the cause, what follows is the launcher's; of a stop the last
    refused = status == MegaladderError.exit_status
    first = (blocks[0] if refused else blocks[-1]) if blocks else -20
    words = "\n".join(said[first:]).removeprefix(PREFIX)
    if status in (ending.RESUMABLE, ending.INTERRUPTED):
        raise RunStopped(words)
    if refused:
        raise MegaladderError(words)
    raise RuntimeError(f"megaladder {verb} ended with status {status}, a bug:\n{words}")
