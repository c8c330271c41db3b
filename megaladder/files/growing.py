"""The lines of a file that somebody else appends to, read on from where the last reading ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK = 1 << 22
# the last bytes that were read, to notice a file that was written anew under its old name
TAIL = 64


@dataclass
class GrowingLines:
    """Whole lines, each read once: one without its newline is not read yet (`torn`).

    number: of the line that was read last, from 1. read_bytes: in all, to show that nothing is read
    twice."""

    path: Path
    number: int = 0
    torn: bool = False
    read_bytes: int = 0
    _end: int = 0
    _last: bytes = b""
    _file: tuple[int, int] | None = None  # device, inode

    def look(self) -> tuple[bool, Iterator[bytes]]:
        """Whether what was read before is void, and the lines that are new, to be read at once.

        Void: the file is gone, was replaced or rewound (a run resumed from an earlier checkpoint);
        then the lines are all that it has now."""
        try:
            file = self.path.open("rb")
        except OSError:
            return self._forget(), iter(())
        return self._begin_again_if_replaced(file), self._lines(file)

    def _forget(self) -> bool:
        known = self._file is not None
        self._end, self.number, self._last = 0, 0, b""
        self._file, self.torn = None, False
        return known

    def _begin_again_if_replaced(self, file: IO[bytes]) -> bool:
        status = os.fstat(file.fileno())
        same = self._file in (None, (status.st_dev, status.st_ino)) and status.st_size >= self._end
        if same and self._last:
            file.seek(self._end - len(self._last))
            same = file.read(len(self._last)) == self._last
        void = not same and self._forget()
        self._file = (status.st_dev, status.st_ino)
        return void

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        with file:
            file.seek(self._end)
            rest = b""
            while chunk := file.read(CHUNK):
                self.read_bytes += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._end += len(line) + 1
                    self._last = (self._last + line + b"\n")[-TAIL:]
                    self.number += 1
                    yield line
            self.torn = bool(rest)
