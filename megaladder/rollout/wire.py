"""Messages between an engine's parent and its child process.

JSON objects, each behind a 4-byte length and its complement, over one end of a socket pair: a
length that is none is known at once, and nobody waits for what it says.

Plain data only, so that neither side can make the other run code. The socket pair is inherited: no
port, no address, nobody else can connect. Not for tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from megaladder.process.signals import go_on_without_parent
from megaladder.rollout.engine import OnPiece, SampleRequest, SamplingParams
from megaladder.types import Completion, FinishReason

TEMPORARY_VARIABLE = "MEGALADDER_ENGINE_TEMPORARY"  # the child's folder for temporary files
HEAD = struct.Struct("!II")
_ALL_BITS = 0xFFFFFFFF
MAX_MESSAGE_BYTES = 1 << 30  # far above a round of prompts; more is garbage
Kinds = Mapping[str, Any]  # name → type, or types
# what a message has by its `op`: of an engine's child, and of rank 0 to another node
_OF_CHILD: dict[str, Kinds] = {
    "ready": {"describe": dict, "features": dict},
    "beat": {},
    "broken": {"message": str},
    "refused": {"call": int, "id": int, "message": str},
    "piece": {"call": int, "start": int, "text": str},
    "done": {"call": int, "items": list},
    "reply": {"call": int},
}
_FOR_NODE: dict[str, Kinds] = {
    "start": {},
    "tell": {"message": dict},
    "stop": {"patience_s": (int, float)},
}
_ITEM: Kinds = {"id": int, "ids": list, "text": str, "finish": (str, type(None)), "logprobs": list}
_GREETING: Kinds = {"node": int, "slot": int, "slots": int}
_REFUSAL: Kinds = {"node": int, "error": str, "exit_status": int}
_OF_NODE: Kinds = {
    "incarnation": int,
    "message": (dict, type(None)),
    "how": str,
    "pid": (int, type(None)),
}


def is_of_child(message: dict[str, Any]) -> bool:
    """Whether an engine's child may say this."""
    op = message.get("op")
    if not isinstance(op, str) or not _has(message, _OF_CHILD.get(op)):
        return False
    if op == "reply":
        return "result" in message or isinstance(message.get("error"), str)
    return op != "done" or all(map(_is_item, message["items"]))


def _is_item(item: Any) -> bool:
    """A finished completion."""
    if not _has(item, _ITEM) or not isinstance(item.get("experts", ""), str):
        return False
    return set(map(type, item["ids"])) <= {int} and set(map(type, item["logprobs"])) <= {int, float}


def is_for_node(message: dict[str, Any]) -> bool:
    """Whether rank 0 may say this to another node."""
    op = message.get("op")
    return isinstance(op, str) and _has(message, _FOR_NODE.get(op))


def is_of_node(message: dict[str, Any]) -> bool:
    """Whether another node may say this of its replica."""
    said = message.get("message")
    return _has(message, _OF_NODE) and (said is None or is_of_child(said))


def is_greeting(words: Any) -> bool:
    """Whether another node may begin with this."""
    return _has(words, _REFUSAL) or _has(words, _GREETING)


def _has(message: Any, kinds: Kinds | None) -> bool:
    return (
        kinds is not None
        and isinstance(message, dict)
        and all(isinstance(message.get(name, ...), kind) for name, kind in kinds.items())
    )


def _packed(message: dict[str, Any]) -> bytes:
    raw = json.dumps(message, separators=(",", ":")).encode()
    return HEAD.pack(len(raw), len(raw) ^ _ALL_BITS) + raw


def length_of(head: bytes) -> int:
    """What a message's first bytes say of the others; -1: that these are no message's."""
    size, complement = HEAD.unpack(head)
    return size if size ^ complement == _ALL_BITS else -1


class Channel:
    """One end. `send` and `post` are safe from several threads; `receive` belongs to one thread."""

    def __init__(self, end: socket.socket):
        self._end = end
        self._sending, self._starting = threading.Lock(), threading.Lock()
        self._posted: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._ended = False
        self.nonsense = ""  # what the other side said that was no message

    def send(self, message: dict[str, Any]) -> None:
        """Blocks until it is written. Raises OSError when the other side is gone."""
        self._send(_packed(message))

    def post(self, message: dict[str, Any]) -> None:
        """Hands it to a thread that sends one after the other.

        Never waits for the other side to read. Raises OSError when that is gone.
        """
        if self._ended:
            raise ConnectionError("the other side is gone")
        self._posted.put(_packed(message))
        with self._starting:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, daemon=True, name="posts")
                self._writer.start()

    def receive(self, is_known: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any] | None:
        """The next message, or None when the other side is gone, or says what is none.

        An object that is not `is_known` is no message either.

        After nonsense nothing that follows can be understood: whoever listens ends the other side.
        """
        head = self._exactly(HEAD.size)
        if head is None:
            return None
        size = length_of(head)
        if not 0 <= size <= MAX_MESSAGE_BYTES:
            self.nonsense = "what is no length" if size < 0 else f"a message of {size:,} bytes"
            return None
        raw = self._exactly(size)
        try:
            message = json.loads(raw) if raw is not None else None
        except (ValueError, RecursionError) as error:
            self.nonsense = f"a message that is no JSON ({error})"
            return None
        if message is not None and not isinstance(message, dict):
            self.nonsense = "a message that is no object"
            return None
        if message is not None and not is_known(message):
            self.nonsense = "a message of no known kind"
            return None
        return message

    def close(self) -> None:
        """Ends the connection for both sides, also for a `receive` that waits in another thread."""
        self._ended = True
        self._posted.put(None)
        with contextlib.suppress(OSError):  # the other side may have gone first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _send(self, raw: bytes) -> None:
        with self._sending:
            self._end.sendall(raw)

    def _write(self) -> None:
        while (raw := self._posted.get()) is not None:
            try:
                self._send(raw)
            except OSError:
                self._ended = True

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


def commands_of_parent(channel: Channel) -> queue.SimpleQueue[dict[str, Any]]:
    """In an engine's child process: what its parent says, in order.

    When the parent is gone, however it died, this process's whole group is killed by the thread
    that listens, and its temporary files go; the kernel wakes a process that stands still (SIGSTOP)
    for that.
    """
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    temporary = os.environ.get(TEMPORARY_VARIABLE, "")

    def listen() -> None:
        while (message := channel.receive()) is not None:
            commands.put(message)
        for _ in range(100):  # the other thread may be writing there
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(temporary):
                break
        os.killpg(os.getpgid(0), signal.SIGKILL)  # nothing of ours may stay

    if temporary:
        os.mkdir(temporary, 0o700)
    go_on_without_parent()
    threading.Thread(target=listen, daemon=True, name="commands").start()
    return commands


class Stream:
    """One `stream` call: its requests, and how they are told to a child.

    Each prompt and each set of parameters is sent once.
    """

    def __init__(
        self, requests: Sequence[SampleRequest], call: int, on_piece: OnPiece | None = None
    ):
        self.requests, self.call, self.on_piece = requests, call, on_piece

    def spread(self, num_replicas: int) -> list[list[int]]:
        """Request indices per replica.

        All samples of a prompt go to one replica (prefix cache); shares are even to within one
        prompt.
        """
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(self.requests):
            by_prompt.setdefault(request.prompt_ids, []).append(index)
        shares: list[list[int]] = [[] for _ in range(num_replicas)]
        for indices in by_prompt.values():
            min(shares, key=len).extend(indices)
        return shares

    def message(self, indices: Sequence[int]) -> dict[str, Any]:
        """The "generate" message.

        `requests` are [id, index into prompts, index into params, seed]."""
        prompts: dict[tuple[int, ...], int] = {}
        params: dict[SamplingParams, int] = {}
        rows = []
        for index in indices:
            request = self.requests[index]
            prompt = prompts.setdefault(request.prompt_ids, len(prompts))
            rows.append(
                [
                    index,
                    prompt,
                    params.setdefault(replace(request.params, seed=None), len(params)),
                    request.params.seed,
                ]
            )
        return {
            "op": "generate",
            "call": self.call,
            "pieces": self.on_piece is not None,
            "requests": rows,
            "prompts": [list(prompt) for prompt in prompts],
            "params": [asdict(one) for one in params],
        }

    def prompt_length(self, index: int) -> int:
        return len(self.requests[index].prompt_ids)


def completion_of(item: Mapping[str, Any], version: int) -> Completion:
    """An item of a "done" message, made with that version of the weights."""
    reason = (
        FinishReason(item["finish"]) if item["finish"] in ("stop", "length") else FinishReason.ABORT
    )
    logprobs, experts = tuple(item["logprobs"]), item.get("experts", "")
    return Completion(tuple(item["ids"]), item["text"], reason, logprobs, version, experts)
