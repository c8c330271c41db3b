"""A layer's mixture of experts, and the megatron-core fields that describe it.

megatron-core's MoELayer with our router: all-to-all dispatcher (NCCL and gloo), no token is
dropped. Experts are Transformer Engine's grouped products (`TEGroupedMLP`) with te layers, else
one MLP after the other (`SequentialMLP`).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.moe.moe_layer import MoELayer

from megaladder.config.sections.moe import MoeSection
from megaladder.model.hf_config import ModelShape
from megaladder.model.moe.router import GLOBAL, SEQUENCE, Router
from megaladder.parallel import Layout

_BALANCING = {"none": "none", "sequence": SEQUENCE, "global_batch": GLOBAL}


class ExpertLayer(MoELayer):
    """Router, dispatch, experts, combination, and what every token passes through beside them."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        intermediate_tensors: None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states: [T, 1, H] → the same shape, and no bias.

        padding_mask: see `Router.routing`; megatron-core passes it on under this name, through
        recomputation too."""
        shared = self.shared_experts_compute(hidden_states)
        probs, routing_map = self.route(hidden_states, padding_mask)
        tokens, probs = self.preprocess(hidden_states, probs, routing_map)
        tokens, probs = self.dispatch(tokens, probs)
        output, _ = self.routed_experts_compute(tokens, probs)
        return self.postprocess(self.combine(output), shared), None


def expert_layer_spec(
    backend: BackendSpecProvider, shape: ModelShape, *, grouped: bool
) -> ModuleSpec:
    """The specification of a sparse layer's MLP."""
    assert shape.moe is not None
    spec = get_moe_module_spec_for_backend(
        backend, num_experts=shape.moe.num_experts, moe_grouped_gemm=grouped
    )
    spec.module, spec.submodules.router = ExpertLayer, Router
    return spec


def moe_fields(
    shape: ModelShape, layout: Layout, section: MoeSection, *, grouped: bool
) -> dict[str, Any]:
    """megatron-core's TransformerConfig fields for the model's experts; none without."""
    moe = shape.moe
    if moe is None:
        return {}
    return {
        "num_moe_experts": moe.num_experts,
        "moe_layer_freq": [int(sparse) for sparse in moe.sparse_layers] if moe.mixed else 1,
        "moe_ffn_hidden_size": moe.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_size or None,
        "moe_router_topk": moe.top_k,
        "moe_router_dtype": "fp32",
        "moe_router_score_function": moe.score,
        # softmax over all experts, or over those chosen, which is the same as dividing by their sum
        "moe_router_pre_softmax": moe.score == "softmax" and not moe.normalized,
        "moe_router_topk_scaling_factor": None if moe.scale == 1.0 else moe.scale,
        "moe_router_num_groups": moe.groups if moe.groups > 1 else None,
        "moe_router_group_topk": moe.top_groups if moe.groups > 1 else None,
        "moe_router_enable_expert_bias": moe.bias,
        # `balance.move_biases` does it, after updates that are made
        "moe_router_bias_update_rate": 0.0,
        "moe_router_load_balancing_type": _BALANCING[section.aux_loss],
        "moe_aux_loss_coeff": section.aux_loss_coef if section.aux_loss != "none" else 0.0,
        "moe_z_loss_coeff": section.z_loss_coef or None,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": grouped,
        "moe_permute_fusion": grouped,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
    }
