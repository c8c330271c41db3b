"""The verb `watch`."""

from __future__ import annotations

from pathlib import Path

from megaladder.console import VOICE
from megaladder.errors import ConfigError
from megaladder.watch.live import Live
from megaladder.watch.server import LOOPBACK, WatchServer
from megaladder.watch.settings import WatchConfig


def run_watch(config: WatchConfig) -> None:
    """Serves the page until Ctrl-C, which is its ordinary end."""
    for text in config.run_dirs:
        if Path(text).is_file():
            raise ConfigError(
                f"{text}: is a file, expected a folder of runs or evaluations; fix: megaladder watch"
                f" {Path(text).parent}"
            )
    with _server(config) as server:
        absent = [text for text in config.run_dirs if not Path(text).is_dir()]
        if absent:
            print(f"not there yet, waited for: {', '.join(absent)}")
        # from here on it waits for a browser, which is no silence
        VOICE.end()
        print(f"{server.address}  (Ctrl-C ends it; the run folders are only read)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)


def _server(config: WatchConfig) -> WatchServer:
    try:
        return WatchServer(Live(config.run_dirs), config.run_dirs, config.port)
    except OSError as error:
        raise ConfigError(
            f"port {config.port} of {LOOPBACK}: {error.strerror}; fix: --port 0 takes a free one"
        ) from None
