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
    expert_digests: ExpertDigests
    _weight_checksum_prefix: Callable[[], str]

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

    def watch_experts(self) -> None:
        """From the next update on, until `expert_checksums`, keeps digests of experts' weights."""
        if not hasattr(self, "expert_digests"):
            self.expert_digests = ExpertDigests(self.model_runner.get_model())
        self.expert_digests.begin()

    def expert_checksums(self) -> dict[str, str]:
        """The digests, named as vLLM's own checksums are; none where nobody watched."""
        if not hasattr(self, "expert_digests"):
            return {}
        prefix = self._weight_checksum_prefix()
        return {prefix + name: digest for name, digest in self.expert_digests.end().items()}

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


class ExpertDigests:
    """What is loaded into each expert, as sha256, before its kernel orders the weights in its own way.

    Afterwards nothing in the engine shows them as they came: on a CPU they are packed, on CUDA some
    kernels swap and shuffle their rows. Names: …mlp.experts.3.gate_up_proj.weight, gate's rows and
    then up's, and …down_proj.weight: this worker's part without what vLLM fills widths up with.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._found: dict[str, str] | None = None
        for name, layer in model.named_modules():
            # parts of an expert on several workers only by tensor parallelism
            if hasattr(layer, "w13_weight") and not layer.moe_config.moe_parallel_config.use_ep:
                self._note_before_preparing(name.partition(".experts")[0] + ".experts", layer)

    def begin(self) -> None:
        """Forgets what was found, and looks from now on."""
        self._found = {}

    def end(self) -> dict[str, str]:
        """What was found since."""
        found, self._found = self._found, None
        return found or {}

    def _note_before_preparing(self, name: str, layer: Any) -> None:
        method = layer.quant_method
        prepare = method.process_weights_after_loading

        def noted(loaded: Any) -> None:
            if self._found is not None:
                self._note(name, loaded, self._found)
            prepare(loaded)

        method.process_weights_after_loading = noted

    @staticmethod
    def _note(name: str, layer: Any, found: dict[str, str]) -> None:
        from megaladder.rollout.weight_check import tensor_digest

        width = layer.moe_config.intermediate_size_per_partition_unpadded
        hidden = layer.moe_config.hidden_dim_unpadded
        weights = zip(layer.w13_weight, layer.w2_weight, strict=True)
        for expert, (both, down) in enumerate(weights):
            gate_up = both.unflatten(0, (2, -1))[:, :width, :hidden].flatten(0, 1)
            found[f"{name}.{expert}.gate_up_proj.weight"] = tensor_digest(gate_up)
            found[f"{name}.{expert}.down_proj.weight"] = tensor_digest(down[:hidden, :width])


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
