"""Chat templates rendered in a process of their own, within bounds.

A template is a program of whoever made the tokenizer. Jinja's sandbox keeps it from files and
modules, not from endless loops, nor from strings that double at every turn. So it runs in a fork,
which the kernel ends after CPU_S of processor time for one rendering, and which has no more than
MEMORY_BYTES beyond what it began with. One fork for each tokenizer; a rendering costs about 40 µs
more than here. A fork that somebody else ended is no fault of the template: it is replaced once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import signal
import socket
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megaladder.errors import DataError, ModelError, RunStopped
from megaladder.process import signals
from megaladder.types import Tokenizer

CPU_S = 5.0
MEMORY_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 28
# only a fork that waits for a lock which nobody holds any more is silent for so long
SILENT_S = 600.0
# a message is sent as a whole: the rest of one that has begun is there at once
REST_S = 60.0
_HEAD = struct.Struct("!cI")
_TEXT, _FAILED, _TOO_MUCH = b"t", b"f", b"m"


class TemplateFailed(DataError):
    """The template does not take this conversation. `said`: its own words, or the exception."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the chat template refuses a conversation: {said}; fix: other turns, or"
            " model.chat_template: a Jinja file that takes them"
        )
        self.said = said


def render(tokenizer: Tokenizer, turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """What the tokenizer's chat template makes of `turns`. options: as transformers takes them.

    Raises:
        TemplateFailed: the template refuses the conversation, or is none.
        ModelError: it takes more time or memory than any conversation needs.
        RunStopped: the process that renders was killed, and so was the one in its place.
    """
    try:
        return _renderer(tokenizer).text(list(turns), options)
    except _Lost:
        pass
    try:
        return _renderer(tokenizer).text(list(turns), options)
    except _Lost as error:
        raise error.in_words() from None


class _Lost(Exception):
    """The fork ended before it answered, and not by its limit of time.

    `status`: how it ended, as of `os.waitstatus_to_exitcode`; None where that is not known."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def in_words(self) -> ModelError | RunStopped:
        """The template's doing, unless it was killed: no limit of ours does that."""
        if self.status in (-signal.SIGKILL, -signal.SIGTERM):
            return RunStopped(
                f"the process that renders chat templates was killed twice by"
                f" {signal.Signals(-self.status).name}: this machine ran out of memory (dmesg says"
                " so), or somebody ended it; fix: free memory, then start the same command again"
            )
        return _too_much(f"so much that its process was ended (status {self.status})")


_RENDERERS: weakref.WeakKeyDictionary[Tokenizer, _Renderer] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def _renderer(tokenizer: Tokenizer) -> _Renderer:
    with _LOCK:
        found = _RENDERERS.get(tokenizer)
        if found is None or not found.serves(tokenizer):
            found = _RENDERERS[tokenizer] = _Renderer(tokenizer)
        return found


class _Renderer:
    """The fork that renders one tokenizer's template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # what rendering imports: another thread may hold the lock of an import at the fork
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401
        import transformers.utils.chat_template_utils  # noqa: F401

        self._template, self._owner = tokenizer.chat_template, os.getpid()
        self._lock, self._lost = threading.Lock(), ""
        self._end, theirs = socket.socketpair()
        self._end.settimeout(SILENT_S)
        self._pid = os.fork()
        if self._pid == 0:
            _serve(tokenizer, theirs)
        theirs.close()
        self._close = weakref.finalize(self, _end, self._pid, self._end, self._owner)

    def serves(self, tokenizer: Tokenizer) -> bool:
        """Whether it is this process's own, alive, and has the template of now."""
        ours = self._owner == os.getpid() and not self._lost
        return ours and self._template == tokenizer.chat_template

    def text(self, turns: list[Any], options: dict[str, Any]) -> str:
        """One rendering; see `render`."""
        request = pickle.dumps((turns, options))
        with self._lock:
            try:
                self._end.sendall(struct.pack("!I", len(request)) + request)
                kind, said = self._answer()
            except (OSError, EOFError) as error:
                self._lost = f"{type(error).__name__}"
                raise self._how_it_ended() from None
        if kind == _TOO_MUCH:
            raise _too_much(said.decode())
        text = said.decode("utf-8", "surrogatepass")
        if kind == _FAILED:
            raise TemplateFailed(text)
        return text

    def _answer(self) -> tuple[bytes, bytes]:
        """Raises OSError or EOFError where there comes none, or nonsense."""
        kind, size = _HEAD.unpack(_exactly(self._end, _HEAD.size))
        if kind not in (_TEXT, _FAILED, _TOO_MUCH) or size > MAX_TEXT_BYTES:
            raise EOFError
        self._end.settimeout(REST_S)
        said = _exactly(self._end, size)
        self._end.settimeout(SILENT_S)
        return kind, said

    def _how_it_ended(self) -> ModelError | _Lost:
        """It is gone afterwards in any case."""
        self._close.detach()
        status = _end(self._pid, self._end, self._owner)
        if status == -signal.SIGPROF:
            return _too_much(f"more than {CPU_S:.0f} s of processor time")
        return _Lost(status)


def _too_much(what: str) -> ModelError:
    return ModelError(
        f"the chat template takes {what} to render one conversation: an endless loop, or text that"
        " grows without end; fix: model.chat_template: a Jinja file that you trust, or another"
        " tokenizer"
    )


def _end(pid: int, ours: socket.socket, owner: int) -> int | None:
    """Ends the fork; how it ended, None where that is not known. A fork of the owner leaves it."""
    ours.close()
    if os.getpid() != owner:
        return None
    with contextlib.suppress(ChildProcessError):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if not gone:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    return None


def _exactly(end: socket.socket, size: int) -> bytes:
    """So many bytes. Raises EOFError when the other side is gone."""
    found = bytearray()
    while len(found) < size:
        chunk = end.recv(min(size - len(found), 1 << 20))
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)


def _serve(tokenizer: Tokenizer, theirs: socket.socket) -> NoReturn:
    """The program of the fork: it ends with its parent, whose end of the socket closes then."""
    try:
        gc.freeze()
        _let_go(theirs.fileno())
        signals.ignore()
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (limit := _address_space() + MEMORY_BYTES, limit))
        while True:
            request = _request(theirs)
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            kind, said = _rendered(tokenizer, request)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            theirs.sendall(_HEAD.pack(kind, len(said)) + said)
    finally:
        os._exit(0)


def _request(theirs: socket.socket) -> bytes:
    """What is to be rendered. Raises OSError or EOFError at the parent's end, or for nonsense."""
    (size,) = struct.unpack("!I", _exactly(theirs, 4))
    theirs.settimeout(REST_S)
    found = _exactly(theirs, size)
    theirs.settimeout(None)
    return found


def _let_go(kept: int) -> None:
    """Closes what the parent has open: locks and files are its own."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _address_space() -> int:
    pages = Path("/proc/self/statm")
    if not pages.exists():  # not Linux: time alone is bounded
        return int(resource.RLIM_INFINITY) - MEMORY_BYTES
    return int(pages.read_text().split()[0]) * resource.getpagesize()


def _rendered(tokenizer: Tokenizer, request: bytes) -> tuple[bytes, bytes]:
    turns, options = pickle.loads(request)
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        said = text.encode("utf-8", "surrogatepass")
    except MemoryError:
        return _TOO_MUCH, f"more than {MEMORY_BYTES >> 20} MiB".encode()
    except Exception as error:  # noqa: BLE001  whatever a stranger's template raises is told
        return _FAILED, _words(error).encode("utf-8", "surrogatepass")
    if len(said) > MAX_TEXT_BYTES:
        return _TOO_MUCH, f"more than {MAX_TEXT_BYTES >> 20} MiB of text".encode()
    return _TEXT, said


def _words(error: Exception) -> str:
    from jinja2.exceptions import TemplateError

    text = str(error)[:2000]
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"
