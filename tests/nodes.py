"""Several "nodes" on one machine: a torchrun each, with its own node rank, meeting on localhost, as
the Slurm examples start them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from distributed import environment

from megaladder.process.launch import hold_port


@dataclass(frozen=True)
class NodesDone:
    """What came of each node: torchrun's exit status (1 for any failure), and what it said."""

    statuses: list[int]
    outputs: list[str]
    errors: list[str]


def start_nodes(
    num_nodes: int, ranks_a_node: int, port: int, *arguments: str
) -> list[subprocess.Popen[str]]:
    """`megaladder *arguments` under torchrun on every node; they meet at `port`."""
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes",
                str(num_nodes),
                "--node-rank",
                str(node),
                "--nproc-per-node",
                str(ranks_a_node),
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                str(port),
                "-m",
                "megaladder",
                *arguments,
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(num_nodes)
    ]


def run_nodes(
    num_nodes: int, ranks_a_node: int, *arguments: str, timeout_s: float = 240
) -> NodesDone:
    """The same, to its end."""
    with hold_port() as held:
        nodes = start_nodes(num_nodes, ranks_a_node, held.getsockname()[1], *arguments)
        try:
            said = [node.communicate(timeout=timeout_s) for node in nodes]
        finally:
            for node in nodes:
                if node.poll() is None:
                    node.kill()
    return NodesDone(
        [node.returncode for node in nodes], [out for out, _ in said], [err for _, err in said]
    )
