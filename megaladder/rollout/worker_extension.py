"""What we add to vLLM's workers, named by class path (never by a pickled function).

Imports nothing of vLLM: its worker mixes it in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class WorkerExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    # what that class has: declared only, for vLLM takes no extension that sets them
    device: torch.device
    model_config: Any
    model_runner: Any

    def facts(self) -> dict[str, str]:
        """device (cpu, cuda) and dtype: what a server cannot be asked over HTTP."""
        return {
            "device": self.device.type,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
        }

    def repack_tied_output(self) -> bool:
        """After a weight reload on a CPU: packs the output layer of a tied model again.

        Returns whether there was one.

        vLLM's CPU linears compute from a packed copy of their weight. `reload_weights` renews it
        for the layers that it loads; a tied output layer is none of them (its parameter is the
        embedding's), and would go on with the old weights.
        """
        model = self.model_runner.get_model()
        output = getattr(model, "lm_head", None)
        embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        if output is None or embedding is None or not tied:
            return False
        if output is not embedding:
            output.weight = embedding.weight
        output.quant_method.process_weights_after_loading(output)
        return True
