"""What a training checkpoint contains, and how it is written and read.

It travels through megatron-core's dist_checkpointing.

Model and optimizer are stored as sharded global tensors (`fully_reshardable`: TP, PP, VPP and DP
may all change before the next load); each rank's torch RNG state as an object of its own, restored
when the number of ranks is the same; everything else is plain JSON in `trainer.json`. megatron-core
needs `psutil` here: without it its forked writer dies and the main process waits forever.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from megaladder import parallel
from megaladder.checkpoint import plain_data, store, writers
from megaladder.errors import CheckpointError
from megaladder.model.lora.adapter import ADAPTER, has_adapters
from megaladder.model.lora.state import sharded_adapters
from megaladder.model.weights import gathered
from megaladder.process import last_word
from megaladder.process.faults import fault_point

_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_OPTIMIZER_BYTES_PER_PARAMETER = 12  # fp32 master weight and two moments


def _names(chunks: Sequence[Any]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def _is_scaling_state(key: str) -> bool:
    """Transformer Engine's `_extra_state` of a linear: its FP8 scales and their history.

    A checkpoint of another layer specification or converted from Hugging Face has none, and only
    the recipe `delayed` carries anything from step to step.
    """
    return key.endswith("_extra_state")


def _model_state(chunks: Sequence[Any], stored: Container[str] | None = None) -> dict[str, Any]:
    """Sharded state of bare chunks: of those with adapters, the adapters alone.

    stored: the keys of the checkpoint to load from; scaling state that it lacks is not asked for.
    """
    states = {}
    for name, chunk in zip(_names(chunks), chunks, strict=True):
        if has_adapters(chunk):
            states[name] = sharded_adapters(chunk)
            continue
        keeps_scales = (
            getattr(chunk.config, "fp8_recipe", None) == "delayed"
            and getattr(chunk.config, "fp8", None) is not None
        )
        states[name] = {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if not _is_scaling_state(key)
            or (keeps_scales and (stored is None or value.key in stored))
        }
    return states


def _load_chunk(chunk: Any, state: dict[str, Any]) -> None:
    found = chunk.load_state_dict(state, strict=False)
    missing = [key for key in found.missing_keys if not _is_scaling_state(key)]
    if has_adapters(chunk):  # its weights are not in the checkpoint
        missing = [key for key in missing if ADAPTER in key]
    if missing or found.unexpected_keys:
        raise CheckpointError(
            f"the checkpoint does not fit the model: missing {missing[:5]}, unexpected"
            f" {found.unexpected_keys[:5]}"
        )


def _sharded_state(
    wrapped: Sequence[Any], optimizer: Any, *, load_from: Path | None = None, with_rng: bool = True
) -> dict[str, Any]:
    is_loading = load_from is not None
    state = _model_state(
        [chunk.module for chunk in wrapped],
        plain_data.stored_keys(load_from) if load_from else None,
    )
    state["optimizer"] = optimizer.sharded_state_dict(
        state, is_loading=is_loading, metadata=_OPTIMIZER_METADATA
    )
    if with_rng:
        rng = {"torch": torch.get_rng_state()}
        state["rng"] = ShardedObject(
            "rng", rng, (parallel.world_size(),), (parallel.rank(),), replica_id=0
        )
    return state


class Checkpointer:
    """Saves and loads the state of one run. Every method is collective: all ranks call it.

    hf_files: the model's config and tokenizer files, copied into every checkpoint.
    """

    def __init__(
        self,
        root: Path,
        wrapped: Sequence[Any],
        optimizer: Any,
        *,
        retention: store.Retention,
        hf_files: Sequence[Path],
        async_save: bool = False,
    ) -> None:
        self.root = root
        self._wrapped, self._optimizer = wrapped, optimizer
        self._retention, self._hf_files = retention, hf_files
        self.also_kept: frozenset[int] = frozenset()  # steps that retention leaves alone
        self._queue = AsyncCallsQueue(persistent=False) if async_save else None
        self._savers = writers.SaverWatch()

    def save(self, step: int, trainer: dict[str, Any]) -> None:
        """Writes `checkpoints/step_{step}`.

        With async_save it returns once the state is copied, and `poll` commits later.

        Raises:
            StorageError: the disk is full or fails, or a writer was killed (on every rank);
            earlier checkpoints are untouched.
        """
        self.wait()
        path = store.step_dir(self.root, step)
        with parallel.main_rank_first():
            if parallel.is_main():
                store.prepare_folder(path, self._estimated_bytes())
        fault_point("before_save")
        writers.install()
        with gathered(self._wrapped), writers.failures_in_words(path):
            state = _sharded_state(self._wrapped, self._optimizer)
            request = dist_checkpointing.save(
                state, str(path), async_sharded_save=self._queue is not None
            )
        fault_point("after_write")
        if self._queue is None:
            self._commit(step, trainer)
            return
        request.finalize_fns.append(partial(self._commit, step, trainer))
        self._queue.schedule_async_request(request)

    def _commit(self, step: int, trainer: dict[str, Any]) -> None:
        path = store.step_dir(self.root, step)
        with parallel.main_rank_first():
            if parallel.is_main():
                store.copy_files(self._hf_files, path / "hf")
                store.write_json(path / store.TRAINER, trainer)
                store.commit(path)
                kept = (*self._retention.keep_steps, *self.also_kept)
                store.apply_retention(self.root, replace(self._retention, keep_steps=kept))
        last_word.note_saved(step)
        fault_point("after_commit")

    def _estimated_bytes(self) -> int:
        chunks = [chunk.module for chunk in self._wrapped]
        config = chunks[0].config
        experts = config.expert_model_parallel_size * (config.expert_tensor_parallel_size or 1)
        copies = {True: config.tensor_model_parallel_size, False: experts}
        per_stage = sum(
            p.numel()
            * (p.element_size() + _OPTIMIZER_BYTES_PER_PARAMETER)
            * copies[getattr(p, "allreduce", True)]
            for chunk in chunks
            for p in chunk.parameters()
            if p.requires_grad
        )
        return per_stage * config.pipeline_model_parallel_size

    def poll(self) -> None:
        """Commits a background save that has ended; an error of it surfaces here."""
        if self._queue is not None:
            with writers.failures_in_words(self.root):
                self._savers.look(self._queue)
                self._queue.maybe_finalize_async_calls(blocking=False)

    def wait(self) -> None:
        """Waits for a background save and commits it."""
        if self._queue is not None:
            with writers.failures_in_words(self.root):
                self._savers.wait(self._queue)
                self._queue.maybe_finalize_async_calls(blocking=True)

    def close(self) -> None:
        self.wait()
        if self._queue is not None:
            self._queue.close()

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint's files, None for a good one; the same on every rank."""
        return _damage(path)

    def load(self, path: Path) -> dict[str, Any]:
        """Restores model, optimizer and RNG from a checkpoint that `damage` found good.

        Returns its `trainer.json`.

        Raises:
            CheckpointError: of another model; on every rank.
        """
        trainer = store.read_trainer(path)
        last_word.note_saved(trainer["step"])
        with_rng = trainer.get("num_ranks") == parallel.world_size()
        state = _sharded_state(self._wrapped, self._optimizer, load_from=path, with_rng=with_rng)
        loaded = plain_data.load(state, path)
        for name, chunk in zip(_names(self._wrapped), self._wrapped, strict=True):
            _load_chunk(chunk.module, loaded[name])
        self._optimizer.load_state_dict(loaded["optimizer"])
        if with_rng:
            torch.set_rng_state(loaded["rng"]["torch"])
        if path.parent == self.root and parallel.is_main():
            # a kill between a save and this left more than the rule keeps
            store.apply_retention(self.root, self._retention)
        return trainer


def load_model_only(path: Path, chunks: Sequence[Any]) -> None:
    """Loads the weights of a checkpoint into bare chunks, no optimizer, no RNG.

    Of a run, or made by `convert hf-to-megatron`."""
    problem = _damage(path)
    if problem is not None:
        raise CheckpointError(problem)
    loaded = plain_data.load(_model_state(chunks, plain_data.stored_keys(path)), path)
    for name, chunk in zip(_names(chunks), chunks, strict=True):
        _load_chunk(chunk, loaded[name])


def _damage(path: Path) -> str | None:
    """Ranks hash a share of the files each; a fault found by one is told to all. Collective."""
    problem = None
    try:
        store.verify(path, part=parallel.rank(), parts=parallel.world_size())
    except CheckpointError as error:
        problem = str(error)
    return next((found for found in parallel.all_gather(problem) if found), None)


def remove_leftovers(root: Path) -> list[str]:
    """Clears what a killed save left, before the run starts; the names, on every rank."""
    return parallel.broadcast(store.remove_uncommitted(root) if parallel.is_main() else None)
