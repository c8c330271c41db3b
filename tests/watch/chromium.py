"""A Chromium without a window, driven by its own protocol (DevTools) with real keys."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BINARY = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
ADDRESS = "DevTools listening on "
ANSWER_S = 120  # on a machine that much other work shares
# what a page sees of a key beside its name: a number; a code and a text where they are others
NUMBERS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "+": 187, "-": 189}
NUMBERS |= {f"Arrow{way}": 37 + i for i, way in enumerate(("Left", "Up", "Right", "Down"))}
CODES = {" ": "Space", "+": "Equal", "-": "Minus"}
TEXTS = {"Enter": "\r"}


class Tab:
    """One page. `said`: what its console and its errors said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._session, self._asked = socket, "", 0
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": params}
        self._socket.send(
            json.dumps(message | ({"sessionId": self._session} if self._session else {}))
        )
        # events come meanwhile, each second those of a page that is watched
        end = time.monotonic() + ANSWER_S
        try:
            while (answer := self._next(end)).get("id") != self._asked:
                pass
        except TimeoutError:
            raise AssertionError(f"no answer in {ANSWER_S} s: {method} {params}") from None
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self, end: float) -> dict[str, Any]:
        message = json.loads(self._socket.recv(max(0.0, end - time.monotonic())))
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        if message.get("method") in kinds:
            self.said.append(json.dumps(message["params"]))
        return message

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Loads a page of this size."""
        self.size(width, height)
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def size(self, width: int, height: int) -> None:
        """The window, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def media(self, **features: str) -> None:
        """Preferences of the system, e.g. prefers_color_scheme="dark"."""
        given = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.call("Emulation.setEmulatedMedia", features=given)

    def value(self, expression: str) -> Any:
        """What an expression gives; of a promise, what it resolves to."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true, looked at before each frame."""
        loop = f"const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look();"
        self.value(f"new Promise((done) => {{ {loop} }})")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key goes down and up."""
        number = NUMBERS.get(key, ord(key.upper()[:1]))
        code = CODES.get(key, key if len(key) > 1 else "")
        text = TEXTS.get(key, key if len(key) == 1 else "")
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Each letter of a text as a key."""
        for letter in text:
            self.press(letter)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is in sight."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A page of a browser of its own, which is gone afterwards."""
    assert BINARY is not None
    command = [BINARY, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stderr is not None
    # what it says later is read too, or it waits where the pipe is full
    reader = Thread(target=deque, args=(child.stderr, 0))
    try:
        address = next((line for line in child.stderr if line.startswith(ADDRESS)), None)
        assert address is not None, f"{BINARY} ended before it listened"
        reader.start()
        with connect(address.removeprefix(ADDRESS).strip(), max_size=None) as socket:
            yield Tab(socket)
            with suppress(Exception):
                socket.send(json.dumps({"id": 0, "method": "Browser.close"}))
    finally:
        child.terminate()
        child.wait()
        if reader.ident is not None:
            reader.join()
        child.stderr.close()
