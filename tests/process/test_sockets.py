"""What a run on one machine listens to: the loopback interface only."""

import os
import socket
import sys
from pathlib import Path

import pytest
from clean_fork import run_in_fork

from megaladder import parallel
from megaladder.process.launch import hold_port
from megaladder.process.ranks import STORE_SOCKET

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
LISTENING = "0A"


def own_listeners() -> set[str]:
    """Addresses that this process listens at, as the kernel writes them."""
    open_files = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    sockets = {os.readlink(path) for path in open_files if os.path.lexists(path)}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if (path := Path("/proc/net") / table).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets}


def on_loopback(address: str) -> bool:
    return address.split(":")[0] == "0100007F"


@pytest.mark.parametrize("launched", [False, True])
def test_a_local_run_listens_on_loopback_only(launched):
    def rank() -> None:
        held = hold_port()
        port = held.getsockname()[1]
        if launched:  # what the launcher tells its ranks
            held.listen()
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"MASTER_PORT": str(port), STORE_SOCKET: str(held.fileno())}
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        with parallel.session(parallel.Layout()):
            found = own_listeners()
            assert found and all(map(on_loopback, found)), found
            assert (f"0100007F:{port:04X}" in found) == launched
            with pytest.raises(ConnectionRefusedError):  # bound to one address, not to all
                socket.create_connection(("127.0.0.2", port), timeout=10)
            if launched:
                again = socket.create_connection(("127.0.0.1", port), timeout=10)
                again.close()

    assert run_in_fork(rank) == 0


def test_sessions_of_one_launch_share_a_store_and_no_keys():
    def rank() -> None:
        held = hold_port()
        held.listen()
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(held.getsockname()[1]), STORE_SOCKET: str(held.fileno())}
        for _ in range(2):
            with parallel.session(parallel.Layout()):
                assert parallel.all_ranks(True)

    assert run_in_fork(rank) == 0
