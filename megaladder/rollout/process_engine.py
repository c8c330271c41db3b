"""An engine made of replicas: child processes here or on other nodes, servers.

Requests are spread over them, answers collected, failures healed by bounded restarts.

Knows nothing of vLLM; the specs it is given say how a replica is started and what it runs. Only
unfinished requests are sampled again after a restart, and healthy replicas go on meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaladder.errors import ConfigError, EngineError, ModelError
from megaladder.rollout.engine import (
    BaseEngine,
    EngineFailure,
    FileWeights,
    Health,
    Piece,
    RestartBudget,
    SampleRequest,
    Weights,
)
from megaladder.rollout.replica import AnyReplica, Inbox, ReplicaSpec
from megaladder.rollout.wire import Stream, completion_of
from megaladder.types import Completion

POLL_S = 1.0
CLOSE_PATIENCE_S = 5.0

# one for all replicas, or one each
Arguments = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds until a silent child counts as lost, and restarts allowed in one generation call."""

    start_s: float = 1200.0  # loading the model included
    stall_s: float = 300.0  # generation without a sign of life; a weight update, sleep, wake
    max_restarts: int = 1


@dataclass
class _Load:
    """What a replica has been given in the present stream, and when it last gave a sign."""

    pending: set[int] = field(default_factory=set)
    last_sign: float = field(default_factory=time.monotonic)


class ProcessEngine(BaseEngine):
    """See the module. Starts all replicas at once and returns when all are ready."""

    def __init__(self, children: Sequence[ReplicaSpec], limits: Limits):
        super().__init__(limits.max_restarts)
        self._limits = limits
        self._inbox: Inbox[tuple[int, int, dict[str, Any] | None]] = queue.SimpleQueue()
        self._replicas = [spec.open(i, self._inbox) for i, spec in enumerate(children)]
        self._calls = itertools.count(1)
        started = time.monotonic()
        try:
            self._start(self._replicas)
        except EngineFailure as failure:
            self.close()
            raise EngineError(
                f"the generation engine did not start: {failure}; fix: see that log"
            ) from None
        self.start_up_s = time.monotonic() - started

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`; as the first child reported."""
        return {**self._replicas[0].info.get("describe", {}), "replicas": len(self._replicas)}

    @property
    def features(self) -> dict[str, bool]:
        """What the installed engine can do: sleep, weight_transfer, checksums.

        Found by looking, not by version.
        """
        return dict(self._replicas[0].info.get("features", {}))

    @property
    def num_replicas(self) -> int:
        return len(self._replicas)

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the replicas."""
        return [replica.pid for replica in self._replicas]

    @property
    def dead_replicas(self) -> list[int]:
        """Replicas whose process has ended; the next generation or update starts them again."""
        return [replica.index for replica in self._replicas if not replica.alive]

    def health(self) -> Health:
        """Looks at processes only; a stall shows while something is generated."""
        if self._closed:
            return Health(False, "closed", self._restarts)
        dead = [replica.post_mortem() for replica in self._replicas if not replica.alive]
        reasons = [
            *dead,
            *([self._invalid_because] if self._invalid_because else []),
            *(["asleep"] if self._asleep_level else []),
        ]
        return Health(not reasons, "; ".join(reasons), self._restarts)

    def call(
        self, method: str, arguments: Arguments = None, replica: int | None = None
    ) -> list[Any]:
        """One of the child's methods, on all replicas at once or on one.

        Results in order. A sequence of arguments holds one each.
        """
        self._require_open()
        targets = self._replicas if replica is None else [self._replicas[replica]]
        each = (
            list(arguments) if isinstance(arguments, Sequence) else [arguments or {}] * len(targets)
        )
        if len(each) != len(targets):
            raise EngineError(
                f"{method}: {len(each)} sets of arguments for {len(targets)} replicas; fix: one for"
                " all, or one each"
            )
        for target in targets:
            if not target.alive:
                raise EngineError(f"{method}: {target.post_mortem()}")
        number = next(self._calls)
        for target, kwargs in zip(targets, each, strict=True):
            target.send({"op": "call", "call": number, "method": method, "kwargs": dict(kwargs)})
        try:
            replies = self._wait_for(
                {target.index for target in targets},
                {"op": "reply", "call": number},
                self._limits.stall_s,
            )
        except EngineFailure as failure:
            if failure.replica is not None:  # whatever it does still, its answer is not waited for
                self._replicas[failure.replica].kill()
            raise EngineError(f"{method}: {failure}") from None
        for index in sorted(replies):
            if "error" in replies[index]:
                raise EngineError(f"{method}: replica {index}: {replies[index]['error']}")
        return [replies[target.index]["result"] for target in targets]

    def weight_checksums(self) -> list[dict[str, str]] | None:
        """Checksum of every parameter as the engine holds it, one dict a worker.

        None where the engine has no such call. vLLM on a CPU keeps linear layers in a packed form
        that its checksum does not see: there embedding, head, norms and experts count, these where
        `watch_weights` came first.
        """
        if not self.features.get("checksums"):
            return None
        return [worker for replica in self.call("weight_checksums") for worker in replica]

    def watch_weights(self) -> None:
        """Before an update whose checksums are wanted: experts' are taken while they load."""
        if self.features.get("checksums"):
            self.call("watch_weights")

    def forget_prompts(self) -> None:
        """See `Engine.forget_prompts`: empties the prefix caches."""
        self.call("reset_prefix_cache")

    def close(self) -> None:
        super().close()
        for replica in self._replicas:
            replica.stop(CLOSE_PATIENCE_S)

    def __del__(self) -> None:
        for replica in getattr(self, "_replicas", ()):
            replica.kill()

    def _start(self, replicas: Sequence[AnyReplica]) -> None:
        """Starts replicas and waits for each "ready".

        EngineFailure with the replica's own words otherwise.
        """
        for replica in replicas:
            replica.start()
        for index, message in self._wait_for(
            {replica.index for replica in replicas}, {"op": "ready"}, self._limits.start_s
        ).items():
            self._replicas[index].info = message

    def _wait_for(
        self, indices: set[int], pattern: Mapping[str, Any], timeout_s: float
    ) -> dict[int, dict[str, Any]]:
        """The message that matches `pattern`, from each of the replicas.

        What others say meanwhile is kept for later.
        """
        found: dict[int, dict[str, Any]] = {}
        others: list[tuple[int, int, dict[str, Any] | None]] = []
        deadline = time.monotonic() + timeout_s
        try:
            while len(found) < len(indices):
                said = self._next_message(indices - found.keys(), deadline)
                if said is None:
                    continue
                index, incarnation, message = said
                if incarnation != self._replicas[index].incarnation:
                    continue
                if index not in indices:
                    others.append((index, incarnation, message))
                elif message is None or message["op"] == "broken":
                    raise EngineFailure(self._words(index, message), index)
                elif pattern.items() <= message.items():
                    found[index] = message
        except queue.Empty:
            silent = self._replicas[min(indices - found.keys())]
            words = f"no answer within {timeout_s:.0f} s: {silent.post_mortem()}"
            raise EngineFailure(words, silent.index) from None
        finally:
            for item in others:
                self._inbox.put(item)
        return found

    def _next_message(
        self, silent: set[int], deadline: float
    ) -> tuple[int, int, dict[str, Any] | None] | None:
        """What a replica says next; None after a look at those that say nothing.

        Raises EngineFailure where one of these stands still, queue.Empty when the time is up.
        """
        left_s = deadline - time.monotonic()
        with contextlib.suppress(queue.Empty):
            return self._inbox.get(timeout=max(0.0, min(POLL_S, left_s)))
        for index in sorted(silent):
            if self._replicas[index].stopped:
                raise EngineFailure(self._replicas[index].post_mortem(), index)
        if left_s <= POLL_S:
            raise queue.Empty
        return None

    def _words(self, index: int, message: Mapping[str, Any] | None) -> str:
        """The child's own message where it left one, and how it ended."""
        own = f"{message['message']}; " if message else ""
        return own + self._replicas[index].post_mortem()

    def _run(
        self, requests: Sequence[SampleRequest], budget: RestartBudget
    ) -> Generator[tuple[int, Completion]]:
        stream = Stream(requests, next(self._calls), self._on_piece)
        loads = [_Load() for _ in self._replicas]
        finished = False
        try:
            self._revive_dead(budget, len(requests))
            for index, share in enumerate(stream.spread(len(self._replicas))):
                self._submit(index, share, stream, loads)
            while any(load.pending for load in loads):
                yield from self._next_results(stream, loads, budget)
            finished = True
        finally:
            if not finished and not self._closed:
                for replica in self._replicas:
                    if replica.alive:
                        replica.send({"op": "abort", "call": stream.call})

    def _revive_dead(self, budget: RestartBudget, num_unfinished: int) -> None:
        """A replica that died between two calls is started again before the next."""
        for replica in self._replicas:
            if not replica.alive:
                self._restart(
                    replica.index, EngineFailure(replica.post_mortem()), budget, num_unfinished
                )

    def _submit(self, index: int, share: Sequence[int], stream: Stream, loads: list[_Load]) -> None:
        loads[index] = _Load(set(share))
        if share:
            self._replicas[index].send(stream.message(share))

    def _next_results(
        self, stream: Stream, loads: list[_Load], budget: RestartBudget
    ) -> Iterator[tuple[int, Completion]]:
        """Waits for one message and yields the completions in it.

        Heals the replica that turns out to be lost.
        """
        try:
            index, incarnation, message = self._inbox.get(timeout=POLL_S)
        except queue.Empty:
            self._heal_stalled(stream, loads, budget)
            return
        if incarnation != self._replicas[index].incarnation:
            return
        loads[index].last_sign = time.monotonic()
        if message is None or message["op"] == "broken":
            self._heal(index, EngineFailure(self._words(index, message)), stream, loads, budget)
        elif message["op"] == "refused" and message["call"] == stream.call:
            raise ConfigError(
                f"the engine refused a prompt of {stream.prompt_length(message['id'])} tokens:"
                f" {message['message']}"
            )
        elif message["op"] == "piece" and message["call"] == stream.call and stream.on_piece:
            stream.on_piece(Piece(message["start"], message["text"]))
        elif message["op"] == "done" and message["call"] == stream.call:
            for item in message["items"]:
                if item["id"] in loads[index].pending:
                    loads[index].pending.discard(item["id"])
                    yield item["id"], completion_of(item, self._version)

    def _heal_stalled(self, stream: Stream, loads: list[_Load], budget: RestartBudget) -> None:
        now = time.monotonic()
        for index, load in enumerate(loads):
            replica = self._replicas[index]
            if load.pending and replica.stopped:
                self._heal(index, EngineFailure(replica.post_mortem()), stream, loads, budget)
            elif load.pending and now - load.last_sign > self._limits.stall_s:
                failure = EngineFailure(
                    f"no sign of life for {self._limits.stall_s:.0f} s: {replica.post_mortem()}"
                )
                self._heal(index, failure, stream, loads, budget)

    def _heal(
        self,
        index: int,
        failure: EngineFailure,
        stream: Stream,
        loads: list[_Load],
        budget: RestartBudget,
    ) -> None:
        """Restarts one replica and gives it again what it had not finished."""
        unfinished = sorted(loads[index].pending)
        self._restart(index, failure, budget, sum(len(load.pending) for load in loads))
        self._submit(index, unfinished, stream, loads)

    def _restart(
        self, index: int, failure: EngineFailure, budget: RestartBudget, num_unfinished: int
    ) -> None:
        while True:
            budget.spend(failure, num_unfinished)
            _tell(failure)
            self._restarts += 1
            try:
                self._start([self._replicas[index]])
                break
            except EngineFailure as again:
                failure = again
        self._weights_after_restart(index)

    def _apply(self, weights: Weights, replica: int | None = None) -> None:
        """Once more for each restart allowed, where replicas are lost meanwhile."""
        left = self._max_restarts if getattr(weights, "resendable", False) else 0
        while True:
            try:
                return self._give(weights, replica)
            except EngineError as error:
                if not left or not self.dead_replicas:
                    raise
                left -= 1
                _tell(error)

    def _give(self, weights: Weights, replica: int | None) -> None:
        self._start_dead(replica)
        client = _Client(self, replica)
        if isinstance(weights, FileWeights):
            self._load_folders(weights, replica)
        elif isinstance(weights, str):
            client.load_folder(weights)
        else:
            weights.send(client)
        self.call("reset_prefix_cache", replica=replica)

    def _load_folders(self, weights: FileWeights, replica: int | None) -> None:
        """Each replica loads its own node's copy."""
        targets = self._replicas if replica is None else [self._replicas[replica]]
        paths = [weights.on_node(target.node) for target in targets]
        for target, path in zip(targets, paths, strict=True):
            if target.node == 0:
                _require_weights(path)
        self.call("load_folder", [{"path": str(Path(path).resolve())} for path in paths], replica)

    def _start_dead(self, replica: int | None) -> None:
        """Starts replicas that died since the last call, or this one of them.

        The new weights are for them too.
        """
        dead = [one for one in self._replicas if not one.alive and replica in (None, one.index)]
        self._restarts += len(dead)
        try:
            self._start(dead)
        except EngineFailure as failure:
            raise EngineError(
                f"the generation engine could not be restarted: {failure}; fix: see that log"
            ) from None

    def _sleep(self, level: int) -> bool:
        return all(self.call("sleep", {"level": level}))

    def _wake(self, tags: Sequence[str]) -> bool:
        return all(self.call("wake", {"tags": list(tags)}))


class _Client:
    """`engine.WeightClient` over the replicas."""

    def __init__(self, engine: ProcessEngine, replica: int | None):
        self._engine, self._replica = engine, replica

    def load_folder(self, path: str) -> None:
        _require_weights(path)
        self._engine.call("load_folder", {"path": str(Path(path).resolve())}, self._replica)

    def init_weight_transfer_engine(self, init_info: Arguments) -> None:
        self._engine.call(
            "init_weight_transfer_engine", _wrap("init_info", init_info), self._replica
        )

    def start_weight_update(self) -> None:
        self._engine.call("start_weight_update", None, self._replica)

    def update_weights(self, update_info: Arguments) -> None:
        self._engine.call("update_weights", _wrap("update_info", update_info), self._replica)

    def finish_weight_update(self) -> None:
        self._engine.call("finish_weight_update", None, self._replica)

    def call_workers(self, method: str, arguments: Arguments = None) -> list[Any]:
        return self._engine.call(
            "call_workers", _wrap("arguments", arguments or {}, method=method), self._replica
        )


def _tell(failure: Exception) -> None:
    """Why an engine is started again, for who looks at the run's log later."""
    print(f"megaladder: {failure}; it is started again", file=sys.stderr, flush=True)


def _require_weights(path: str) -> None:
    if not any(Path(path).glob("*.safetensors")):
        raise ModelError(
            f"{path}: no *.safetensors files there; fix: a Hugging Face folder with weights"
        )


def _wrap(key: str, value: Arguments, **more: str) -> Arguments:
    """One dictionary for all replicas, or a sequence of one each."""
    if isinstance(value, Sequence):
        return [{key: dict(item), **more} for item in value]
    return {key: dict(value or {}), **more}
