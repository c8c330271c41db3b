"""The adapters of a model chunk as entries of a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)

from megaladder import parallel
from megaladder.model.lora.adapter import linear_adapters


def sharded_adapters(chunk: Any) -> dict[str, Any]:
    """A bare chunk's adapters as megatron-core's sharded tensors, by local name.

    Their keys are PEFT's names, so a checkpoint does not depend on the layout."""
    names = {id(parameter): name for name, parameter in chunk.named_parameters()}
    found = {}
    for layer, adapter in linear_adapters(chunk):
        for key, parameter in adapter.tensors(layer):
            found[names[id(parameter)]] = _sharded(parameter, key, adapter.expert)
    return found


def _sharded(parameter: torch.nn.Parameter, key: str, expert: int | None) -> Any:
    """One tensor; of those that hold the same one, which is written."""
    axis = getattr(parameter, "partition_dim", None)
    if expert is not None:
        copy = (0, 0, parallel.expert_replica())
        return make_sharded_tensor_for_checkpoint(parameter, key, replica_id=copy)
    if axis is None:
        return make_sharded_tensor_for_checkpoint(parameter, key)
    return make_tp_sharded_tensor_for_checkpoint(parameter, key, axis)
