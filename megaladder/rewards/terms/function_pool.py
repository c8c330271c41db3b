"""A user's reward function in processes of its own: called with samples, killed when it hangs.

A function of one sample runs in `num_workers` processes, a sample a call; a batched one (TRL's,
verl's batched, async) in one process, all samples of a round in one call.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from json import loads
from pathlib import Path
from typing import Any

import megaladder
from megaladder.errors import ConfigError, RewardError
from megaladder.rewards.cpu_time import CpuMeter
from megaladder.rewards.terms import function_child

START_TIMEOUT_S = 300.0
Value = float | None | str
"""A number; None: the function says that it does not apply; text: why there is no value."""


class FunctionPool:
    """The processes of one function. Not for two threads at once.

    Raises:
        ConfigError: no such file, or it cannot be loaded.
    """

    def __init__(self, function: str, num_workers: int, timeout_s: float):
        self._spec, self._timeout_s = _checked_spec(function), timeout_s
        self._free: deque[_Process] = deque()
        self._lock = threading.Lock()
        self._num_workers = num_workers
        self.cpu = CpuMeter()

    def values(self, samples: Sequence[Mapping[str, Any]]) -> list[Value]:
        """A value for each sample, in order.

        Raises:
            RewardError: the function raised or returned no finite number; names the sample.
        """
        if not samples:
            return []
        first = self._take()
        self._free.append(first)
        if first.batched:
            return self._call(samples)
        with ThreadPoolExecutor(self._num_workers) as threads:
            return [one for [one] in threads.map(lambda sample: self._call([sample]), samples)]

    def close(self) -> None:
        while self._free:
            self._free.popleft().kill()

    def _take(self) -> _Process:
        with self._lock:
            if self._free:
                return self._free.popleft()
        return _Process(self._spec)

    def _call(self, samples: Sequence[Mapping[str, Any]]) -> list[Value]:
        process = self._take()
        reply = process.ask(samples, self._timeout_s)
        self.cpu.look([process.pid])
        if isinstance(reply, str):
            process.kill()
            return [reply] * len(samples)
        with self._lock:
            self._free.append(process)
        if "bug" in reply:
            raise RewardError(
                f"sample {samples[reply['sample']]['id']}: reward function {self._spec}"
                f" {reply['bug']}; fix: the function must return a finite number for every"
                " completion"
            )
        return reply["values"]


class _Process:
    """One process with its pipes."""

    def __init__(self, spec: str):
        root = str(Path(megaladder.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-X", "utf8", function_child.__file__, spec, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        ready = self._read(time.monotonic() + START_TIMEOUT_S)
        if isinstance(ready, str) or not isinstance(ready.get("batched"), bool):
            self.kill()
            why = ready if isinstance(ready, str) else ready.get("error", "it began otherwise")
            raise ConfigError(f"reward function {spec} cannot be loaded: {why}; fix: that file")
        self.batched: bool = ready["batched"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, samples: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, Any] | str:
        """The process's reply, or why there is none."""
        deadline = time.monotonic() + timeout_s
        writer = threading.Thread(
            target=self._write, args=(function_child.frame(list(samples)),), daemon=True
        )
        writer.start()
        reply = self._read(deadline)
        if isinstance(reply, dict) and not _is_reply(reply, len(samples)):
            reply = "the process answered with something else"
        if isinstance(reply, str):
            self.kill()
        writer.join()
        return reply

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        with contextlib.suppress(OSError, ValueError):  # it is gone: the reader says so
            while view:
                view = view[self._process.stdin.write(view) :]

    def _read(self, deadline: float) -> dict[str, Any] | str:
        assert self._process.stdout is not None
        data, size = bytearray(), None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while size is None or len(data) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return "no value in time"
                piece = os.read(self._process.stdout.fileno(), 1 << 20)
                if not piece:
                    return f"the process ended: {self._ending()}"
                data += piece
                if size is None and len(data) >= 4:
                    size = 4 + struct.unpack_from(">I", data)[0]
        try:
            found = loads(bytes(data[4:size]))
        except (ValueError, RecursionError) as error:
            return f"the process answered with no JSON ({error})"
        return found if isinstance(found, dict) else "the process answered with no object"

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if code is None:
            return "its pipe closed"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def kill(self) -> None:
        """Ends it and its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _is_reply(found: Mapping[str, Any], num_samples: int) -> bool:
    """A value for each sample, or a fault of the function with the sample that showed it."""
    values, place = found.get("values"), found.get("sample")
    if isinstance(values, list) and "bug" not in found:
        kinds = (int, float, str, type(None))
        return len(values) == num_samples and all(isinstance(one, kinds) for one in values)
    return "bug" in found and isinstance(place, int) and 0 <= place < num_samples


def _checked_spec(spec: str) -> str:
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"reward function {spec!r}: expected path.py:function; fix: reward.terms")
    if not Path(path).is_file():
        raise ConfigError(
            f"reward function {spec!r}: no file {path}; fix: a path that exists from {Path.cwd()}"
        )
    return f"{Path(path).resolve()}:{name}"
