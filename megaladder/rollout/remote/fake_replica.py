"""A fake engine as a replica, in this very process.

For runs over several nodes without a model, and for tests of `nodes`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megaladder.rollout.engine import FileWeights, SampleRequest, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.replica import Inbox


@dataclass(frozen=True, slots=True)
class FakeSpec:
    """`make` gives the engine that answers."""

    make: Callable[[], FakeEngine]

    def open(self, index: int, inbox: Inbox) -> FakeReplica:
        return FakeReplica(index, inbox, self.make)


class FakeReplica:
    """See `replica.AnyReplica`. Speaks the messages of a child process."""

    node = 0
    pid = None
    stopped = False

    def __init__(self, index: int, inbox: Inbox, make: Callable[[], FakeEngine]) -> None:
        self.index, self._inbox, self._make = index, inbox, make
        self.incarnation = 0
        self.info: dict[str, Any] = {}
        self.alive = False

    def start(self) -> None:
        """A new engine, ready at once."""
        self.incarnation += 1
        self._engine, self.alive = self._make(), True
        self._say({"op": "ready", "describe": self._engine.describe(), "features": {}})

    def send(self, message: dict[str, Any]) -> bool:
        """Answers calls at once, requests from a thread."""
        if message["op"] == "generate":
            threading.Thread(
                target=self._generate, args=(message, self.incarnation), daemon=True
            ).start()
        elif message["op"] == "call":
            if message["method"] == "load_folder":
                self._engine.update_weights(
                    FileWeights(message["kwargs"]["path"]), self._engine.policy_version
                )
            supported = message["method"] not in ("sleep", "wake")
            self._say({"op": "reply", "call": message["call"], "result": supported})
        return self.alive

    def kill(self) -> None:
        self.alive = False

    def stop(self, patience_s: float) -> None:
        self.kill()

    def post_mortem(self) -> str:
        return f"fake replica {self.index}"

    def _generate(self, message: dict[str, Any], incarnation: int) -> None:
        requests = [
            SampleRequest(
                tuple(message["prompts"][prompt]), _params(message["params"][params], seed)
            )
            for _, prompt, params, seed in message["requests"]
        ]
        for place, completion in self._engine.stream(requests):
            item = {
                "id": message["requests"][place][0],
                "ids": list(completion.token_ids),
                "text": completion.text,
                "finish": completion.finish_reason.value,
                "logprobs": list(completion.logprobs),
            }
            self._inbox.put(
                (self.index, incarnation, {"op": "done", "call": message["call"], "items": [item]})
            )

    def _say(self, message: dict[str, Any]) -> None:
        self._inbox.put((self.index, self.incarnation, message))


def _params(plain: dict[str, Any], seed: int | None) -> SamplingParams:
    return SamplingParams(
        **{
            **plain,
            "stop": tuple(plain["stop"]),
            "stop_token_ids": tuple(plain["stop_token_ids"]),
            "seed": seed,
        }
    )
