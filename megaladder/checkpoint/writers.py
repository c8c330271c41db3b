"""The processes that write a checkpoint's files for megatron-core, watched while they do.

megatron-core's own waits for its writers for ever when one of them is killed (out of memory), and
keeps their results in a server process that the signal which asks for a save may end first. Here a
writer is a fork that ignores stop signals and dies with its parent; its results come through a
pipe, so that its end is seen at once; and the results of a whole save lie in an anonymous file.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint.api import CheckpointException

from megaladder.errors import StorageError
from megaladder.process.faults import fault_point
from megaladder.process.ranks import StoppedProcesses, stopped_in_words
from megaladder.process.signals import deaf_helper
from megaladder.process.storage import storage_error

_WAY_OUT = (
    "; what was committed before is untouched; fix: look for an out-of-memory kill (dmesg), then"
    " start the same command again"
)
_STOPPED_OUT = "; what was committed before is untouched; fix: start the same command again"
LOOK_S = 1.0  # between two looks at writers that say nothing
Bucket = Any  # megatron-core's (path, name, (bytes, tensors))


class WriterError(Exception):
    """A writer's failure in words that survive a pipe."""


class Results:
    """What `filesystem_async` takes for a queue: one value, put by a fork, read by its parent."""

    def __init__(self) -> None:
        # open as long as the save lasts, and in its forks
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        if hasattr(os, "memfd_create"):  # needs no disk
            self._file.close()
            self._file = os.fdopen(os.memfd_create("megaladder-results"), "w+b")

    def put(self, value: object) -> None:
        self._file.seek(0)
        self._file.truncate()
        pickle.dump(value, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """What was put since the last call; an error when the process that should was killed."""
        self._file.seek(0)
        raw = self._file.read()
        if not raw:
            return WriterError(f"the process that saves in the background was killed{_WAY_OUT}")
        self._file.seek(0)
        self._file.truncate()
        return pickle.loads(raw)


class SaverWatch:
    """Ends the process of a background save that stands still, as that one ends its writers.

    megatron-core only asks whether it is alive, and waits for it without an end."""

    def __init__(self) -> None:
        self._stopped = StoppedProcesses()

    def look(self, queue: AsyncCallsQueue) -> None:
        """At every process that saves; one that was stopped for long fails in words."""
        for process in _savers(queue):
            if self._stopped.too_long(process.pid):
                hangs = "the process that saves in the background hangs: "
                words = f"{stopped_in_words(process.pid)}{_STOPPED_OUT}"
                filesystem_async._results_queue.put(WriterError(hangs + words))
                process.kill()

    def wait(self, queue: AsyncCallsQueue) -> None:
        """For the end of them all."""
        for process in _savers(queue):
            while process.is_alive():
                process.join(LOOK_S)
                self.look(queue)


def _savers(queue: AsyncCallsQueue) -> list[BaseProcess]:
    found = (call.async_caller.process for call in queue.async_calls)
    return [process for process in found if process is not None]


def install() -> None:
    """Makes megatron-core write with the functions below.

    Before every save: each has its own results."""
    filesystem_async._results_queue = Results()
    writer = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data_multiproc = staticmethod(_Writing(os.getpid()))


@contextmanager
def failures_in_words(path: Path) -> Iterator[None]:
    """Around a save: what failed while `path` was written becomes a StorageError on every rank.

    The rank that collects the writers' answers knows the words, the others only that it does."""
    try:
        yield
    except CheckpointException as error:
        said = [str(one).removeprefix("Worker failure: ") for one, _ in error.failures.values()]
        words = StorageError(said[0] if said else f"{path}: another rank could not write its part")
        words.told_elsewhere = not said
        raise words from None
    except (OSError, RuntimeError) as error:
        found = storage_error(error, path)
        if found is None:
            raise
        raise found from error


class _Writing:
    """Stands in for `write_preloaded_data_multiproc`.

    A background save runs it in a fork of the rank `rank_pid`, others in the rank itself."""

    def __init__(self, rank_pid: int) -> None:
        self._rank_pid = rank_pid

    def __call__(
        self,
        transforms: list[Any],
        use_msc: bool,
        rank: int,
        buckets: list[Bucket],
        results: Results,
    ) -> None:
        assert not use_msc, "multi-storage paths are not used"
        if os.getpid() != self._rank_pid:
            deaf_helper(self._rank_pid)
        try:
            results.put(_write_all(transforms, buckets))
        except WriterError as error:
            results.put(error)


def _write_all(transforms: list[Any], buckets: list[Bucket]) -> dict[int, list[Any]]:
    """A process for each bucket; what each wrote, by its index.

    Raises:
        WriterError: one failed or was killed; the others are ended.
    """
    writers = [_start(transforms, bucket) for bucket in buckets]
    waiting = {receiver: index for index, (_, receiver) in enumerate(writers)}
    written: dict[int, list[Any]] = {}
    stopped = StoppedProcesses()
    fault_point("writing")
    try:
        while waiting:
            for ready in connection.wait(list(waiting), LOOK_S):
                assert isinstance(ready, Connection)
                index = waiting.pop(ready)
                written[index] = _answer(ready, writers[index][0], Path(buckets[index][0]))
            for index in waiting.values():
                if stopped.too_long(writers[index][0].pid):
                    words = stopped_in_words(writers[index][0].pid)
                    raise WriterError(
                        f"{buckets[index][0]}: its writer hangs: {words}{_STOPPED_OUT}"
                    )
    finally:
        for process, receiver in writers:
            if waiting:
                process.kill()
            process.join()
            receiver.close()
    return written


def _start(transforms: list[Any], bucket: Bucket) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_write, args=(transforms, bucket, sender, os.getpid()))
    process.start()
    sender.close()
    return process, receiver


def _answer(receiver: Connection, process: BaseProcess, path: Path) -> list[Any]:
    try:
        answer = receiver.recv()
    except Exception:  # noqa: BLE001  (no answer, half of one, or what is none)
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        told = f"{path}: the process that wrote it {how}, without a whole answer"
        raise WriterError(told + _WAY_OUT) from None
    if isinstance(answer, WriterError):
        raise answer
    return answer


def _write(transforms: list[Any], bucket: Bucket, sender: Connection, parent: int) -> None:
    """The program of one writer."""
    deaf_helper(parent)
    fault_point("write_files")
    box, done = _Box(), _Done()
    filesystem_async.FileSystemWriterAsync.write_preloaded_data(
        transforms, 0, bucket, box, done, use_fsync=True
    )
    if isinstance(box.value, Exception):
        words = storage_error(box.value, bucket[0])
        box.value = WriterError(
            str(words) if words else f"{bucket[0]}: {type(box.value).__name__}: {box.value}"
        )
    with suppress(OSError):  # the rank reads half an answer, or is gone
        sender.send(box.value)
    sender.close()


class _Box:
    """The queue that a writer puts its result in."""

    value: Any = None

    def put(self, answer: tuple[int, Any]) -> None:
        self.value = answer[1]


class _Done:
    """The queue by which a writer says that it has ended; the pipe says so already."""

    def get(self) -> None: ...

    def task_done(self) -> None: ...
