"""What we add to vLLM's workers, named by class path (never by a pickled function).

Imports nothing of vLLM: its worker mixes it in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class WorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    # what that class has: declared only, for vLLM takes no extension that sets them
    device: torch.device
    model_config: Any
    model_runner: Any
    reload_weights: Callable[..., None]

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
