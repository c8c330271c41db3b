"""The process of a user's reward function: a batch of samples in, their values out.

Started by `function_pool` as a script. It is the user's own code and runs with the user's
environment, like the trainer itself; the process is there so that a hang or a crash costs samples
and not the run. Frames: 4 bytes length (big endian), then JSON.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

PARENT_POLL_S = 1.0


def main(spec: str, paths: list[str]) -> None:
    """Loads the function, says how it wants to be called, and answers until the pipe closes."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what the function prints must not reach the pipe
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    sys.path[:1] = paths  # not the folder of this script
    from megaladder.process.signals import go_on_without_parent
    from megaladder.rewards.terms.signatures import Bug, describe, load

    go_on_without_parent()
    try:
        function = load(spec)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever their file does is reported
        outgoing.write(frame({"error": describe(error)}))
        return
    outgoing.write(frame({"batched": function.batched}))
    while (samples := read_frame(incoming)) is not None:
        try:
            reply: dict[str, Any] = {"values": function(samples)}
        except Bug as bug:
            reply = {"bug": str(bug), "sample": bug.sample}
        outgoing.write(frame(reply))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def read_frame(stream: BinaryIO) -> Any:
    """One JSON value; None at the end of the stream."""
    header = stream.read(4)
    return json.loads(stream.read(struct.unpack(">I", header)[0])) if len(header) == 4 else None


def frame(value: Any) -> bytes:
    body = json.dumps(value).encode("ascii")
    return struct.pack(">I", len(body)) + body


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
