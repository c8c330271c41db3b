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

import http.client
import json
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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
CALL_TIMEOUT_S = 600.0
MAX_BODY_BYTES = 1 << 28  # a million tokens with their log-probs take a third of it
REQUEST_TIMEOUT_S = 24 * 3600.0  # a silent server is noticed by the pings


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """concurrency: requests under way at once; the server queues what it cannot decode together.

    ping_s: between two looks at it."""

    concurrency: int = 256
    ping_s: float = PING_S


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

    def __init__(self, index: int, inbox: Inbox, spec: ServerSpec) -> None:
        self.index, self._inbox, self._spec = index, inbox, spec
        self.incarnation = 0
        self.info: dict[str, Any] = {}
        self.alive = False
        self._how, self._mark = "not started", ""
        self._nonce = secrets.token_hex(4)
        self._http = _Http(spec.url)
        self._pool = ThreadPoolExecutor(
            spec.options.concurrency, thread_name_prefix=f"server-{index}"
        )
        self._pending: dict[str, Future] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Looks for the server until it answers; "ready" or "broken" goes to the inbox."""
        self.incarnation += 1
        self.info, self.alive, self._how = {}, True, "no answer yet"
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
            choice = self._http.post(GENERATE, body, timeout_s=REQUEST_TIMEOUT_S)["choices"][0]
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
                target=self._http.try_post,
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
        return self._http.post(
            "/collective_rpc", {"method": method, "kwargs": dict(arguments or {})}
        ).get("results", [])

    def _set_mark(self) -> None:
        self._mark = f"megaladder-{secrets.token_hex(6)}"
        self._http.post("/update_weight_version", {"new_version": self._mark})

    def _do_load_folder(self, path: str) -> None:
        self._rpc("reload_weights", {"weights_path": path})
        if self.info["describe"]["device"] == "cpu":
            self._rpc("repack_tied_output")
        self._set_mark()

    def _do_reset_prefix_cache(self) -> bool:
        return self._http.post("/reset_prefix_cache", {})["success"]

    def _do_weight_checksums(self) -> list[dict[str, str]]:
        return [self._http.post("/weight_checker", {"action": "checksum"})["checksums"]]

    def _do_sleep(self, level: int) -> bool:
        return False

    def _do_wake(self, tags: list[str]) -> bool:
        return False

    def _do_init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._http.post("/init_weight_transfer_engine", {"init_info": init_info})

    def _do_start_weight_update(self) -> None:
        self._http.post("/start_weight_update", {})

    def _do_update_weights(self, update_info: Any) -> None:
        self._http.post("/update_weights", {"update_info": update_info})

    def _do_finish_weight_update(self) -> None:
        self._http.post("/finish_weight_update", {})
        self._set_mark()

    def _do_call_workers(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        return self._rpc(method, arguments)


class Refused(Exception):
    """The server understood and declined (status 4xx); its own words."""


class _Http:
    """JSON over HTTP, without proxies (these are machines of our own network).

    Raises OSError for all but an answer, Refused for 4xx.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        key = os.environ.get("VLLM_API_KEY")
        self._headers = {
            "content-type": "application/json",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }

    def get(self, path: str, timeout_s: float = 60.0) -> Any:
        return self._ask(urllib.request.Request(self._url + path, headers=self._headers), timeout_s)

    def post(self, path: str, body: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        data = json.dumps(body).encode()
        return self._ask(
            urllib.request.Request(
                self._url + path, data=data, headers=self._headers, method="POST"
            ),
            timeout_s,
        )

    def try_post(self, path: str, body: dict[str, Any]) -> None:
        """For what may fail without harm."""
        try:
            self.post(path, body, timeout_s=30.0)
        except (OSError, Refused):
            return

    def _ask(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                text = _body(response)
        except urllib.error.HTTPError as error:
            words = error.read().decode("utf-8", "replace")[:500]
            if (
                400 <= error.code < 500
                and error.code not in (408, 429)
                and request.full_url.endswith(GENERATE)
            ):
                raise Refused(words) from None
            raise OSError(f"{request.full_url} answered {error.code}: {words}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, OSError):
                raise error.reason from None
            raise OSError(f"{request.full_url}: {error.reason}") from None
        except http.client.HTTPException as error:
            how = f"{type(error).__name__}: {error}"
            raise OSError(
                f"{request.full_url}: the answer was cut short or is too long ({how})"
            ) from None
        try:
            return json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise OSError(f"{request.full_url}: the answer is no JSON ({error})") from None


def _body(response: http.client.HTTPResponse) -> bytes:
    """All of an answer, unless it is none of vLLM's: so long that it would fill the memory."""
    if response.length is None:
        text = response.read(MAX_BODY_BYTES + 1)
    else:
        text = response.read() if response.length <= MAX_BODY_BYTES else b""
    if len(text) > MAX_BODY_BYTES or (response.length or 0) > MAX_BODY_BYTES:
        raise http.client.HTTPException(f"more than {MAX_BODY_BYTES:,} bytes")
    return text


def _completion(choice: Any) -> dict[str, Any]:
    """One choice of vLLM's answer in our words. Raises TypeError for values of another shape."""
    found = {
        "ids": choice["token_ids"],
        "text": choice["text"],
        "finish": choice["finish_reason"],
        "logprobs": [at["logprob"] for at in (choice.get("logprobs") or {}).get("content") or []],
    }
    wrong = [
        name
        for name, value, of in (
            ("token_ids", found["ids"], int),
            ("logprobs", found["logprobs"], float | int),
        )
        if not isinstance(value, list) or not all(isinstance(one, of) for one in value)
    ]
    wrong += [name for name in ("text", "finish") if not isinstance(found[name], str)]
    if wrong:
        raise TypeError(f"a completion whose {', '.join(wrong)} has another type")
    return found


def _their_params(ours: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Our sampling parameters in vLLM's words.

    Given as a dict, without seed; `logprobs` 0 = of the sampled token only.

    `logprobs` 0 = of the sampled token only.
    """
    theirs = {name: value for name, value in ours.items() if name not in ("n", "logprobs", "seed")}
    return {**theirs, "seed": seed, "logprobs": 0 if ours["logprobs"] else None}
