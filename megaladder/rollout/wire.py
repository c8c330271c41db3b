"""Messages between an engine's parent and its child process.

JSON objects, each behind a 4-byte length, over one end of a socket pair.

Plain data only, so that neither side can make the other run code. The socket pair is inherited: no
port, no address, nobody else can connect. Not for tensors.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any

LENGTH = struct.Struct("!I")


class Channel:
    """One end. `send` is safe from several threads; `receive` belongs to one thread."""

    def __init__(self, end: socket.socket):
        self._end = end
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Blocks until it is written. Raises OSError when the other side is gone."""
        raw = json.dumps(message, separators=(",", ":")).encode()
        with self._lock:
            self._end.sendall(LENGTH.pack(len(raw)) + raw)

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None when the other side is gone."""
        head = self._exactly(LENGTH.size)
        raw = self._exactly(LENGTH.unpack(head)[0]) if head else None
        return json.loads(raw) if raw is not None else None

    def close(self) -> None:
        """Ends the connection for both sides, also for a `receive` that waits in another thread."""
        with contextlib.suppress(OSError):  # the other side may have gone first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _exactly(self, count: int) -> bytes | None:
        chunks = bytearray()
        while len(chunks) < count:
            try:
                chunk = self._end.recv(min(count - len(chunks), 1 << 20))
            except OSError:
                return None
            if not chunk:
                return None
            chunks += chunk
        return bytes(chunks)
