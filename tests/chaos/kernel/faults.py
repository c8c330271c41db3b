"""What can happen at a call, and how a schedule of it is written.

12:ENOSPC           instead of the 13th mutating call below the folder
12:SIGTERM@all      before it, to the whole process group; without @all to the process that calls
w3:garble           the fourth write into a pipe or a socket carries other bytes
"""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT")
ERRORS = ("ENOSPC", "EIO", "EINTR", "EACCES", "EROFS")
WRITES = ("short", "torn")
CLOCK = ("clock+", "clock-")
FILE_KINDS = (*SIGNALS, *ERRORS, *WRITES, *CLOCK)
WIRE_KINDS = ("garble", "half", "cut", "short", "EINTR", "SIGKILL", "SIGSTOP")
KINDS = tuple(dict.fromkeys((*FILE_KINDS, *WIRE_KINDS)))
# stays until the next start
STICKY = ("ENOSPC", "EROFS")
CLOCK_JUMP_S = 5 * 3600.0
# calls that may be interrupted, or that may find no room, or no permission
_INTERRUPTED = ("open", "openat", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "sendto")
_NEEDS_ROOM = (
    *("open", "openat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"),
    *("rename", "renameat", "renameat2"),
    *("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range"),
    *("fallocate", "truncate", "ftruncate", "fsync", "fdatasync"),
)
_NAMES_PATHS = (
    *("open", "openat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link", "linkat"),
    *("symlink", "symlinkat", "rename", "renameat", "renameat2", "truncate"),
)
_WRITES = ("write", "pwrite64", "sendto")
_CAN_MEET = {
    "ENOSPC": _NEEDS_ROOM,
    "EINTR": _INTERRUPTED,
    "EACCES": _NAMES_PATHS,
    "EROFS": _NAMES_PATHS,
    **dict.fromkeys(("short", "torn", "garble", "half", "cut"), _WRITES),
}
SOCKET = "@socket"


def can_meet(kind: str, call: str) -> bool:
    """Whether a fault of that kind can happen to a call of that name; one into a socket ends with
    `SOCKET`."""
    if kind == "cut" and not call.endswith(SOCKET):  # pipes are cut by the end of a process
        return False
    name = call.removesuffix(SOCKET)
    return name in _CAN_MEET.get(kind, (name,))


@dataclass(frozen=True, slots=True)
class Fault:
    """See the module. `at` counts from 0; wire: writes into pipes and sockets are counted, not calls
    that change files; everyone: a signal goes to the process group."""

    at: int
    kind: str
    wire: bool = False
    everyone: bool = False

    def __str__(self) -> str:
        place = f"w{self.at}" if self.wire else str(self.at)
        return f"{place}:{self.kind}{'@all' if self.everyone else ''}"

    @property
    def label(self) -> str:
        """Its column in the table."""
        return f"{'wire ' if self.wire else ''}{self.kind}{' to all' if self.everyone else ''}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """As `str` writes it."""
        at, kind = text.split(":")
        kind, _, target = kind.partition("@")
        assert kind in KINDS and target in ("", "all"), text
        return cls(int(at.removeprefix("w")), kind, at.startswith("w"), target == "all")

    @property
    def number(self) -> int:
        """Of the signal, or of the error."""
        return int(getattr(signal if self.kind in SIGNALS else errno, self.kind))


Starts = tuple[tuple[Fault, ...], ...]
"""The faults of one start after another; one that nobody disturbs comes behind."""


@dataclass(frozen=True, slots=True)
class Size:
    """The calls of an undisturbed start by their names: those that change files, those that write
    into pipes and sockets."""

    files: tuple[str, ...] = ()
    wires: tuple[str, ...] = ()


def single_faults(size: Size, wired: bool) -> Iterator[Starts]:
    """Each kind of fault at each call that can meet it, in an order that meets every kind early."""
    for turn in range(len(FILE_KINDS) + len(SIGNALS)):
        for at, call in enumerate(size.files):
            fault = _nth(at, at + turn)
            if can_meet(fault.kind, call):
                yield ((fault,),)
    for turn in range(len(WIRE_KINDS) if wired else 0):
        for at, call in enumerate(size.wires):
            kind = WIRE_KINDS[(at + turn) % len(WIRE_KINDS)]
            if can_meet(kind, call):
                yield ((Fault(at, kind, wire=True),),)


def _nth(at: int, number: int) -> Fault:
    number %= len(FILE_KINDS) + len(SIGNALS)
    if number < len(FILE_KINDS):
        return Fault(at, FILE_KINDS[number])
    return Fault(at, SIGNALS[number - len(FILE_KINDS)], everyone=True)


def drawn(size: Size, wired: bool, rng: random.Random) -> Starts:
    """One to three disturbed starts, one or two faults each."""
    return tuple(
        tuple(_draw(size, wired, rng) for _ in range(rng.randint(1, 2)))
        for _ in range(rng.randint(1, 3))
    )


def drawn_single(size: Size, wired: bool, rng: random.Random) -> Starts:
    """One fault in one start."""
    return ((_draw(size, wired, rng),),)


def _draw(size: Size, wired: bool, rng: random.Random) -> Fault:
    wire = wired and bool(size.wires) and rng.random() < 0.3
    calls = size.wires if wire else size.files
    at = rng.randrange(len(calls))
    kinds = [kind for kind in (WIRE_KINDS if wire else FILE_KINDS) if can_meet(kind, calls[at])]
    kind = rng.choice(kinds)
    everyone = kind in SIGNALS and not wire and rng.random() < 0.5
    return Fault(at, kind, wire, everyone)


def shorter(starts: Starts) -> Iterator[Starts]:
    """The schedules that leave out one start, or one fault."""
    for index in range(len(starts)):
        yield starts[:index] + starts[index + 1 :]
    for index, faults in enumerate(starts):
        for place in range(len(faults) if len(faults) > 1 else 0):
            fewer = faults[:place] + faults[place + 1 :]
            yield (*starts[:index], fewer, *starts[index + 1 :])
