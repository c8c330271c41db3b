"""What a disk may hold after a power cut, from the calls of a run: strict POSIX, as the authors of
ALICE (Pillai et al., OSDI 2014) and SQLite's crash tests read it.

Data of a file is there for certain once that file was synced after it was written, a name (a new
file, a rename, a removal) once its folder was. Everything else may be there or not, each by itself;
the last write may have come to half. A rename is one step and concerns the folder of the new name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from chaos.calls import Call

Tree = dict[str, bytes | None]  # path → content; None for a folder
_DATA = ("write", "truncate")


@dataclass(frozen=True, slots=True)
class State:
    """One possible disk. `prefix`: calls that had happened; `lost`: indices of those that did not
    reach it; `marks`: what the program had promised by then."""

    prefix: int
    lost: frozenset[int]
    torn: int | None
    tree: Tree
    marks: tuple[str, ...]

    def write_to(self, folder: Path, root: str) -> None:
        """Makes the folder look like it; what was under `root` lies there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, content in sorted(self.tree.items()):
            place = folder / os.path.relpath(path, root)
            if content is None:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)


class _Disk:
    """Names and contents while calls are played; folders are names too."""

    def __init__(self, root: str) -> None:
        self.names: dict[str, int | None] = {root: None}
        self.contents: dict[int, bytearray] = {}

    def play(self, index: int, call: Call, torn: bool = False) -> None:
        inode = self.names.get(call.path)
        if call.name == "open":
            if inode is None:
                self.names[call.path], self.contents[index] = index, bytearray()
            elif call.detail:
                self.contents[inode][:] = b""
        elif call.name == "mkdir":
            self.names[call.path] = None
        elif call.name in ("unlink", "rmdir"):
            self.names.pop(call.path, None)
        elif call.name in ("rename", "link"):
            self._rename(call.path, call.detail, keeps=call.name == "link")
        elif call.name == "truncate" and inode is not None:
            content = self.contents[inode]
            content[:] = content[: call.detail].ljust(call.detail, b"\0")
        elif call.name == "write" and inode is not None:
            offset, raw = call.detail
            raw, content = raw[: len(raw) // 2] if torn else raw, self.contents[inode]
            content.extend(b"\0" * (offset + len(raw) - len(content)))
            content[offset : offset + len(raw)] = raw

    def _rename(self, old: str, new: str, keeps: bool) -> None:
        for path in [name for name in self.names if name == old or name.startswith(old + "/")]:
            self.names[new + path[len(old) :]] = self.names[path]
            if not keeps:
                del self.names[path]

    def tree(self) -> Tree:
        """What a reader would find: names whose folders are all there."""
        reachable: Tree = {}
        for path in sorted(self.names):
            parent = os.path.dirname(path)
            if (parent in reachable and reachable[parent] is None) or not reachable:
                inode = self.names[path]
                reachable[path] = None if inode is None else bytes(self.contents[inode])
        return reachable


def with_unseen(calls: Sequence[Call]) -> list[Call]:
    """Adds what somebody wrote behind our back: where a sync found other content than the calls
    before it made, that content is a write of its own just before."""
    found: list[Call] = []
    disk = _Disk(os.path.commonpath([call.path for call in calls if call.name != "mark"]))
    for call in calls:
        extra: list[Call] = []
        if call.name == "fsync" and call.detail is not None:
            inode = disk.names.get(call.path)
            if inode is None:
                extra.append(Call("open", call.path, True))
            if inode is None or bytes(disk.contents[inode]) != call.detail:
                extra += [
                    Call("truncate", call.path, 0),
                    Call("write", call.path, (0, call.detail)),
                ]
        for one in (*extra, call):
            disk.play(len(found), one)
            found.append(one)
    return found


def _durable_at(calls: Sequence[Call], root: str) -> list[int]:
    """For each call the number of calls after which it is on the disk for certain."""
    never = len(calls) + 1
    safe = [never] * len(calls)
    disk = _Disk(root)
    data: dict[int, list[int]] = {}
    names: dict[str, list[int]] = {}
    for index, call in enumerate(calls):
        inode = disk.names.get(call.path)
        disk.play(index, call)
        if call.name == "mark":
            safe[index] = 0
        elif call.name == "fsync":
            safe[index] = 0
            waiting = names.pop(call.path, []) if inode is None else data.pop(inode, [])
            for earlier in waiting:
                safe[earlier] = index + 1
        elif call.name in _DATA or (call.name == "open" and inode is not None):
            data.setdefault(index if inode is None else inode, []).append(index)
        else:
            target = call.detail if call.name in ("rename", "link") else call.path
            names.setdefault(os.path.dirname(target), []).append(index)
    return safe


def states(calls: Sequence[Call], root: str, per_prefix: int, seed: int = 0) -> Iterator[State]:
    """Possible disks, each once: after every call with all, none, all but one, only one, and random
    parts of what was not certain yet."""
    rng = random.Random(seed)
    safe = _durable_at(calls, root)
    seen: set[bytes] = set()
    for prefix in range(1, len(calls) + 1):
        marks = tuple(call.path for call in calls[:prefix] if call.name == "mark")
        unsafe = [index for index in range(prefix) if safe[index] > prefix]
        for lost, torn in _choices(calls, unsafe, per_prefix, rng):
            disk = _Disk(root)
            for index in range(prefix):
                if index not in lost:
                    disk.play(index, calls[index], torn=index == torn)
            tree = disk.tree()
            key = digest(tree, marks)
            if key not in seen:
                seen.add(key)
                yield State(prefix, lost, torn, tree, marks)


def _choices(
    calls: Sequence[Call], unsafe: list[int], most: int, rng: random.Random
) -> Iterator[tuple[frozenset[int], int | None]]:
    everything = frozenset(unsafe)
    choices: list[tuple[frozenset[int], int | None]] = [(frozenset(), None), (everything, None)]
    writes = [index for index in unsafe if calls[index].name == "write"]
    choices += [(frozenset(), writes[-1])] if writes else []
    if 2 ** len(unsafe) <= most:  # few enough to try every one
        sizes = range(1, len(unsafe))
        some = itertools.chain.from_iterable(combinations(unsafe, size) for size in sizes)
        yield from [*choices, *((frozenset(lost), None) for lost in some)]
        return
    single = [(frozenset({index}), None) for index in unsafe]
    single += [(everything - {index}, None) for index in unsafe]
    rng.shuffle(single)
    choices += single[: max(0, most - len(choices))]
    while len(choices) < most and len(unsafe) > 2:
        choices.append((frozenset(rng.sample(unsafe, rng.randrange(1, len(unsafe)))), None))
    yield from choices[:most]


def digest(tree: Tree, marks: tuple[str, ...]) -> bytes:
    """Tells disks apart, and what was promised when they were like that."""
    found = hashlib.blake2b(repr(marks).encode(), digest_size=16)
    for path, content in tree.items():
        found.update(path.encode() + b"\0")
        found.update(b"d" if content is None else hashlib.blake2b(content).digest())
    return found.digest()
