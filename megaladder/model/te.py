"""Transformer Engine layers.

Which megatron-core fields a run's choices become, the layer specification, rotary tables, user
buffers.

Fields (`transformer_fields`) are plain values and are tested without Transformer Engine; what
imports it does so inside functions. What stays in bf16 under FP8: embedding, output layer,
attention scores, norms, and the layers named by first_last_layers_bf16. With Transformer Engine
absent the portable layers take over (`model.portable`).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import layers as parallel_layers
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megaladder.capabilities import fp8_format
from megaladder.config.sections.gpu import GpuSection
from megaladder.model.batch import DeviceBatch
from megaladder.model.hf_config import ModelShape
from megaladder.model.moe.layer import expert_layer_spec

_ROTARY_STEP = 4096  # positions by which the rotary table grows


def transformer_fields(recipe: str | None, gpu: GpuSection, cp: int) -> dict[str, Any]:
    """megatron-core's TransformerConfig fields for a run on Transformer Engine layers."""
    fields: dict[str, Any] = {
        "gradient_accumulation_fusion": (
            True
        ),  # weight gradients are added to DDP's fp32 buffer inside the product
        "apply_rope_fusion": (
            True
            # the unfused rotary of packed sequences reads lengths back from the device in every
            # layer
        ),
        "bias_activation_fusion": True,
        "tp_comm_overlap": gpu.tp_comm_overlap,
        "cp_comm_type": gpu.cp_comm_type if cp > 1 else None,
        "cpu_offloading": gpu.activation_offload_layers > 0,
        "cpu_offloading_num_layers": gpu.activation_offload_layers,
    }
    if recipe is not None:
        fields |= {
            "fp8": fp8_format(recipe, gpu.fp8_format),
            "fp8_recipe": recipe,
            "fp8_param": gpu.fp8_param_gather,
            "first_last_layers_bf16": gpu.first_last_layers_bf16,
            "num_layers_at_start_in_bf16": gpu.num_layers_at_start_in_bf16,
            "num_layers_at_end_in_bf16": gpu.num_layers_at_end_in_bf16,
        }
    if recipe == "delayed":
        fields |= {
            "fp8_amax_history_len": gpu.fp8_amax_history_len,
            "fp8_amax_compute_algo": gpu.fp8_amax_compute_algo,
        }
    return fields


def layer_spec(config: TransformerConfig, *, separate_norms: bool = False) -> ModuleSpec:
    """The specification of one layer.

    Norms fused into the linears that follow them, or as modules of their own; linears in FP8 where
    the run says so."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    # megatron-core's own linears take fused accumulation only from apex's kernel and refuse to be
    # built without it. Only the output layer
    # is one of them, and `VocabularyHead` replaces its product; Transformer Engine's linears bring
    # their own kernel.
    parallel_layers._grad_accum_fusion_available = True
    spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    if separate_norms:
        _take_norms_apart(spec)
    return spec


def block_spec(
    shape: ModelShape, config: TransformerConfig, layers: range, *, separate_norms: bool = False
) -> ModuleSpec | TransformerBlockSubmodules:
    """The specification of some layers: one for all, or with experts one for each."""
    dense = layer_spec(config, separate_norms=separate_norms)
    if shape.moe is None:
        return dense
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    grouped = config.moe_grouped_gemm
    sparse = get_gpt_layer_with_transformer_engine_spec(
        num_experts=shape.moe.num_experts,
        moe_grouped_gemm=grouped,
        qk_layernorm=config.qk_layernorm,
    )
    if separate_norms:
        _take_norms_apart(sparse, sparse=True)
    sparse.submodules.mlp = expert_layer_spec(TESpecProvider(), shape, grouped=grouped)
    sparse.submodules.sharded_state_dict_keys_map = {
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"
    }
    specs = [sparse if shape.is_sparse(layer) else dense for layer in layers]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=TENorm)


def _take_norms_apart(spec: ModuleSpec, *, sparse: bool = False) -> None:
    """The layer with the names that the portable specification has too.

    A layer with experts has the norm before them apart already."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm

    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = TENorm
    layer.self_attention.submodules.linear_qkv = TEColumnParallelLinear
    if not sparse:
        layer.mlp.submodules.linear_fc1 = TEColumnParallelLinear


class RotaryTable:
    """Angles [positions, 1, 1, D] in fp32 on the compute device, grown as longer sequences come."""

    def __init__(self, inverse_frequencies: torch.Tensor) -> None:
        self._inverse_frequencies = inverse_frequencies
        self._angles: torch.Tensor | None = None

    def angles(self, num_positions: int) -> torch.Tensor:
        """The first `num_positions` rows."""
        if self._angles is None or len(self._angles) < num_positions:
            length = -(-num_positions // _ROTARY_STEP) * _ROTARY_STEP
            positions = torch.arange(
                length, device=self._inverse_frequencies.device, dtype=torch.float32
            )
            half = torch.outer(positions, self._inverse_frequencies)
            self._angles = torch.cat((half, half), dim=-1)[:, None, None, :]
        return self._angles[:num_positions]


def packing(batch: DeviceBatch) -> PackedSeqParams:
    """The packed micro-batch as Transformer Engine's attention reads it.

    Lengths of the whole, also under context parallelism.

    Padding at a sequence's end counts as part of it: causal attention shows it to no real token,
    and no kernel has to skip it.
    """
    lengths = {"cu_seqlens_q": batch.cu_seqlens, "cu_seqlens_kv": batch.cu_seqlens}
    if batch.part is not None:  # its context-parallel attention insists on the padded ones
        lengths |= {
            "cu_seqlens_q_padded": batch.cu_seqlens,
            "cu_seqlens_kv_padded": batch.cu_seqlens,
        }
    return PackedSeqParams(
        qkv_format="thd", max_seqlen_q=batch.max_seqlen, max_seqlen_kv=batch.max_seqlen, **lengths
    )


def start_user_buffers(config: TransformerConfig, num_tokens: int) -> None:
    """Transformer Engine's communication buffers for gpu.tp_comm_overlap.

    Once, before the first forward. `num_tokens`: T / cp."""
    from transformer_engine.pytorch.module.base import initialize_ub

    initialize_ub(
        shape=[num_tokens, config.hidden_size],
        tp_size=config.tensor_model_parallel_size,
        use_fp8=config.fp8 is not None,
        dtype=config.params_dtype,
        bootstrap_backend=config.tp_comm_bootstrap_backend,
    )
