"""Engines on every node of a job, fed by rank 0.

The first rank of each other node owns its node's replicas and relays their messages.

    rank 0                                 leader of node 1, 2, … (a daemon thread a replica)
    ProcessEngine ── RemoteReplica ──TCP── serve() ── Replica ──socket pair── vLLM child

To `ProcessEngine` a replica elsewhere is one like any other: requests are spread over all, a lost
one is started again and given what it had not finished. If a leader dies, its children die with it;
if rank 0 dies, the connection closes and the leader ends its children.

Plain JSON messages (`wire`), no pickle. Rank 0 listens on the address that the job meets at
(MASTER_ADDR); a connection must begin with a token that only the ranks of this job know. Not here:
tensors (`weight_sync` writes each node's own copy), starting of nodes (torchrun).
"""

from __future__ import annotations

import hmac
import json
import os
import queue
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megaladder.errors import EngineError, MegaladderError
from megaladder.rollout.replica import Inbox, ReplicaSpec
from megaladder.rollout.wire import HEAD, Channel, is_for_node, is_greeting, is_of_node, length_of

TOKEN_BYTES = 32
HELLO_TIMEOUT_S = 10.0  # a connection that has not said who it is by then is dropped
MAX_GREETINGS = 256  # at once; the oldest of more is dropped
MAX_HELLO_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the leaders of the other nodes find rank 0, and what they say first."""

    host: str
    port: int
    token: str


class Listener:
    """Rank 0's end. `meeting` is for the leaders; `accept` waits for them."""

    def __init__(self, num_leaders: int, host: str | None = None) -> None:
        self._num_leaders = num_leaders
        host = host or os.environ.get("MASTER_ADDR", "127.0.0.1")
        self._socket = _listen(host)
        self.meeting = Meeting(host, self._socket.getsockname()[1], secrets.token_hex(TOKEN_BYTES))

    def accept(self, timeout_s: float) -> list[RemoteSpec]:
        """The replicas that the leaders offer, by node and place.

        Greetings go side by side: who says nothing, or drips, holds nobody up.

        Raises:
            EngineError: a leader did not come in time. MegaladderError: a leader cannot offer what
            was asked of it; its own words.
        """
        found: dict[tuple[int, int], RemoteSpec] = {}
        expected: dict[int, int] = {}
        deadline = time.monotonic() + timeout_s
        with self._socket, _Door(self._socket, self.meeting.token) as door:
            while len(expected) < self._num_leaders or len(found) < sum(expected.values()):
                if time.monotonic() > deadline:
                    raise self._nobody_came(len(expected), timeout_s)
                for connection, words in door.open(deadline):
                    if "error" in words:
                        error = MegaladderError(f"node {words['node']}: {words['error']}")
                        error.exit_status = words["exit_status"]
                        raise error
                    node, slot = words["node"], words["slot"]
                    expected[node] = words["slots"]
                    if words["slots"]:
                        found[node, slot] = RemoteSpec(node, slot, Channel(connection))
        return [found[key] for key in sorted(found)]

    def _nobody_came(self, num_came: int, timeout_s: float) -> EngineError:
        missing, place = self._num_leaders - num_came, f"{self.meeting.host}:{self.meeting.port}"
        return EngineError(
            f"{missing} of {self._num_leaders} other nodes did not offer their engines at {place}"
            f" within {timeout_s:.0f} s; fix: see the other nodes' output, and that the nodes reach"
            " each other on any port"
        )


class _Door:
    """The connections that have not said yet who they are."""

    def __init__(self, listener: socket.socket, token: str) -> None:
        self._listener, self._token = listener, token
        self._selector = selectors.DefaultSelector()
        self._waiting: list[_Greeting] = []  # oldest first
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *exc: object) -> None:
        for greeting in list(self._waiting):
            self._turn_away(greeting)
        self._selector.close()

    def open(self, deadline: float) -> Iterator[tuple[socket.socket, dict[str, Any]]]:
        """Waits for something to happen; the connections that know the token, and their words."""
        until = min([deadline, *(greeting.deadline for greeting in self._waiting)])
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            if key.data is None:
                self._let_in()
                continue
            try:
                words = key.data.hear()
            except (OSError, ValueError):
                self._turn_away(key.data)
                continue
            if words is not None:
                yield self._through(key.data), words
        for greeting in [one for one in self._waiting if time.monotonic() > one.deadline]:
            self._turn_away(greeting)

    def _let_in(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away again
            return
        if len(self._waiting) >= MAX_GREETINGS:
            self._turn_away(self._waiting[0])
        greeting = _Greeting(connection, self._token)
        self._waiting.append(greeting)
        self._selector.register(connection, selectors.EVENT_READ, greeting)

    def _through(self, greeting: _Greeting) -> socket.socket:
        self._selector.unregister(greeting.connection)
        self._waiting.remove(greeting)
        greeting.connection.setblocking(True)
        keep_alive(greeting.connection)
        return greeting.connection

    def _turn_away(self, greeting: _Greeting) -> None:
        self._selector.unregister(greeting.connection)
        self._waiting.remove(greeting)
        greeting.connection.close()


class _Greeting:
    """The first words of one connection: the token, then a frame as of `wire`.

    One deadline for all of it."""

    def __init__(self, connection: socket.socket, token: str) -> None:
        connection.setblocking(False)
        self.connection, self._token = connection, token.encode()
        self.deadline = time.monotonic() + HELLO_TIMEOUT_S
        self._said = b""
        self._wanted = len(self._token)

    def hear(self) -> dict[str, Any] | None:
        """Takes what has come, at most to the end of the greeting; its words once it is complete.

        Raises:
            OSError, ValueError: it ended, or is no greeting of ours.
        """
        more = self.connection.recv(self._wanted - len(self._said))
        if not more:
            raise ConnectionError("it ended before it had said who it is")
        self._said += more
        if len(self._said) < self._wanted:
            return None
        head = len(self._token)
        # nothing is parsed before the token has been checked
        if not hmac.compare_digest(self._said[:head], self._token):
            raise ValueError("another token")
        if self._wanted == head:
            self._wanted += HEAD.size
            return None
        if self._wanted == head + HEAD.size:
            size = length_of(self._said[head:])
            if not 0 < size <= MAX_HELLO_BYTES:
                raise ValueError(f"a greeting of {size} bytes")
            self._wanted += size
            return None
        try:
            words = json.loads(self._said[head + HEAD.size :])
        except RecursionError as error:
            raise ValueError(str(error)) from None
        if not is_greeting(words):
            raise ValueError("no greeting")
        return words


def offer(meeting: Meeting, node: int, specs: Callable[[], Sequence[ReplicaSpec]]) -> None:
    """Makes this node's replicas known to rank 0 and serves them until it is gone.

    The end of a node's leader; serves in daemon threads.

    `specs` says what they are; where it fails, rank 0 is told why and raises it.
    """
    try:
        own = list(specs())
    except MegaladderError as error:
        _connect(meeting).send(
            {"node": node, "error": str(error), "exit_status": error.exit_status}
        )
        return
    if not own:
        _connect(meeting).send({"node": node, "slot": 0, "slots": 0})
    for slot, spec in enumerate(own):
        channel = _connect(meeting)
        channel.send({"node": node, "slot": slot, "slots": len(own)})
        threading.Thread(
            target=serve, args=(channel, spec, slot), daemon=True, name=f"node-engine-{slot}"
        ).start()


def serve(channel: Channel, spec: ReplicaSpec, slot: int) -> None:
    """Carries out what rank 0 says about one replica of this node.

    Sends back what the replica says.
    """
    inbox: Inbox = queue.SimpleQueue()
    replica = spec.open(slot, inbox)

    def report() -> None:
        while True:
            _, incarnation, message = inbox.get()
            how = replica.post_mortem() if message is None else ""
            try:
                channel.send(
                    {"incarnation": incarnation, "message": message, "how": how, "pid": replica.pid}
                )
            except OSError:
                return  # rank 0 is gone; the loop below ends too

    threading.Thread(target=report, daemon=True, name=f"node-engine-{slot}-report").start()
    while (command := channel.receive(is_for_node)) is not None:
        if command["op"] == "start":
            replica.start()
        elif command["op"] == "tell":
            replica.send(command["message"])
        elif command["op"] == "stop":
            replica.stop(command["patience_s"])
    replica.kill()
    channel.close()  # of a rank 0 that says what is no command, too


@dataclass(frozen=True, slots=True)
class RemoteSpec:
    """A replica that another node offers."""

    node: int
    slot: int
    channel: Channel

    def open(self, index: int, inbox: Inbox) -> RemoteReplica:
        return RemoteReplica(index, inbox, self)


class RemoteReplica:
    """See `replica.AnyReplica`.

    Once its node is gone it cannot be started again: the run ends with status 3, and can be
    resumed.
    """

    def __init__(self, index: int, inbox: Inbox, spec: RemoteSpec) -> None:
        self.index, self.node = index, spec.node
        self.incarnation = 0
        self.info: dict[str, Any] = {}
        self.pid: int | None = None
        self._inbox, self._channel, self._slot = inbox, spec.channel, spec.slot
        self._alive, self._linked, self._how = False, True, "not started"
        threading.Thread(target=self._read, daemon=True, name=f"engine-{index}").start()

    @property
    def alive(self) -> bool:
        return self._alive and self._linked

    # of another machine: it shows as silence
    stopped = False

    def start(self) -> None:
        """Has the node start a new incarnation (and end the one before)."""
        self.incarnation += 1
        self.info = {}
        self._alive, self._how = True, "starting"
        if not self._tell({"op": "start"}):
            self._lost()

    def send(self, message: dict[str, Any]) -> bool:
        return self._tell({"op": "tell", "message": message})

    def stop(self, patience_s: float) -> None:
        self._tell({"op": "stop", "patience_s": patience_s})
        self._alive = False

    def kill(self) -> None:
        """Closing the connection makes the node kill the child."""
        self._alive = self._linked = False
        self._channel.close()

    def post_mortem(self) -> str:
        return (
            f"node {self.node} replica {self._slot}: {'still running' if self.alive else self._how}"
        )

    def _tell(self, command: dict[str, Any]) -> bool:
        try:
            self._channel.post(command)
        except OSError:
            return False
        return self._linked

    def _read(self) -> None:
        while (said := self._channel.receive(is_of_node)) is not None:
            current = said["incarnation"] == self.incarnation
            if current:
                self.pid = said["pid"]
            if said["message"] is None and current:
                self._alive, self._how = False, said["how"]
            self._inbox.put((self.index, said["incarnation"], said["message"]))
        self._linked = False
        self._lost()
        self._channel.close()  # then the node ends its child, whatever it said

    def _lost(self) -> None:
        said = self._channel.nonsense
        why = f"the node said {said}" if said else "the connection to the node was lost"
        self._alive, self._how = False, why
        self._inbox.put((self.index, self.incarnation, None))


def _listen(host: str) -> socket.socket:
    """Listens on the meeting's own address.

    On all of this machine's where that name is not one of its addresses (behind a translation).
    """
    for address in (host, ""):
        try:
            return socket.create_server((address, 0))
        except OSError:
            if not address:
                raise
    raise AssertionError("unreachable")


def _connect(meeting: Meeting) -> Channel:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection(
                (meeting.host, meeting.port), timeout=HELLO_TIMEOUT_S
            )
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"rank 0 cannot be reached at {meeting.host}:{meeting.port} ({error}); fix: the"
                    " nodes must reach each other on any port; MASTER_ADDR is where rank 0 listens"
                ) from None
            time.sleep(0.5)
    connection.settimeout(None)
    keep_alive(connection)
    connection.sendall(meeting.token.encode())
    return Channel(connection)


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask whether the other side still lives.

    A node that lost its power says nothing more: its connection then ends within about two minutes.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
