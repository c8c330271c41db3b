"""An engine child without vLLM: speaks the wire protocol, answers with a function of prompt and
seed, misbehaves on demand.

STUB_PLAN (JSON): `die_after`/`hang_after`/`break_after`/`stop_after`/`garble_after` (with bytes
`garbage`) completions (first `faulty` incarnations only, counted in `counter`'s lines); `deaf`:
stops as soon as it is ready, `leave`: a temporary file, `lost_in`: a call, `by` that signal, `refuse_longer` tokens, `slow_s` per completion, `log`: where
calls are written.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from megaladder.rollout.replica import SOCKET_VARIABLE
from megaladder.rollout.wire import Channel, commands_of_parent

plan = json.loads(os.environ["STUB_PLAN"])
channel = Channel(socket.socket(fileno=int(os.environ[SOCKET_VARIABLE])))
counter = Path(plan["counter"])
with counter.open("a") as file:
    file.write(f"{os.getpid()}\n")
incarnation = len(counter.read_text().splitlines())
faulty = incarnation <= plan.get("faulty", 1)
commands = commands_of_parent(channel)
if plan.get("leave"):
    Path(tempfile.gettempdir(), "left").touch()


def note(what: str) -> None:
    with Path(plan["log"]).open("a") as file:
        file.write(what + "\n")


def answer(ids: list[int], seed: int | None) -> list[int]:
    return [(sum(ids) * 31 + (seed or 0) + i) % 997 for i in range(4)]


def generate(command: dict) -> None:
    for number, prompt, _, seed in command["requests"]:
        ids = command["prompts"][prompt]
        note(f"sample {number}")
        if len(ids) > plan.get("refuse_longer", 10**9):
            channel.send(
                {
                    "op": "refused",
                    "call": command["call"],
                    "id": number,
                    "message": "too long for me",
                }
            )
            return
        if faulty and generate.done == plan.get("die_after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if faulty and generate.done == plan.get("hang_after"):
            signal.pause()
        if faulty and generate.done == plan.get("stop_after"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if faulty and generate.done == plan.get("garble_after"):
            raw = bytes.fromhex(plan["garbage"])
            os.write(int(os.environ[SOCKET_VARIABLE]), raw)
            signal.pause()
        if faulty and generate.done == plan.get("break_after"):
            print("RuntimeError: the device fell over", file=sys.stderr, flush=True)
            channel.send({"op": "broken", "message": "RuntimeError: the device fell over"})
            sys.exit(1)
        threading.Event().wait(plan.get("slow_s", 0.0))  # how long an answer takes
        item = {
            "id": number,
            "ids": answer(ids, seed),
            "text": "t",
            "finish": "stop",
            "logprobs": [],
        }
        channel.send({"op": "done", "call": command["call"], "items": [item]})
        generate.done += 1


generate.done = 0
if faulty and plan.get("no_start"):
    print("ValueError: no such model", file=sys.stderr, flush=True)
    sys.exit(3)
channel.send(
    {
        "op": "ready",
        "describe": {"engine": "stub", "version": "0", "dtype": "none"},
        "features": {"checksums": True},
    }
)
if faulty and plan.get("deaf"):
    os.kill(os.getpid(), signal.SIGSTOP)
while (command := commands.get())["op"] != "exit":
    if command["op"] == "generate":
        generate(command)
    elif command["op"] == "call":
        note(f"call {command['method']} {json.dumps(command['kwargs'])}")
        if faulty and command["method"] == plan.get("lost_in"):
            os.kill(os.getpid(), getattr(signal, plan["by"]))
        reply = {"op": "reply", "call": command["call"]}
        broken = command["method"] == "load_folder" and "bad" in command["kwargs"]["path"]
        channel.send(
            {**reply, "error": "OSError: bad file"} if broken else {**reply, "result": True}
        )
