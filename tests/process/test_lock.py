"""One run per folder, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from megaladder.errors import ConfigError
from megaladder.process import lock
from megaladder.process.lock import RunLock

HOLDER = """
import fcntl, sys
def refuse(*a): raise OSError(37, 'No locks available')
fcntl.lockf = refuse
from megaladder.process.lock import RunLock
held = RunLock(sys.argv[1])
print('held', flush=True)
sys.stdin.read()
"""


def refuse_with(number: int, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_refused_lock_is_somebody_else_s(number, tmp_path, monkeypatch) -> None:
    (tmp_path / ".lock").write_text("process 7 on node3 since then\n")
    refuse_with(number, monkeypatch)
    with pytest.raises(ConfigError, match="in use by process 7 on node3"):
        RunLock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_guard_file_does_it_and_says_so(
    number, tmp_path, monkeypatch, capsys
) -> None:
    refuse_with(number, monkeypatch)
    held = RunLock(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the file system has no locks" in said
    assert json.loads((tmp_path / ".guard").read_text())["pid"] == os.getpid()
    held.release()
    assert not (tmp_path / ".guard").exists()
    RunLock(tmp_path).release()


def test_other_errors_are_not_taken_for_a_holder(tmp_path, monkeypatch) -> None:
    refuse_with(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)


def test_the_guard_holds_while_its_process_lives_and_not_longer(tmp_path, monkeypatch) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        refuse_with(errno.ENOLCK, monkeypatch)
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on "):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    RunLock(tmp_path).release()


@pytest.mark.parametrize(("age_s", "is_held"), [(0, True), (lock.STALE_S + 5, False)])
def test_a_guard_of_another_machine_counts_while_it_is_touched(
    age_s, is_held, tmp_path, monkeypatch
) -> None:
    guard = tmp_path / ".guard"
    guard.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then", "started": "9"}))
    stamp = guard.stat().st_mtime - age_s
    os.utime(guard, (stamp, stamp))
    refuse_with(errno.ENOLCK, monkeypatch)
    if is_held:
        with pytest.raises(ConfigError, match="in use by process 1 on elsewhere since then"):
            RunLock(tmp_path)
    else:
        RunLock(tmp_path).release()
