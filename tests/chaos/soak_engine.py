"""An engine child without a model, for the soak: speaks the wire protocol of `rollout.wire`, gives
the fake engine's answers, and takes `pause_s` for each call as a real one takes its time.

SOAK_ENGINE (JSON): `tokenizer`: a tokenizer.json; `gold`: [[prompt ids], answer] rows; `pause_s`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megaladder.rollout.engine import SampleRequest, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine, KnownAnswers, fake_answers
from megaladder.rollout.replica import SOCKET_VARIABLE
from megaladder.rollout.wire import Channel, commands_of_parent


class _Words:
    """The two calls of a Hugging Face tokenizer that answers need."""

    def __init__(self, file: str) -> None:
        self._tokenizer = Tokenizer.from_file(file)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        said: str = self._tokenizer.decode(list(token_ids), skip_special_tokens)
        return said


def _engine(options: dict[str, Any]) -> FakeEngine:
    words = _Words(options["tokenizer"])
    gold = {tuple(ids): answer for ids, answer in options["gold"]}
    return FakeEngine(responder=fake_answers(KnownAnswers(gold, words)), tokenizer=words)


def _requests(command: dict[str, Any]) -> list[SampleRequest]:
    found = []
    for _, prompt, params, seed in command["requests"]:
        given = {**command["params"][params], "seed": seed}
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        found.append(
            SampleRequest(tuple(command["prompts"][prompt]), SamplingParams(**{**given, **lists}))
        )
    return found


def _generate(engine: FakeEngine, command: dict[str, Any], channel: Channel) -> None:
    numbers = [row[0] for row in command["requests"]]
    for index, done in engine.stream(_requests(command)):
        item = {"id": numbers[index], "ids": list(done.token_ids), "text": done.text}
        item |= {"finish": done.finish_reason.value, "logprobs": list(done.logprobs)}
        channel.send({"op": "done", "call": command["call"], "items": [item]})


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(Path(os.environ["SOAK_ENGINE"]).read_text())
    channel = Channel(socket.socket(fileno=int(os.environ[SOCKET_VARIABLE])))
    commands, engine = commands_of_parent(channel), _engine(options)
    described = {"engine": "soak", "version": "1", "dtype": "none", "device": "none"}
    channel.send({"op": "ready", "describe": described, "features": {}})
    while (command := commands.get())["op"] != "exit":
        if command["op"] == "generate":
            threading.Event().wait(options["pause_s"])
            _generate(engine, command, channel)
        elif command["op"] == "call":
            channel.send({"op": "reply", "call": command["call"], "result": True})


if __name__ == "__main__":
    main()
