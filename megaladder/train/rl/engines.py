"""The generation engine of a GRPO run: started on rank 0 in the background while the trainer is built, closed with the run.

One engine process tree a machine; that several nodes each have one is for later: `open_engine` is the place.
"""
from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

from megaladder import parallel, platform
from megaladder.checkpoints_conv.in_process import export_hf
from megaladder.checkpoints_conv.writer import WriteOptions
from megaladder.config.grpo import GrpoConfig
from megaladder.errors import ConfigError
from megaladder.rollout.engine import Engine
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.rollout.weight_sync import NoSync, SyncOptions, TrainedModel, WeightSync, chosen_transport
from megaladder.run_dir import RunDir
from megaladder.train.rl.feed import in_background
from megaladder.train.rl.problems import ProblemData
from megaladder.train.rl.rounds import fake_answers
from megaladder.train.trainer import ModelSource, Trainer, precision_of

MIB = 1 << 20
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class EngineStart:
    """An engine that is starting. Every method is for every rank; only rank 0 ever holds an engine."""

    def __init__(self, config: GrpoConfig, model: ModelSource, data: ProblemData, run: RunDir) -> None:
        self._config, self._data, self._run = config, data, run
        self._future: Future | None = None
        self._needs_folder = config.rollout.engine == "vllm" and config.model.init == "random"
        if not self._needs_folder:
            self._begin(model.folder)

    def _begin(self, folder: Path) -> None:
        if parallel.is_main() and self._config.rollout.engine != "replay":
            self._future = in_background(lambda: open_engine(self._config, folder, self._data, self._run))

    def result(self, trainer: Trainer | None = None) -> Engine | None:
        """The ready engine on rank 0, None elsewhere (and in a replay). Collective. A model that has no weights on disk yet (random
        initialisation) is written out from `trainer` first.

        Raises:
            EngineError: it did not start; on every rank.
        """
        if self._needs_folder:
            if trainer is None:
                raise ConfigError("grpo.mode rollout_only samples from a model with weights, model.init is random; fix: pretrained")
            folder = self._run.path / "engine" / "start"
            export_hf(trainer.chunks, trainer.shape, folder, source_dir=trainer.folder, options=WriteOptions(force=True))
            self._begin(folder)
        box: list[Engine] = []
        parallel.on_main(lambda: box.append(self._future.result()) if self._future is not None else None)  # append returns None
        return box[0] if box else None


def open_engine(config: GrpoConfig, folder: Path, data: ProblemData, run: RunDir) -> Engine:
    """The engine that the configuration asks for, with the weights of `folder` as version 0."""
    rollout = config.rollout
    if rollout.engine == "fake":
        return FakeEngine(responder=fake_answers(data.stream, data.tokenizer), tokenizer=data.tokenizer)
    transport = chosen_transport(rollout.sync)
    replicas = 1
    if platform.has_cuda():
        replicas = _place_on_gpus(config)
    if transport == "ipc":
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA handles are pickled; they go over a socket pair that only we hold
    return VllmEngine(
        VllmOptions(
            model=str(folder), tokenizer=config.model.tokenizer, tp=rollout.tp, replicas=replicas, dtype=_DTYPES[precision_of(config)],
            max_model_len=config.data.seq_length, seed=config.train.seed, gpu_memory_utilization=rollout.gpu_memory_utilization,
            cpu_kv_cache_gib=rollout.cpu_kv_cache_gib, enable_sleep=colocated(config), trust_remote_code=config.model.trust_remote_code,
            weight_transfer=None if transport == "file" else transport, log_dir=str(run.path / "engine")),
        Limits(stall_s=rollout.timeout_s))


def open_weight_sync(
    config: GrpoConfig, trainer: Trainer, run: RunDir, engine: Engine | None, *, version: int | None,
) -> WeightSync | NoSync:
    """The way of the trainer's weights to the engine. `version`: what it holds now, None = not the trainer's weights. Collective."""
    rollout = config.rollout
    if rollout.engine == "replay":
        return NoSync()
    transport = "file" if rollout.engine == "fake" else chosen_transport(rollout.sync)
    options = SyncOptions(transport, rollout.sync_bucket_mib * MIB, rollout.check_sync, run.path, colocated(config), rollout.tp)
    return WeightSync(TrainedModel(trainer.chunks, trainer.shape, trainer.folder), options, engine, version)


def colocated(config: GrpoConfig) -> bool:
    """Whether engine and trainer share devices and so take turns: the engine sleeps while the trainer works. Not with lag 1, where both
    work at once, nor when there are GPUs that no training rank has."""
    return config.grpo.lag == 0 and (not platform.has_cuda() or platform.spare_devices(parallel.local_world_size_from_env()) == 0)


def _place_on_gpus(config: GrpoConfig) -> int:
    """Replicas of the engine: on the GPUs of this machine that no training rank has, else on those of the training ranks."""
    local = parallel.local_world_size_from_env()
    spare, tp = platform.spare_devices(local), config.rollout.tp
    first, count = (local, spare) if spare else (0, local)
    if count < tp:
        raise ConfigError(f"rollout.tp {tp} needs {tp} GPUs, {count} are there for the engine; fix: rollout.tp {count}, or more GPUs")
    if chosen_transport(config.rollout.sync) == "nccl" and not spare:
        raise ConfigError("rollout.sync nccl needs GPUs of the engine's own: two NCCL ranks cannot share one; fix: rollout.sync ipc, or "
                          "fewer training ranks than GPUs")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(index) for index in range(local + spare)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + count])  # of child processes; this one has its device already
    return 1 if chosen_transport(config.rollout.sync) == "nccl" else count // tp  # one NCCL group has room for one engine
