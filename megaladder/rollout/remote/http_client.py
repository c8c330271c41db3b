"""JSON over HTTP with one deadline for each request, however its answer comes.

A socket's own timeout begins anew with every byte: whoever sends one now and then, or half of an
answer, would hold a request for ever. Here a thread shuts the connection when its time is up.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

MAX_BODY_BYTES = 1 << 28  # a million tokens with their log-probs take a third of it
_PIECE_BYTES = 1 << 20
QUICK_S = 60.0  # for questions that take no work
_RETRYABLE = (408, 429)


class Refused(Exception):
    """The server understood and declined (status 4xx); its own words."""


class HttpClient:
    """Requests to one address, without proxies (these are machines of our own network).

    may_refuse: paths whose 4xx is the request's fault. Raises OSError for all but an answer,
    Refused for those.
    """

    def __init__(self, url: str, may_refuse: tuple[str, ...] = ()) -> None:
        parts = urlsplit(url)
        self._url, self._place, self._path = url.rstrip("/"), parts.netloc, parts.path.rstrip("/")
        self._kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._may_refuse = may_refuse
        self._watch = _Watch()
        key = os.environ.get("VLLM_API_KEY")
        self._headers = {
            "content-type": "application/json",
            "connection": "close",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }

    def get(self, path: str, timeout_s: float = QUICK_S) -> Any:
        return self._ask("GET", path, None, timeout_s)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float = QUICK_S) -> Any:
        return self._ask("POST", path, json.dumps(body).encode(), timeout_s)

    def try_post(self, path: str, body: Mapping[str, Any]) -> None:
        """For what may fail without harm."""
        with suppress(OSError, Refused):
            self.post(path, body, timeout_s=30.0)

    def hang_up(self) -> None:
        """Ends every request that is under way, and each that comes later: it raises OSError."""
        self._watch.shut_all()

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Any:
        where, begun = self._url + path, time.monotonic()
        try:
            status, text = self._exchange(method, self._path + path, body, timeout_s)
        except (http.client.HTTPException, OSError) as error:
            if time.monotonic() - begun >= timeout_s:
                raise TimeoutError(f"{where}: no whole answer within {timeout_s:g} s") from None
            if isinstance(error, OSError) and not isinstance(error, http.client.HTTPException):
                raise
            how = f"{type(error).__name__}: {error}"
            raise OSError(f"{where}: the answer was cut short or is too long ({how})") from None
        if status >= 400:
            words = text.decode("utf-8", "replace")[:500]
            if status < 500 and status not in _RETRYABLE and path in self._may_refuse:
                raise Refused(words)
            raise OSError(f"{where} answered {status}: {words}")
        try:
            return json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise OSError(f"{where}: the answer is no JSON ({error})") from None

    def _exchange(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        connection = self._kind(self._place, timeout=timeout_s)
        try:
            connection.connect()
            with self._watch.until(connection.sock, time.monotonic() + timeout_s):
                connection.request(method, path, body, self._headers)
                response = connection.getresponse()
                return response.status, _body(response)
        finally:
            connection.close()


class _Watch:
    """Shuts the connections whose time is up."""

    def __init__(self) -> None:
        self._deadlines: dict[socket.socket, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._over = False

    @contextmanager
    def until(self, connection: socket.socket, deadline: float) -> Iterator[None]:
        with self._changed:
            if self._over:  # while it connected
                raise ConnectionAbortedError("hung up")
            self._deadlines[connection] = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="deadlines")
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._deadlines.pop(connection, None)

    def shut_all(self) -> None:
        with self._changed:
            self._over = True
            self._shut(list(self._deadlines))
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._over:
                now = time.monotonic()
                self._shut([one for one, at in self._deadlines.items() if at <= now])
                next_at = min(self._deadlines.values(), default=None)
                self._changed.wait(None if next_at is None else max(0.0, next_at - now))

    def _shut(self, connections: list[socket.socket]) -> None:
        for connection in connections:
            del self._deadlines[connection]
            with suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse) -> bytes:
    """All of an answer, unless it is so long that it would fill the memory."""
    found = bytearray()
    try:
        if (response.length or 0) <= MAX_BODY_BYTES:
            while piece := response.read(_PIECE_BYTES):  # whatever lengths the answer claims
                found += piece
                if len(found) > MAX_BODY_BYTES:
                    break
    except ValueError as error:  # a chunk of a negative size
        raise http.client.HTTPException(str(error)) from None
    if len(found) > MAX_BODY_BYTES or (response.length or 0) > MAX_BODY_BYTES:
        raise http.client.HTTPException(f"more than {MAX_BODY_BYTES:,} bytes")
    if response.length:  # `read` of a number of bytes says nothing of an early end
        raise http.client.IncompleteRead(bytes(found[-100:]), response.length)
    return bytes(found)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error that names its status.

    Followed, the request would become a GET without a body, and its key would go to whatever
    machine the answer names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def answer_within(request: urllib.request.Request, timeout_s: float) -> bytes:
    """The whole body of an answer from anywhere; the environment's proxies count.

    No redirect is followed. Raises TimeoutError when it is not there in time, whatever came
    meanwhile; else what urllib and http.client raise.
    """
    opened: list[socket.socket] = []
    ends_at = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(_Opener(opened), _NoRedirect)
    watch = threading.Timer(timeout_s, _shut_all, (opened,))
    watch.daemon = True
    watch.start()
    text = b""
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            text = _body(reply)
    except (OSError, http.client.HTTPException):
        if time.monotonic() < ends_at:
            raise
    finally:
        watch.cancel()
    if time.monotonic() >= ends_at:  # also after a body without a length, which ends as if whole
        raise TimeoutError(f"no whole answer within {timeout_s:g} s")
    return text


class _Watched(http.client.HTTPConnection):
    """A connection whose socket is told to whoever may have to shut it."""

    def __init__(self, *where: Any, opened: list[socket.socket], **how: Any) -> None:
        super().__init__(*where, **how)
        self._opened = opened

    def connect(self) -> None:
        super().connect()
        self._opened.append(self.sock)


class _WatchedTls(_Watched, http.client.HTTPSConnection):
    """The same for https."""


class _Opener(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections of both kinds, and keeps their sockets in `opened`."""

    def __init__(self, opened: list[socket.socket]) -> None:
        super().__init__()
        self._opened = opened

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Watched, opened=self._opened), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_WatchedTls, opened=self._opened), req)


def _shut_all(opened: list[socket.socket]) -> None:
    for connection in opened:
        with suppress(OSError):  # it ended by itself
            connection.shutdown(socket.SHUT_RDWR)
