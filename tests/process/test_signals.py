"""Stop signals with real processes: told at once also where the main thread waits outside Python,
not passed on by forks, the second Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from megaladder.process.signals import SAME_PRESS_S, StopRequest

START = """
import os, signal, sys
from megaladder.process import ending, signals
signals.listen(ending.at_once)
"""
# a C call that no signal interrupts, like a collective: a lock that this thread holds already
WAIT_IN_C = (
    START
    + """
import ctypes
lock = ctypes.create_string_buffer(256)
ctypes.CDLL(None).pthread_mutex_lock(lock)
print("ready", flush=True)
ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
)
FORK = (
    START
    + """
said = []
signals.replace_action(said.append)
reader, writer = os.pipe()
if (child := os.fork()) == 0:
    for number in signals.STOP_SIGNALS:
        os.kill(os.getpid(), number)
    os.write(writer, b"alive")
    os._exit(7)
assert os.read(reader, 5) == b"alive"
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert said == [], said
print("ready", flush=True)
"""
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_loop_ends_with_3_and_one_line(number) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WAIT_IN_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, error = child.communicate(timeout=240)
    assert child.returncode == 3
    assert error.count("\n") == 1 and error.startswith(f"megaladder: stopped by {number.name}; ")


def test_forks_neither_die_of_a_signal_nor_tell_their_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr


def test_the_first_signal_asks_and_a_second_interrupt_is_an_order(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("megaladder.process.signals.time.monotonic", lambda: clock[0])
    said: list[int] = []
    now: list[int] = []
    request = StopRequest(said.append, now.append)
    assert request.number is None
    request(signal.SIGINT)
    clock[0] += SAME_PRESS_S / 2
    request(signal.SIGINT)  # the same key press, handed on by a launcher
    request(signal.SIGTERM)
    assert (said, now, request.number) == ([signal.SIGINT], [], signal.SIGINT)
    clock[0] += SAME_PRESS_S
    request(signal.SIGTERM)  # somebody is impatient, but what they ask for is under way
    assert now == []
    request(signal.SIGINT)
    assert now == [signal.SIGINT]
