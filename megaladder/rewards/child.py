"""The program that a worker process runs.

Read a batch of samples, grade one after the other, answer each at once.

Started by `worker.GradePool` as a script with an empty environment, with a page of shared memory
(its descriptor is the argument). Frames on both pipes: 4 bytes length (big endian), then JSON.
First frame in: {"sys_path", "timeout_s", "memory_bytes"}; first frame out: {"ready": [protections]}
or {"error": text}. Then lists of tasks in, lists of answers out, in order: what a batch has found
within FLUSH_S goes out together. Which sample of the batch is under way stands in the shared page,
so that a process that dies names its culprit. JSON and not pickle: what comes out of this process
is not trusted by its reader.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from megaladder.rewards.sandbox import Limits

MAX_DETAIL_CHARS = 400
FLUSH_S, FLUSH_CHARS = 0.01, 100_000
PROGRESS = struct.Struct("<I")
"""What the shared page holds: the index of the sample that is under way, in its batch."""


def read_frame(stream: BinaryIO) -> Any:
    """One JSON value; None at the end of the stream."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    return json.loads(stream.read(struct.unpack(">I", header)[0]))


def frame(value: Any) -> bytes:
    body = json.dumps(value).encode("ascii")
    return struct.pack(">I", len(body)) + body


def main() -> None:
    incoming, outgoing = _take_pipes()
    setup = read_frame(incoming)
    if setup is None:
        return
    try:
        work, limits, active = _prepare(setup)
    except Exception as error:  # noqa: BLE001  everything that can go wrong at import or in the user's file is reported, then this process ends
        outgoing.write(frame({"error": _describe(error)}))
        return
    outgoing.write(frame({"ready": active}))
    progress = mmap.mmap(int(sys.argv[1]), mmap.PAGESIZE)
    while (batch := read_frame(incoming)) is not None:
        for answers in _graded(batch, work, limits, progress):
            outgoing.write(frame(answers))


def _graded(
    batch: list[Any], work: Callable[[list[Any]], list[Any]], limits: Limits, progress: mmap.mmap
) -> Iterator[list[list[Any]]]:
    """The answers of a batch, a piece at a time; each sample has the clock for itself."""
    from megaladder.rewards.sandbox import limit_batch, start_clock, stop_clock

    answers: list[list[Any]] = []
    limit_batch(limits, len(batch))
    flush_at, num_chars = time.monotonic() + FLUSH_S, 0
    for index, task in enumerate(batch):
        PROGRESS.pack_into(progress, 0, index)
        start_clock(limits)
        answer = work(task)
        answers.append(answer)
        num_chars += len(answer[1] or "") if len(answer) > 1 else 0
        if time.monotonic() > flush_at or num_chars > FLUSH_CHARS:
            stop_clock()
            yield answers
            answers, num_chars, flush_at = [], 0, time.monotonic() + FLUSH_S
    stop_clock()
    if answers:
        yield answers


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Our pipes under new numbers.

    0, 1 and 2 go to /dev/null, so that nothing a sample prints reaches anybody or fills a disk."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return incoming, outgoing


def _prepare(
    setup: Mapping[str, Any],
) -> tuple[Callable[[list[Any]], list[Any]], Limits, list[str]]:
    sys.path[:0] = setup["sys_path"][:1]
    sys.path += setup["sys_path"][1:]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from megaladder.console import imports
    from megaladder.process.signals import go_on_without_parent
    from megaladder.rewards.sandbox import Limits, enter

    imports.begin()
    go_on_without_parent()  # to the end of its pipe, also when it was stopped
    folder = tempfile.mkdtemp(prefix="megaladder-grade-")
    os.chdir(folder)
    os.rmdir(
        folder
        # a working directory that is already gone: nothing can be created in it and nothing is left
        # behind
    )
    from megaladder.rewards.grade import OWN
    from megaladder.rewards.verifiers import verify

    # imports all that grading needs before the limits are set
    assert verify("math", "\\boxed{x+1}", "1+x", {}).correct
    if setup["grader"] != OWN:
        import math_verify  # noqa: F401
    limits = Limits(setup["timeout_s"], setup["memory_bytes"])
    chosen = partial(verify, grader=setup["grader"], dialect=setup["dialect"])
    imports.done()
    return partial(_grade, chosen), limits, enter(limits)


def _grade(verify: Callable[..., Any], task: list[Any]) -> list[Any]:
    """[correct, answer, reason, detail] of [kind, response, gold, parameters]; [text] of a crash."""
    try:
        graded = verify(*task)
    except Exception as error:  # noqa: BLE001  model text may break a parser in new ways: one sample, counted and named as a crash
        return [_describe(error)]
    detail = graded.detail[:MAX_DETAIL_CHARS]
    return [graded.correct, graded.answer, graded.reason.value, detail]


def _describe(error: BaseException) -> str:
    """Type, message and the innermost lines of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    where = "".join(f" at {os.path.basename(item.filename)}:{item.lineno}" for item in frames[-1:])
    return f"{type(error).__name__}: {_safe_text(error)}{where}"[:MAX_DETAIL_CHARS]


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_DETAIL_CHARS]
    except Exception:  # noqa: BLE001  their __str__
        return "(no message)"


if __name__ == "__main__":
    main()
