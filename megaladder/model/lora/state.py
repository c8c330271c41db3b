"""The adapters of a model chunk as entries of a checkpoint."""

from __future__ import annotations

from typing import Any

from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)

from megaladder.model.lora.adapter import linear_adapters


def sharded_adapters(chunk: Any) -> dict[str, Any]:
    """A bare chunk's adapters as megatron-core's sharded tensors, by local name.

    Their keys are PEFT's names, so a checkpoint does not depend on the layout."""
    names = {id(parameter): name for name, parameter in chunk.named_parameters()}
    found = {}
    for layer, adapter in linear_adapters(chunk):
        for key, parameter in adapter.tensors(layer):
            axis = getattr(parameter, "partition_dim", None)
            found[names[id(parameter)]] = (
                make_sharded_tensor_for_checkpoint(parameter, key)
                if axis is None
                else make_tp_sharded_tensor_for_checkpoint(parameter, key, axis)
            )
    return found
