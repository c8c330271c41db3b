"""vLLM's own server as a replica, reached over HTTP.

For engines on machines where no training rank runs.

    python -m vllm.entrypoints.openai.api_server --model DIR --enable-scale-out --logprobs-mode
    processed_logprobs …      (docs/slurm.md)

Token ids go to `/inference/v1/generate` and come back with text and log-probs; weights come by
`reload_weights` from a folder that both sides see, or by vLLM's NCCL weight transfer. What the
server can do is found in its own list of routes (`openapi.json`), never by its version. Needs
vLLM's development routes (`VLLM_SERVER_DEV_MODE=1`) and our worker extension.

A server may be restarted by whoever runs it and then holds the weights it was started with. So
every weight update leaves a mark in the server (its weight version), which is looked at before each
round; a server without our mark counts as lost and is given the weights anew. Not here: starting
servers. Keep them on a private network: the development routes obey anyone (`VLLM_API_KEY` guards
the rest).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from megaladder.rollout.remote.http_client import HttpClient, Refused
from megaladder.rollout.replica import Inbox

GENERATE = "/inference/v1/generate"
NEEDED = (
    GENERATE,
    "/collective_rpc",
    "/reset_prefix_cache",
    "/weight_info",
    "/update_weight_version",
)
HOW_TO_START = (
    "fix: VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --enable-scale-out"
    " --logprobs-mode processed_logprobs --worker-extension-cls"
    " megaladder.rollout.worker_extension.WorkerExtension …, vLLM 0.32 or later"
)
PING_S = 10.0
LOST_AFTER_PINGS = 6


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """concurrency: requests under way at once; the server queues what it cannot decode together.

    ping_s: between two looks at it. timeout_s: from a request, or a weight update, to the end of
    its answer."""

    concurrency: int = 256
    ping_s: float = PING_S
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server by its base URL."""

    url: str
    options: ServerOptions = ServerOptions()

    def open(self, index: int, inbox: Inbox) -> ServerReplica:
        return ServerReplica(index, inbox, self)


class ServerReplica:
    """See `replica.AnyReplica`.

    Translates the messages of a child process into HTTP. `start` waits for a server that is coming
    up.
    """

    node = 0  # reads what rank 0 writes: a folder that both see
    pid = None
    stopped = False

    def __init__(self, index: int, inbox: Inbox, spec: ServerSpec) -> None:
        self.index, self._inbox, self._spec = index, inbox, spec
        self.incarnation = 0
        self.info: dict[str, Any] = {}
        self.alive = False
        self._how, self._mark = "not started", ""
        self._nonce = secrets.token_hex(4)
        self._http = HttpClient(spec.url, may_refuse=(GENERATE,))
        self._farewell = HttpClient(spec.url)  # what is said while the other hangs up
        self._pool = ThreadPoolExecutor(
            spec.options.concurrency, thread_name_prefix=f"server-{index}"
        )
        self._pending: dict[str, Future] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Looks for the server until it answers; "ready" or "broken" goes to the inbox."""
        self.incarnation += 1
        self.info, self.alive, self._how = {}, True, "no answer yet"
        self._http = HttpClient(self._spec.url, may_refuse=(GENERATE,))
        threading.Thread(target=self._greet, args=(self.incarnation,), daemon=True).start()
        threading.Thread(target=self._ping, args=(self.incarnation,), daemon=True).start()

    def send(self, message: dict[str, Any]) -> bool:
        """Never blocks: answers arrive in the inbox."""
        if message["op"] == "generate":
            threading.Thread(
                target=self._generate, args=(message, self.incarnation), daemon=True
            ).start()
        elif message["op"] == "call":
            threading.Thread(
                target=self._call, args=(message, self.incarnation), daemon=True
            ).start()
        elif message["op"] == "abort":
            self._abort()
        return self.alive

    def kill(self) -> None:
        """Takes back what it was asked; the server itself goes on."""
        self.alive = False
        self._abort()
        self._http.hang_up()

    def stop(self, patience_s: float) -> None:
        self.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def post_mortem(self) -> str:
        return f"server {self._spec.url}: {self._how}"

    def _say(self, incarnation: int, message: dict[str, Any] | None) -> None:
        self._inbox.put((self.index, incarnation, message))

    def _lose(self, incarnation: int, how: str) -> None:
        """Says once that this incarnation is gone."""
        with self._lock:
            if incarnation != self.incarnation or not self.alive:
                return
            self.alive, self._how = False, how
        self._say(incarnation, None)

    def _greet(self, incarnation: int) -> None:
        while incarnation == self.incarnation and self.alive:
            try:
                self._http.get("/health", timeout_s=5.0)
                break
            except OSError as error:
                self._how = str(error)
                time.sleep(1.0)
        try:
            self.info = self._describe()
            self._set_mark()
        except Exception as error:  # noqa: BLE001  (the end of a thread; see _one)
            self._say(
                incarnation,
                {"op": "broken", "message": f"server {self._spec.url}: {error}; {HOW_TO_START}"},
            )
            return
        self._how = "running"
        self._say(incarnation, self.info)

    def _describe(self) -> dict[str, Any]:
        """The "ready" message. Raises ValueError where the server lacks what is needed."""
        api = self._http.get("/openapi.json")
        missing = [route for route in NEEDED if route not in api["paths"]]
        if missing:
            raise ValueError(f"has no route {', '.join(missing)}")
        if "output_mode" not in api["components"]["schemas"]["GenerateRequest"]["properties"]:
            raise ValueError(f"{GENERATE} gives no text")
        try:
            facts = self._rpc("facts")[0]
        except OSError as error:
            raise ValueError(f"runs without our worker extension ({error})") from None
        model = self._http.get("/v1/models")["data"][0]
        version = self._http.get("/version")["version"]
        world = (
            self._http.get("/get_world_size")["world_size"]
            if "/get_world_size" in api["paths"]
            else None
        )
        return {
            "op": "ready",
            "describe": {
                "engine": "vllm server",
                "version": version,
                **facts,
                "max_model_len": model["max_model_len"],
                "tp": world,
            },
            "features": {
                "sleep": False,
                "weight_transfer": "/update_weights" in api["paths"],
                "checksums": "/weight_checker" in api["paths"],
            },
        }

    def _ping(self, incarnation: int) -> None:
        """A sign of life for the engine while requests are under way.

        The end of this incarnation when the server is gone.
        """
        silent = 0
        while incarnation == self.incarnation and self.alive:
            time.sleep(self._spec.options.ping_s)
            try:
                self._http.get("/health", timeout_s=self._spec.options.ping_s)
                silent = 0
                if self._pending:
                    self._say(incarnation, {"op": "beat"})
            except OSError as error:
                silent += 1
                if self.info and (
                    silent >= LOST_AFTER_PINGS or isinstance(error, ConnectionRefusedError)
                ):
                    self._lose(incarnation, f"no answer to {silent} looks: {error}")

    def _generate(self, message: dict[str, Any], incarnation: int) -> None:
        try:
            if self._http.get("/weight_info")["weight_version"] != self._mark:
                self._lose(incarnation, "it was restarted, its weights are not ours")
                return
        except Exception as error:  # noqa: BLE001  (the end of a thread; see _one)
            self._lose(incarnation, f"{type(error).__name__}: {error}")
            return
        for number, prompt, params, seed in message["requests"]:
            name = f"{self._nonce}-{self.index}-{incarnation}-{message['call']}-{number}"
            body = {
                "request_id": name,
                "token_ids": message["prompts"][prompt],
                "output_mode": "text",
                "sampling_params": _their_params(message["params"][params], seed),
            }
            with self._lock:
                if self.alive:
                    self._pending[name] = self._pool.submit(
                        self._one, body, message["call"], number, incarnation
                    )

    def _one(self, body: dict[str, Any], call: int, number: int, incarnation: int) -> None:
        try:
            choice = self._work(GENERATE, body)["choices"][0]
            item = {"id": number, **_completion(choice)}
            self._say(incarnation, {"op": "done", "call": call, "items": [item]})
        except Refused as error:
            self._say(
                incarnation, {"op": "refused", "call": call, "id": number, "message": str(error)}
            )
        # whatever it is: nobody reads this future, and the request must not vanish with it
        except Exception as error:  # noqa: BLE001
            self._lose(incarnation, f"{GENERATE}: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._pending.pop(body["request_id"], None)

    def _abort(self) -> None:
        with self._lock:
            names = list(self._pending)
            for future in self._pending.values():
                future.cancel()
            self._pending.clear()
        if names:
            threading.Thread(
                target=self._farewell.try_post,
                args=("/inference/v1/abort_requests", {"request_ids": names}),
                daemon=True,
            ).start()

    def _call(self, message: dict[str, Any], incarnation: int) -> None:
        reply = {"op": "reply", "call": message["call"]}
        try:
            reply["result"] = getattr(self, f"_do_{message['method']}")(**message["kwargs"])
        except Exception as error:  # noqa: BLE001  (the end of a thread; see _one)
            reply["error"] = f"{type(error).__name__}: {error}"
        self._say(incarnation, reply)

    def _rpc(self, method: str, arguments: Mapping[str, Any] | None = None) -> list[Any]:
        body = {"method": method, "kwargs": dict(arguments or {})}
        return self._work("/collective_rpc", body).get("results", [])

    def _work(self, path: str, body: Mapping[str, Any]) -> Any:
        """What may take as long as a round."""
        return self._http.post(path, body, self._spec.options.timeout_s)

    def _set_mark(self) -> None:
        self._mark = f"megaladder-{secrets.token_hex(6)}"
        self._http.post("/update_weight_version", {"new_version": self._mark})

    def _do_load_folder(self, path: str) -> None:
        self._rpc("load_folder", {"weights_path": path})
        self._set_mark()

    def _do_reset_prefix_cache(self) -> bool:
        return self._work("/reset_prefix_cache", {})["success"]

    def _do_weight_checksums(self) -> list[dict[str, str]]:
        return [self._work("/weight_checker", {"action": "checksum"})["checksums"]]

    def _do_watch_weights(self) -> None:
        """A server has no call for it: its experts stay unseen."""

    def _do_sleep(self, level: int) -> bool:
        return False

    def _do_wake(self, tags: list[str]) -> bool:
        return False

    def _do_init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._work("/init_weight_transfer_engine", {"init_info": init_info})

    def _do_start_weight_update(self) -> None:
        self._work("/start_weight_update", {})

    def _do_update_weights(self, update_info: Any) -> None:
        self._work("/update_weights", {"update_info": update_info})

    def _do_finish_weight_update(self) -> None:
        self._work("/finish_weight_update", {})
        self._set_mark()

    def _do_call_workers(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        return self._rpc(method, arguments)


def _completion(choice: Any) -> dict[str, Any]:
    """One choice of vLLM's answer in our words. Raises TypeError for values of another shape."""
    found = {
        "ids": choice["token_ids"],
        "text": choice["text"],
        "finish": choice["finish_reason"],
        "logprobs": [at["logprob"] for at in (choice.get("logprobs") or {}).get("content") or []],
        "experts": choice.get("routed_experts") or "",
    }
    wrong = [
        name
        for name, value, of in (
            ("token_ids", found["ids"], int),
            ("logprobs", found["logprobs"], float | int),
        )
        if not isinstance(value, list) or not all(isinstance(one, of) for one in value)
    ]
    wrong += [name for name in ("text", "finish", "experts") if not isinstance(found[name], str)]
    if wrong:
        raise TypeError(f"a completion whose {', '.join(wrong)} has another type")
    return found


def _their_params(ours: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Our sampling parameters in vLLM's words.

    Given as a dict, without seed; `logprobs` 0 = of the sampled token only.

    `logprobs` 0 = of the sampled token only.
    """
    unknown = ("n", "logprobs", "seed", "routed_experts")
    theirs = {name: value for name, value in ours.items() if name not in unknown}
    return {**theirs, "seed": seed, "logprobs": 0 if ours["logprobs"] else None}
