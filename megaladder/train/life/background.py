"""Work of rank 0 beside the training: rounds of rollouts, engines that start, evaluations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_background(action: Callable[[], Any]) -> Future:
    """Runs `action` in a daemon thread: a process that has to end does not wait for it."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="rollouts", daemon=True).start()
    return future
