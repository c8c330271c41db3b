"""Who may come in at rank 0's door for other nodes, and that strangers hold nobody up."""

import socket
import struct
import threading

import pytest

from megaladder.errors import EngineError
from megaladder.rollout.remote import nodes
from megaladder.rollout.remote.nodes import Listener, Meeting, _connect

WORDS = {"node": 1, "slot": 0, "slots": 0}


def knock(meeting: Meeting, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection((meeting.host, meeting.port))
    connection.sendall(said)
    return connection


def frame(raw: bytes) -> bytes:
    return struct.pack("!II", len(raw), len(raw) ^ 0xFFFFFFFF) + raw


def arrive(meeting: Meeting) -> threading.Thread:
    def leader() -> None:
        _connect(meeting).send(WORDS)

    thread = threading.Thread(target=leader, daemon=True)
    thread.start()
    return thread


def test_strangers_do_not_hold_the_real_node_up(monkeypatch):
    """Whatever they say or do not say: no stranger's deadline passes before the node is in."""
    monkeypatch.setattr(nodes, "HELLO_TIMEOUT_S", 1000.0)
    listener = Listener(1, "127.0.0.1")
    token = listener.meeting.token.encode()
    said = [b"", b"x", token[:-1], b"\x00" * 64, token[::-1], token + b"\xff" * 4 + bytes(4)]
    said += [token + frame(b"[1]"), token + frame(b"{"), token + frame(b""), token + frame(b"\xff")]
    strangers = [knock(listener.meeting, words) for words in said]
    thread = arrive(listener.meeting)
    assert listener.accept(600) == []  # it has come, and has no engine
    thread.join()
    for stranger in strangers:
        stranger.close()


def test_a_flood_of_strangers_costs_a_bounded_number_of_sockets(monkeypatch):
    monkeypatch.setattr(nodes, "HELLO_TIMEOUT_S", 1000.0)
    monkeypatch.setattr(nodes, "MAX_GREETINGS", 4)
    listener = Listener(1, "127.0.0.1")
    strangers = [knock(listener.meeting) for _ in range(40)]
    thread = arrive(listener.meeting)
    assert listener.accept(600) == []
    thread.join()
    for stranger in strangers:
        stranger.close()


def test_who_does_not_speak_is_dropped_and_who_does_not_come_is_told(monkeypatch):
    monkeypatch.setattr(nodes, "HELLO_TIMEOUT_S", 0.05)
    listener = Listener(2, "127.0.0.1")
    stranger = knock(listener.meeting, b"x")
    with pytest.raises(EngineError, match="2 of 2 other nodes did not offer"):
        listener.accept(0.5)
    stranger.settimeout(60)
    assert stranger.recv(1) == b""  # closed
    stranger.close()
