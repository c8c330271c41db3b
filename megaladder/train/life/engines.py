"""The generation engines beside a training: of GRPO's rollouts, of evaluation in both.

Started in the background while the trainer is built, closed with the run.

On every node of the job, owned by the node's first rank; or, with `rollout.servers`, vLLM's own
servers on machines where no rank runs. Rank 0 feeds them all through one `Engine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megaladder import parallel, platform
from megaladder.checkpoints_conv.live_model import export_hf
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.sections.engine import SyncedEngineSection
from megaladder.config.sections.grpo import RolloutSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import LoraSection, TrainedModelSection
from megaladder.errors import ConfigError
from megaladder.model.lora.spec import LoraSpec
from megaladder.rollout.engine import Engine
from megaladder.rollout.fake_engine import FakeEngine, KnownAnswers, fake_answers
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
from megaladder.train.life.background import in_background
from megaladder.train.trainer import ModelSource, Trainer, precision_of
from megaladder.types import required

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Servers:
    """vLLM servers elsewhere instead of engines of our own; folder: one that both sides see."""

    urls: tuple[str, ...] = ()
    concurrency: int = 256
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What the engines beside a training are started with.

    max_model_len: prompt and answer, tokens. known: what a fake engine answers; on rank 0. apart:
    engine and trainer work at the same time, so none gives the other its devices. routed_experts:
    whether it is to tell which experts it chose. adapters: those that it is given alone.
    """

    kind: Literal["vllm", "fake", "replay"]
    section: SyncedEngineSection
    model: TrainedModelSection
    dtype: str
    seed: int
    max_model_len: int
    known: KnownAnswers | None = None
    apart: bool = False
    servers: Servers = Servers()
    lora: LoraSection = field(default_factory=LoraSection)
    adapters: LoraSpec | None = None
    routed_experts: bool = False

    @property
    def colocated(self) -> bool:
        """Whether engine and trainer share devices, so that one sleeps while the other works.

        Not where both work at once, nor when there are GPUs that no training rank has, nor when the
        engines are servers elsewhere.
        """
        if self.apart or self.servers.urls:
            return False
        local = parallel.local_world_size_from_env()
        return not platform.has_cuda() or platform.spare_devices(local) == 0


def dtype_of(config: RunConfig) -> str:
    """The type that engine and trainer compute in, in vLLM's words."""
    return {"fp32": "float32", "bf16": "bfloat16"}[precision_of(config)]


class EngineStart:
    """Engines that are starting in the background.

    Every method is for every rank; only rank 0 ever holds an `Engine`.
    """

    def __init__(self, setup: EngineSetup, model: ModelSource, run: RunDir) -> None:
        self._setup, self._run = setup, run
        self._future: Future | None = None
        self._nodes = parallel.nodes()
        self._listener: Listener | None = None
        self._meeting: Meeting | None = None
        if len(self._nodes.leaders) > 1 and setup.kind != "replay" and not setup.servers.urls:
            self._meet()
        self._needs_folder = setup.kind == "vllm" and setup.model.init == "random"
        if not self._needs_folder:
            self._begin(model.folder)
            if setup.kind == "vllm" and platform.has_cuda() and setup.colocated:
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
        if self._setup.kind == "fake":
            known = parallel.broadcast(self._setup.known)
            self._setup = replace(self._setup, known=known)

    def _begin(self, folder: Path) -> None:
        setup, meeting = self._setup, self._meeting
        log_dir = (
            self._run.path / "engine" / (f"node_{self._nodes.mine}" if self._nodes.mine else "")
        )
        if parallel.is_main() and setup.kind != "replay":
            self._future = in_background(
                lambda: open_engine(setup, folder, log_dir, self._listener)
            )
        elif self._nodes.leading and meeting is not None:
            in_background(
                lambda: offer(
                    meeting, self._nodes.mine, lambda: node_replicas(setup, folder, log_dir)
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
    setup: EngineSetup, folder: Path, log_dir: Path, others: Listener | None = None
) -> Engine:
    """Starts the engine that the configuration asks for, with the weights of `folder`.

    They are version 0. This node's replicas and, where there are more nodes, those that `others`
    takes in.
    """
    limits = Limits(stall_s=setup.section.timeout_s)
    if setup.servers.urls:
        return _open_servers(setup, limits)
    if setup.kind == "fake" and others is None:
        return _fake_engine(setup)
    own = node_replicas(setup, folder, log_dir)
    return ProcessEngine([*own, *(others.accept(limits.start_s) if others else [])], limits)


def _fake_engine(setup: EngineSetup) -> FakeEngine:
    """One that knows the answers."""
    known = required(setup.known, "the answers of a fake engine")
    return FakeEngine(responder=fake_answers(known), tokenizer=known.tokenizer)


def _open_servers(setup: EngineSetup, limits: Limits) -> Engine:
    """The servers as one engine; what they are started with has to fit the run."""
    servers = setup.servers
    options = ServerOptions(servers.concurrency, timeout_s=setup.section.timeout_s)
    engine = ProcessEngine([ServerSpec(url, options) for url in servers.urls], limits)
    said = engine.describe()
    if said["max_model_len"] < setup.max_model_len:
        raise ConfigError(
            f"rollout.servers take {said['max_model_len']} tokens of prompt and answer,"
            f" data.seq_length is {setup.max_model_len}; fix: start them with --max-model-len"
            f" {setup.max_model_len}"
        )
    dtype = setup.dtype
    if said["dtype"] != dtype:
        raise ConfigError(
            f"rollout.servers compute in {said['dtype']}, the trainer in {dtype}; fix: start them"
            f" with --dtype {dtype}"
        )
    if said["tp"] not in (None, setup.section.tp):
        raise ConfigError(
            f"rollout.servers run on {said['tp']} devices each, rollout.tp is {setup.section.tp}; fix:"
            f" rollout.tp {said['tp']}"
        )
    return engine


def node_replicas(setup: EngineSetup, folder: Path, log_dir: Path) -> Sequence[ReplicaSpec]:
    """What this node contributes, not started yet."""
    section = setup.section
    if setup.kind == "fake":
        return [FakeSpec(lambda: _fake_engine(setup))]
    transport = chosen_transport(section.sync, lora=setup.adapters is not None)
    devices = _engine_gpus(section) if platform.has_cuda() else None
    return vllm_children(
        VllmOptions(
            model=str(folder),
            tokenizer=setup.model.tokenizer,
            tp=section.tp,
            replicas=1 if devices is None else len(devices) // section.tp,
            dtype=setup.dtype,
            max_model_len=setup.max_model_len,
            seed=setup.seed,
            gpu_memory_utilization=section.gpu_memory_utilization,
            cpu_kv_cache_gib=section.cpu_kv_cache_gib,
            enable_sleep=setup.colocated,
            trust_remote_code=setup.model.trust_remote_code,
            weight_transfer=transport if transport in ("ipc", "nccl") else None,
            lora_rank=setup.adapters.rank if transport == "adapter" and setup.adapters else None,
            routed_experts=setup.routed_experts,
            log_dir=str(log_dir),
            devices=devices,
        )
    )


def open_weight_sync(
    setup: EngineSetup, trainer: Trainer, run: RunDir, engine: Engine | None, *, version: int | None
) -> WeightSync | NoSync:
    """Opens the way of the trainer's weights to the engine. Collective.

    `version`: what the engine holds now; None = not the trainer's weights (as for servers, which
    may hold anything).
    """
    section, servers = setup.section, setup.servers
    if setup.kind == "replay":
        return NoSync()
    transport = (
        "file"
        if setup.kind == "fake"
        else chosen_transport(section.sync, bool(servers.urls), setup.adapters is not None)
    )
    writers = (0,) if servers.urls else parallel.nodes().leaders
    shared = Path(servers.folder) if servers.folder else None
    options = SyncOptions(
        transport,
        section.sync_bucket_mib * MIB,
        section.check_sync,
        run.path,
        setup.colocated,
        section.tp,
        writers,
        shared or (run.path / "engine" if servers.urls else None),
    )
    return WeightSync(
        TrainedModel(
            trainer.chunks,
            trainer.shape,
            trainer.folder,
            trainer.adapters if transport == "adapter" else None,
        ),
        options,
        engine,
        # an engine starts with the model's weights, not with adapters that are there already
        None if servers.urls or setup.lora.start else version,
    )


def _engine_gpus(section: SyncedEngineSection) -> tuple[str, ...]:
    """Names of the engine's GPUs, as many as whole replicas take.

    Those of this machine that no training rank has, else those of the training ranks.
    """
    local = parallel.local_world_size_from_env()
    spare, tp = platform.spare_devices(local), section.tp
    name = "rollout" if isinstance(section, RolloutSection) else "evaluate"
    first, count = (local, spare) if spare else (0, local)
    if count < tp:
        raise ConfigError(
            f"{name}.tp {tp} needs {tp} GPUs, {count} are there for the engine; fix: {name}.tp"
            f" {count}, or more GPUs"
        )
    if section.sync == "nccl" and not spare:
        raise ConfigError(
            f"{name}.sync nccl needs GPUs of the engine's own: two NCCL ranks cannot share one;"
            f" fix: {name}.sync ipc, or fewer training ranks than GPUs"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(index) for index in range(local + spare)]
    return tuple(names[first : first + count // tp * tp])
