"""What we add to vLLM's workers, named by class path (never by a pickled function).

Imports nothing of vLLM: its worker mixes it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from megaladder.model.moe.choices import to_text

if TYPE_CHECKING:
    import torch


class WorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    # what that class has: declared only, for vLLM takes no extension that sets them
    device: torch.device
    model_config: Any
    model_runner: Any
    reload_weights: Callable[..., None]
    expert_record: ExpertRecord

    def facts(self) -> dict[str, str]:
        """device (cpu, cuda) and dtype: what a server cannot be asked over HTTP."""
        return {
            "device": self.device.type,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
        }

    def load_folder(self, weights_path: str) -> None:
        """New weights from a Hugging Face folder, in place of those that are there.

        vLLM computes on a CPU from packed weights. Its `reload_weights` packs the layers that it
        loads again, but neither experts nor a tied output layer.
        """
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            self._forget_expert_kernels()
        self.reload_weights(weights_path=weights_path)
        if on_cpu:
            self._repack_tied_output()

    def _forget_expert_kernels(self) -> None:
        """Lets the weights of experts be prepared as they were at the start.

        Packing them is part of making their kernel. With a kernel that is there, vLLM (0.32) copies
        the new weights as the checkpoint has them over the packed ones, in another order.
        """
        for module in self.model_runner.get_model().modules():
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def _repack_tied_output(self) -> None:
        """A tied output layer's parameter is the embedding's, so no reload loads or packs it."""
        model = self.model_runner.get_model()
        output = getattr(model, "lm_head", None)
        embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        if output is None or embedding is None or not tied:
            return
        if output is not embedding:
            output.weight = embedding.weight
        output.quant_method.process_weights_after_loading(output)

    def record_experts(self) -> None:
        """From now on keeps the experts that each token goes through.

        On a CPU, where vLLM 0.32 does not: its own capture needs its second model runner.
        """
        self.expert_record = ExpertRecord(self.model_runner)

    def experts_of(self, rows: Mapping[str, int]) -> dict[str, str]:
        """What was kept of requests that finished in the last step, as `moe.choices` writes it.

        rows: name of a request → its tokens that were computed."""
        return {name: self.expert_record.text(name, count) for name, count in rows.items()}


class ExpertRecord:
    """The experts of every token whose keys and values are in vLLM's cache, by its place there.

    So a prompt that was computed for another request keeps its choices with its keys and values.
    """

    def __init__(self, model_runner: Any) -> None:
        import torch
        from vllm.model_executor.layers.fused_moe import routed_experts_capturer as theirs

        config, cache = model_runner.vllm_config, model_runner.kv_cache_config
        (group,) = cache.kv_cache_groups  # windows would drop places of tokens that count
        layers, experts, top_k = theirs._get_routed_experts_shape(config)
        self._runner, self._block_size = model_runner, group.kv_cache_spec.block_size
        dtype = torch.uint8 if experts <= 256 else torch.uint16
        self._places = torch.zeros(
            (cache.num_blocks * self._block_size, layers, top_k), dtype=dtype
        )
        capturer: Any = self  # they ask for `capture` only
        theirs.bind_routed_experts_capturer(model_runner.get_model(), capturer)

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Called by a layer's router in a pass. topk_ids: [tokens, K]."""
        from vllm.forward_context import get_forward_context

        by_layer: Any = get_forward_context().slot_mapping  # a list only where batches are cut
        slots = next(iter(by_layer.values()), None)
        if slots is None:  # a pass without requests, to warm up
            return
        slots = slots[: len(topk_ids)]
        real = slots >= 0
        self._places[slots[real], layer_id] = topk_ids[: len(slots)][real].to(self._places.dtype)

    def text(self, name: str, num_tokens: int) -> str:
        """Of a request by its name, to which vLLM adds eight characters."""
        (state,) = (
            state for key, state in self._runner.requests.items() if key.rpartition("-")[0] == name
        )
        (blocks,) = state.block_ids
        tokens = np.arange(num_tokens)
        slots = np.array(blocks)[tokens // self._block_size] * self._block_size
        return to_text(self._places.numpy()[slots + tokens % self._block_size])
