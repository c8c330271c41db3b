"""The generation engines of a GRPO run.

Started in the background while the trainer is built, closed with the run.

On every node of the job, owned by the node's first rank; or, with `rollout.servers`, vLLM's own
servers on machines where no rank runs. Rank 0 feeds them all through one `Engine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from megaladder import parallel, platform
from megaladder.checkpoints_conv.live_model import export_hf
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.grpo import GrpoConfig
from megaladder.errors import ConfigError
from megaladder.rollout.engine import Engine
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.remote.fake_replica import FakeSpec
from megaladder.rollout.remote.nodes import Listener, Meeting, offer
from megaladder.rollout.remote.server import ServerOptions, ServerSpec
from megaladder.rollout.replica import ReplicaSpec
from megaladder.rollout.vllm_engine import VllmOptions, vllm_children
from megaladder.rollout.weight_sync import (
    NoSync,
    SyncOptions,
    TrainedModel,
    WeightSync,
    chosen_transport,
)
from megaladder.run_dir import RunDir
from megaladder.train.rl.feed import in_background
from megaladder.train.rl.problems import ProblemData
from megaladder.train.rl.rounds import fake_answers
from megaladder.train.trainer import ModelSource, Trainer, precision_of
from megaladder.types import required

MIB = 1 << 20
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class EngineStart:
    """Engines that are starting in the background.

    Every method is for every rank; only rank 0 ever holds an `Engine`.
    """

    def __init__(
        self, config: GrpoConfig, model: ModelSource, data: ProblemData, run: RunDir
    ) -> None:
        self._config, self._data, self._run = config, data, run
        self._future: Future | None = None
        self._nodes = parallel.nodes()
        self._listener: Listener | None = None
        self._meeting: Meeting | None = None
        if (
            len(self._nodes.leaders) > 1
            and config.rollout.engine != "replay"
            and not config.rollout.servers
        ):
            self._meet()
        self._needs_folder = config.rollout.engine == "vllm" and config.model.init == "random"
        if not self._needs_folder:
            self._begin(model.folder)
            if config.rollout.engine == "vllm" and platform.has_cuda() and colocated(config):
                # vLLM counts all that its GPU takes in since its start as its own: on a shared one
                # the trainer is built after the engine is ready, never beside it
                self._wait()

    def _meet(self) -> None:
        """Tells every rank where rank 0 takes in the other nodes' engines.

        A fake engine needs the problems' answers there too.
        """
        if parallel.is_main():
            self._listener = Listener(len(self._nodes.leaders) - 1)
        self._meeting = parallel.broadcast(self._listener.meeting if self._listener else None)
        if self._config.rollout.engine == "fake":
            stream, tokenizer = parallel.broadcast((self._data.stream, self._data.tokenizer))
            self._data = replace(self._data, stream=stream, tokenizer=tokenizer)

    def _begin(self, folder: Path) -> None:
        config, data, meeting = self._config, self._data, self._meeting
        log_dir = (
            self._run.path / "engine" / (f"node_{self._nodes.mine}" if self._nodes.mine else "")
        )
        if parallel.is_main() and config.rollout.engine != "replay":
            self._future = in_background(
                lambda: open_engine(config, folder, data, log_dir, self._listener)
            )
        elif self._nodes.leading and meeting is not None:
            in_background(
                lambda: offer(
                    meeting, self._nodes.mine, lambda: node_replicas(config, folder, data, log_dir)
                )
            )

    def result(self, trainer: Trainer | None = None) -> Engine | None:
        """The ready engine on rank 0, None elsewhere (and in a replay). Collective.

        A model that has no weights on disk yet (random initialisation) is written out from
        `trainer` first.

        Raises:
            EngineError: it did not start; on every rank.
        """
        if self._needs_folder:
            if trainer is None:
                raise ConfigError(
                    "grpo.mode rollout_only samples from a model with weights, model.init is"
                    " random; fix: pretrained"
                )
            folder = self._run.path / "engine" / "start"
            export_hf(
                trainer.chunks,
                trainer.shape,
                folder,
                source_dir=trainer.files_folder,
                options=WriteOptions(force=True, digests=False),
            )
            self._begin(folder)
        return self._wait()

    def _wait(self) -> Engine | None:
        box: list[Engine] = []
        parallel.on_main(
            lambda: box.append(self._future.result()) if self._future is not None else None
        )  # append returns None
        return box[0] if box else None


def open_engine(
    config: GrpoConfig,
    folder: Path,
    data: ProblemData,
    log_dir: Path,
    others: Listener | None = None,
) -> Engine:
    """Starts the engine that the configuration asks for, with the weights of `folder`.

    They are version 0. This node's replicas and, where there are more nodes, those that `others`
    takes in.
    """
    rollout, limits = config.rollout, Limits(stall_s=config.rollout.timeout_s)
    if rollout.servers:
        return _open_servers(config, limits)
    if rollout.engine == "fake" and others is None:
        return _fake_engine(data)
    own = node_replicas(config, folder, data, log_dir)
    return ProcessEngine([*own, *(others.accept(limits.start_s) if others else [])], limits)


def _fake_engine(data: ProblemData) -> FakeEngine:
    """One that knows the problems' answers."""
    tokenizer = required(data.tokenizer, "the problems' tokenizer")
    stream = required(data.stream, "the stream of problems")
    return FakeEngine(responder=fake_answers(stream, tokenizer), tokenizer=tokenizer)


def _open_servers(config: GrpoConfig, limits: Limits) -> Engine:
    """The servers as one engine; what they are started with has to fit the run."""
    rollout = config.rollout
    engine = ProcessEngine(
        [ServerSpec(url, ServerOptions(rollout.server_concurrency)) for url in rollout.servers],
        limits,
    )
    said = engine.describe()
    if said["max_model_len"] < config.data.seq_length:
        raise ConfigError(
            f"rollout.servers take {said['max_model_len']} tokens of prompt and answer,"
            f" data.seq_length is {config.data.seq_length}; fix: start them with --max-model-len"
            f" {config.data.seq_length}"
        )
    dtype = _DTYPES[precision_of(config)]
    if said["dtype"] != dtype:
        raise ConfigError(
            f"rollout.servers compute in {said['dtype']}, the trainer in {dtype}; fix: start them"
            f" with --dtype {dtype}"
        )
    if said["tp"] not in (None, rollout.tp):
        raise ConfigError(
            f"rollout.servers run on {said['tp']} devices each, rollout.tp is {rollout.tp}; fix:"
            f" rollout.tp {said['tp']}"
        )
    return engine


def node_replicas(
    config: GrpoConfig, folder: Path, data: ProblemData, log_dir: Path
) -> Sequence[ReplicaSpec]:
    """What this node contributes, not started yet."""
    rollout = config.rollout
    if rollout.engine == "fake":
        return [FakeSpec(lambda: _fake_engine(data))]
    transport = chosen_transport(rollout.sync)
    devices = _engine_gpus(config) if platform.has_cuda() else None
    return vllm_children(
        VllmOptions(
            model=str(folder),
            tokenizer=config.model.tokenizer,
            tp=rollout.tp,
            replicas=1 if devices is None else len(devices) // rollout.tp,
            dtype=_DTYPES[precision_of(config)],
            max_model_len=config.data.seq_length,
            seed=config.train.seed,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            cpu_kv_cache_gib=rollout.cpu_kv_cache_gib,
            enable_sleep=colocated(config),
            trust_remote_code=config.model.trust_remote_code,
            weight_transfer=None if transport == "file" else transport,
            log_dir=str(log_dir),
            devices=devices,
        )
    )


def open_weight_sync(
    config: GrpoConfig, trainer: Trainer, run: RunDir, engine: Engine | None, *, version: int | None
) -> WeightSync | NoSync:
    """Opens the way of the trainer's weights to the engine. Collective.

    `version`: what the engine holds now; None = not the trainer's weights (as for servers, which
    may hold anything).
    """
    rollout = config.rollout
    if rollout.engine == "replay":
        return NoSync()
    transport = (
        "file"
        if rollout.engine == "fake"
        else chosen_transport(rollout.sync, bool(rollout.servers))
    )
    writers = (0,) if rollout.servers else parallel.nodes().leaders
    shared = (
        Path(rollout.sync_dir)
        if rollout.sync_dir
        else run.path / "engine"
        if rollout.servers
        else None
    )
    options = SyncOptions(
        transport,
        rollout.sync_bucket_mib * MIB,
        rollout.check_sync,
        run.path,
        colocated(config),
        rollout.tp,
        writers,
        shared,
    )
    return WeightSync(
        TrainedModel(trainer.chunks, trainer.shape, trainer.folder),
        options,
        engine,
        None if rollout.servers else version,
    )


def colocated(config: GrpoConfig) -> bool:
    """Whether engine and trainer share devices, so that one sleeps while the other works.

    Not with lag 1, where both work at once, nor when there are GPUs that no training rank has, nor
    when the engines are servers elsewhere.
    """
    if config.grpo.lag or config.rollout.servers:
        return False
    return (
        not platform.has_cuda() or platform.spare_devices(parallel.local_world_size_from_env()) == 0
    )


def _engine_gpus(config: GrpoConfig) -> tuple[str, ...]:
    """Names of the engine's GPUs, as many as whole replicas take.

    Those of this machine that no training rank has, else those of the training ranks.
    """
    local = parallel.local_world_size_from_env()
    spare, tp = platform.spare_devices(local), config.rollout.tp
    first, count = (local, spare) if spare else (0, local)
    if count < tp:
        raise ConfigError(
            f"rollout.tp {tp} needs {tp} GPUs, {count} are there for the engine; fix: rollout.tp"
            f" {count}, or more GPUs"
        )
    if chosen_transport(config.rollout.sync) == "nccl" and not spare:
        raise ConfigError(
            "rollout.sync nccl needs GPUs of the engine's own: two NCCL ranks cannot share one;"
            " fix: rollout.sync ipc, or fewer training ranks than GPUs"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(index) for index in range(local + spare)]
    return tuple(names[first : first + count // tp * tp])
