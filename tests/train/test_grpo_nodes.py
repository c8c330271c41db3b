"""GRPO over several nodes: the record of what is trained on is that of one node, at every layout;
lost nodes, strangers, and who speaks."""

from __future__ import annotations

import json
import queue
import socket
import threading

import pytest
from grpo_runs import GrpoRuns
from nodes import run_nodes, start_nodes
from waiting import wait_until

from megaladder.errors import ConfigError, EngineError, MegaladderError
from megaladder.process.launch import hold_port
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.remote.fake_replica import FakeSpec
from megaladder.rollout.remote.nodes import Listener, offer

PROMPTS = [tuple(range(1, 3 + p)) for p in range(6)]
PARAMS = SamplingParams(n=4, seed=3, logprobs=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> GrpoRuns:
    return GrpoRuns(tmp_path_factory.mktemp("nodes"))


def flags(runs: GrpoRuns, name: str, *more: str) -> list[str]:
    config = runs.folder / f"{name}.yaml"
    from megaladder.config.resolve import to_yaml

    config.write_text(to_yaml(runs.config(name, *more)))
    return ["grpo", str(config)]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(("--parallel.tp", "1"), marks=pytest.mark.slow, id="dp2"),
        pytest.param(("--parallel.tp", "2"), id="tp2-across"),
    ],
)
def test_two_nodes_train_on_what_one_node_trains_on(runs, layout):
    one = runs.run("one-" + layout[1])
    assert one.status == 0, one.error
    name = f"two-{layout[1]}"
    done = run_nodes(2, 1, *flags(runs, name, *layout))
    assert done.statuses == [0, 0], done.errors
    rows = runs.rows(name)
    assert [row["groups_sha256"] for row in rows] == [row["groups_sha256"] for row in one.rows]
    for mine, theirs in zip(rows, one.rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    # engines on both nodes; rank 0 alone prints
    assert "replicas 2" in done.outputs[0] and done.outputs[1] == ""


@pytest.mark.slow
def test_two_nodes_of_two_ranks(runs):
    one = runs.run("one")
    done = run_nodes(2, 2, *flags(runs, "four", "--parallel.tp", "2"))
    assert done.statuses == [0, 0], done.errors
    assert [row["groups_sha256"] for row in runs.rows("four")] == [
        row["groups_sha256"] for row in one.rows
    ]


@pytest.mark.slow
def test_a_node_that_dies_ends_the_run_and_the_same_command_resumes(runs):
    one = runs.run("undisturbed", "--train.max-steps", "12")
    arguments = flags(runs, "killed", "--train.max-steps", "12")
    with hold_port() as held:
        nodes = start_nodes(2, 1, held.getsockname()[1], *arguments)
        wait_until(lambda: len(runs.rows("killed")) >= 4, "four steps of the run that is killed")
        nodes[1].kill()  # torchrun and, by the kernel's parent-death signal, its rank
        nodes[0].communicate(timeout=240)
        nodes[1].communicate(timeout=240)
    assert nodes[0].returncode != 0
    assert len(runs.rows("killed")) < 12, "the run was over before the node was killed"
    done = run_nodes(2, 1, *arguments)
    assert done.statuses == [0, 0], done.errors
    assert [row["groups_sha256"] for row in runs.rows("killed")] == [
        row["groups_sha256"] for row in one.rows
    ]


def test_one_rank_of_all_nodes_says_what_is_wrong(runs):
    path = runs.folder / "empty.jsonl"
    path.write_text('{"question": "?"}\n')
    done = run_nodes(2, 1, *flags(runs, "bad", "--data.path", str(path)))
    said = [
        line
        for error in done.errors
        for line in error.splitlines()
        if line.startswith("megaladder: ")
    ]
    assert len(said) == 1 and str(path) in said[0], done.errors


@pytest.fixture
def listener():
    with_one = Listener(1, "127.0.0.1")
    yield with_one
    with_one._socket.close()


def fake() -> FakeEngine:
    return FakeEngine()


def test_replicas_elsewhere_answer_as_one_engine_and_strangers_are_turned_away(listener):
    meeting = listener.meeting
    stranger = socket.create_connection((meeting.host, meeting.port))
    stranger.sendall(b"x" * 64)
    threading.Thread(
        target=offer, args=(meeting, 1, lambda: [FakeSpec(fake), FakeSpec(fake)]), daemon=True
    ).start()
    expected = fake().generate(PROMPTS, PARAMS)
    with ProcessEngine([FakeSpec(fake), *listener.accept(120.0)], Limits(start_s=120.0)) as engine:
        assert engine.describe()["replicas"] == 3
        assert engine.generate(PROMPTS, PARAMS) == expected
    assert stranger.recv(1) == b""
    stranger.close()


def test_a_node_that_is_gone_is_named(listener):
    threading.Thread(
        target=offer, args=(listener.meeting, 3, lambda: [FakeSpec(fake)]), daemon=True
    ).start()
    specs = listener.accept(120.0)
    with ProcessEngine([FakeSpec(fake), *specs], Limits(start_s=120.0, max_restarts=1)) as engine:
        specs[0].channel.close()
        with pytest.raises(
            EngineError, match="node 3 replica 0: the connection to the node was lost"
        ):
            engine.generate(PROMPTS, PARAMS)


def test_a_node_that_cannot_offer_says_why_and_one_that_is_late_is_counted(listener):
    def broken():
        raise ConfigError("rollout.tp 4 needs 4 GPUs")

    threading.Thread(target=offer, args=(listener.meeting, 1, broken), daemon=True).start()
    with pytest.raises(MegaladderError, match=r"node 1: rollout\.tp 4 needs 4 GPUs") as raised:
        listener.accept(120.0)
    assert raised.value.exit_status == 2
    with pytest.raises(
        EngineError, match=r"2 of 2 other nodes did not offer their engines at 127\.0\.0\.1"
    ):
        Listener(2, "127.0.0.1").accept(0.2)


def test_each_nodes_weights_come_from_its_own_folder(listener, tmp_path):
    engines: dict[str, FakeEngine] = {}

    def make(name: str):
        engines[name] = FakeEngine()
        return engines[name]

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    from megaladder.rollout.engine import FileWeights

    threading.Thread(
        target=offer,
        args=(listener.meeting, 1, lambda: [FakeSpec(lambda: make("there"))]),
        daemon=True,
    ).start()
    with ProcessEngine(
        [FakeSpec(lambda: make("here")), *listener.accept(120.0)], Limits(start_s=120.0)
    ) as engine:
        engine.update_weights(FileWeights(str(tmp_path / "a"), (str(tmp_path / "b"),)), 1)
        assert engines["here"].loaded == [str(tmp_path / "a")] and engines["there"].loaded == [
            str(tmp_path / "b")
        ]


def test_nccl_workers_of_several_engines_get_places_of_their_own():
    from megaladder.rollout.remote.clients import RankedWorkers

    class Client:
        def init_weight_transfer_engine(self, init_info):
            self.said = init_info

    client = Client()
    RankedWorkers(client, num_replicas=3, engine_tp=2).init_weight_transfer_engine(
        {"rank_offset": 1, "world_size": 7}
    )
    assert [info["rank_offset"] for info in client.said] == [1, 3, 5] and {
        info["world_size"] for info in client.said
    } == {7}


def test_the_replicas_inbox_is_the_engines(tmp_path):
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    replica = FakeSpec(fake).open(5, inbox)
    replica.start()
    index, incarnation, message = inbox.get(timeout=120)
    assert (index, incarnation, message["op"]) == (5, 1, "ready")
    assert json.dumps(message)  # goes over a JSON wire
