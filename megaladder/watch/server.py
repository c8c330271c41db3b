"""The address that the page is asked at: on 127.0.0.1 alone, under a secret path.

Only `GET` of four names is answered; nothing of a request becomes a path on the disk. A request with
another host name is refused: a page of someone else whose name was made to point here would carry
one.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from megaladder import __version__
from megaladder.analysis.report.render import Heading, page_of, parts_of
from megaladder.analysis.report.verb import subtitle_of, title_of
from megaladder.run_dir import to_json
from megaladder.watch.live import Live, changes
from megaladder.watch.rollouts import Wanted, choices, selected

LOOPBACK = "127.0.0.1"
HTML, JSON = "text/html; charset=utf-8", "application/json"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Answer:
    """What is sent back. name: of the file that a browser saves it as."""

    kind: str
    body: str
    name: str = ""


class WatchServer(ThreadingHTTPServer):
    """Serves one `Live`. OSError where the port is taken."""

    daemon_threads = True

    def __init__(self, live: Live, folders: tuple[str, ...], port: int) -> None:
        self.live, self.folders = live, folders
        self.token = secrets.token_urlsafe(16)
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def allows_host(self, name: str | None) -> bool:
        """Whether a request's Host header is this address."""
        return name in (f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}")

    def answer(self, name: str, query: Mapping[str, str]) -> Answer | None:
        """What is under a name; None for an unknown one."""
        if name == "":
            return Answer(HTML, page_of([], self._heading(live=True), live=True))
        if name == "state":
            return Answer(JSON, to_json(self._state(query.get("have", ""))))
        if name == "rollouts":
            return Answer(JSON, to_json(selected(self.live.inputs(), Wanted.of(query))))
        if name == "save":
            page = page_of(parts_of(self.live.sections()), self._heading(live=False))
            return Answer(HTML, page, name="report.html")
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _heading(self, *, live: bool) -> Heading:
        way = (
            "It reads the folders, and writes nothing."
            if live
            else "It loads nothing from elsewhere."
        )
        title = title_of(self.folders, "").replace("Report:", "Watching" if live else "Report:", 1)
        return Heading(title, subtitle_of(self.folders), f"megaladder {__version__}. {way}")

    def _state(self, have: str) -> dict[str, Any]:
        entries = (entry.split(":") for entry in have.split(","))
        known = {entry[0]: (entry[1], entry[2]) for entry in entries if len(entry) == 3}
        parts = self.live.parts()
        inputs = self.live.inputs()
        said = f"{len(inputs.runs)} run{'s' * (len(inputs.runs) != 1)}"
        return {"parts": changes(parts, known), "sources": choices(inputs), "said": said}


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "megaladder", ""
    timeout = 60

    def do_GET(self) -> None:
        """Host first, then the secret, then the name."""
        if not self.server.allows_host(self.headers.get("Host")):
            return self._refuse(HTTPStatus.FORBIDDEN)
        try:
            address = urlsplit(self.path)
        except ValueError:  # such as `//[`
            return self._refuse(HTTPStatus.NOT_FOUND)
        _, _, rest = address.path.partition("/")
        token, slash, name = rest.partition("/")
        known = compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        answer = self.server.answer(name, query) if known and slash else None
        if answer is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        self._send(HTTPStatus.OK, answer)
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, Answer("text/plain; charset=utf-8", f"{status.phrase}\n"))

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        body = answer.body.encode("utf-8", "replace")
        self.send_response(status)
        headers = {**HEADERS, "Content-Type": answer.kind, "Content-Length": str(len(body))}
        if answer.name:
            headers["Content-Disposition"] = f'attachment; filename="{answer.name}"'
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not told: the secret would stand in a log."""
