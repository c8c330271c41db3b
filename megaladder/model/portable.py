"""A layer specification for any device.

Norms that know sequence parallelism (`model.norms`), and packed self-attention on PyTorch's SDPA.

megatron-core's own local specification has neither: its torch norm refuses sequence parallelism and
its attention refuses packed sequences. The linears are megatron-core's tensor-parallel ones. On
CUDA with Transformer Engine `model.build` takes the TE spec instead.

Shapes: T = tokens of the micro-batch (all sequences end to end), S = sequences, L = longest
sequence, G = query groups on this rank, R = query heads per group, D = head dimension. Not here:
context parallelism, dropout, inference caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.utils import is_layer_window_attention

from megaladder.model.hf_config import ModelShape
from megaladder.model.moe.layer import expert_layer_spec
from megaladder.model.norms import NormThenAdd, ProjectionNorm, RMSNorm

# A padded [S, L] attention call is preferred to a loop over sequences while its L² cost stays under
# this multiple of the loop's.
_MAX_PADDED_COST = 2.0
# where a checkpoint has the norms that are modules of their own
NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


class Rotary(NamedTuple):
    """Rotary table of a micro-batch.

    Cos, sin float [T, 1, R] in the compute dtype, R ≤ D the dimensions of a head that are rotated.
    interleaved: pairs lie side by side (GLM), not half a head apart."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool = False

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, D] → the same, its first R dimensions turned by their angle."""
        size = self.cos.shape[-1]
        turned, kept = x[..., :size], x[..., size:]
        turned = torch.addcmul(turned * self.cos, self._quarter_turn(turned), self.sin)
        return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned

    def _quarter_turn(self, x: torch.Tensor) -> torch.Tensor:
        if self.interleaved:
            return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


@dataclass(kw_only=True)
class PackedLayout(PackedSeqParams):
    """What every layer needs to know of one micro-batch, computed once.

    Rotary tables and how tokens fall into sequences.

    rotary: of layers that see all, and of those with a sliding window. lengths: tokens of each
    sequence, python ints.
    pad_index: int64 [S·L] token of each slot of the padded [S, L] view, or None when the loop is
    cheaper; slots past a sequence's end point at token 0 and are never attended by a real token.
    unpad_index: int64 [T], slot of each token.
    """

    rotary: Rotary
    local_rotary: Rotary
    lengths: tuple[int, ...]
    pad_index: torch.Tensor | None = None
    unpad_index: torch.Tensor | None = None


def packed_layout(
    cu_seqlens: torch.Tensor, max_seqlen: int, rotary: Rotary, local_rotary: Rotary
) -> PackedLayout:
    """`cu_seqlens` int32 [S + 1] on the compute device."""
    bounds = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(bounds))
    pad_index = unpad_index = None
    cost = sum(length * length for length in lengths)
    if len(lengths) > 1 and len(lengths) * max_seqlen**2 <= _MAX_PADDED_COST * cost:
        starts = cu_seqlens[:-1].long()
        offsets = torch.arange(max_seqlen, device=cu_seqlens.device)
        length_s = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
        filled = offsets[None, :] < length_s[:, None]
        pad_index = torch.where(filled, starts[:, None] + offsets[None, :], 0).reshape(-1)
        unpad_index = filled.reshape(-1).nonzero().squeeze(1)
    return PackedLayout(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        rotary=rotary,
        local_rotary=local_rotary,
        lengths=lengths,
        pad_index=pad_index,
        unpad_index=unpad_index,
    )


class PackedCoreAttention(torch.nn.Module):
    """Causal attention inside each packed sequence.

    query: [T, G·R, D]; key, value: [T, G, D]; returns [T, G·R·D]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **_: Any,
    ) -> None:
        super().__init__()
        assert config.softmax_scale is not None, "set by model.build"
        self.softmax_scale = config.softmax_scale
        self.window: int | None = None
        if is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, layer_number
        ):
            self.window = config.window_size[0] + 1

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout
    ) -> torch.Tensor:
        if layout.pad_index is not None:
            return self._padded(query, key, value, layout)
        out = [
            self._attend(*(x.unsqueeze(0) for x in qkv))
            for qkv in zip(
                query.split(layout.lengths),
                key.split(layout.lengths),
                value.split(layout.lengths),
                strict=True,
            )
        ]
        return (out[0] if len(out) == 1 else torch.cat(out, dim=1)).squeeze(0)

    def _padded(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout
    ) -> torch.Tensor:
        assert layout.pad_index is not None and layout.unpad_index is not None  # made together
        num_sequences = len(layout.lengths)
        padded = [
            x.index_select(0, layout.pad_index).unflatten(0, (num_sequences, -1))
            for x in (query, key, value)
        ]
        return self._attend(*padded).flatten(0, 1).index_select(0, layout.unpad_index)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[S, L, heads, D] → [S, L, heads·D]."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        mask = self._window_mask(query.shape[2], query.device)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).flatten(2)

    def _window_mask(self, length: int, device: torch.device) -> torch.Tensor | None:
        """Bool [L, L], True where a token sees another: itself and the window − 1 before it.

        None where the causal mask says the same."""
        if self.window is None or length <= self.window:
            return None
        position = torch.arange(length, device=device)
        distance = position[:, None] - position[None, :]
        return (distance >= 0) & (distance < self.window)


class PackedSelfAttention(SelfAttention):
    """Self-attention over a packed micro-batch.

    Fused QKV (grouped [q…q k v] per query group), optional q/k norm, rotary, SDPA."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: PackedLayout | None = None,
        **_unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer on hidden_states [T, 1, H], or [T/tp, 1, H] under sequence parallelism.

        Returns the same shape, and the output bias (always None)."""
        assert isinstance(packed_seq_params, PackedLayout), (
            "the portable attention takes packed micro-batches only"
        )
        mixed_qkv, _ = self.linear_qkv(hidden_states)
        groups = self.num_query_groups_per_partition
        per_group = self.num_attention_heads_per_partition // groups
        mixed_qkv = mixed_qkv.view(
            mixed_qkv.shape[0], groups, per_group + 2, self.hidden_size_per_attention_head
        )
        query, key, value = (
            mixed_qkv[:, :, :per_group].flatten(1, 2),
            mixed_qkv[:, :, per_group],
            mixed_qkv[:, :, per_group + 1],
        )
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        layout = packed_seq_params
        rotary = layout.rotary if self.core_attention.window is None else layout.local_rotary
        query, key = rotary.apply(query), rotary.apply(key)
        if self.checkpoint_core_attention and self.training:
            context = tensor_parallel.checkpoint(
                lambda q, k, v: self.core_attention(q, k, v, packed_seq_params),
                False,
                query,
                key,
                value,
            )
        else:
            context = self.core_attention(query, key, value, packed_seq_params)
        return self.linear_proj(context.unsqueeze(1))


def portable_block_spec(
    shape: ModelShape, config: TransformerConfig, layers: range
) -> TransformerBlockSubmodules:
    """The specification of some layers, those of one stage or chunk, and the final norm.

    Checkpoint keys equal those of the Transformer Engine spec (norms are stored under the linear
    that follows them).
    """
    backend = LocalSpecProvider()
    mlps = {False: get_mlp_module_spec_for_backend(backend=backend)}
    if shape.moe is not None:
        mlps[True] = expert_layer_spec(backend, shape, grouped=False)
    specs = [_layer_spec(shape, config, mlps[shape.is_sparse(layer)]) for layer in layers]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm)


def _layer_spec(shape: ModelShape, config: TransformerConfig, mlp: ModuleSpec) -> ModuleSpec:
    backend = LocalSpecProvider()
    norms = set(shape.family.names)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm if "input_norm" in norms else IdentityOp,
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=backend.column_parallel_linear(),
                    core_attention=PackedCoreAttention,
                    linear_proj=backend.row_parallel_linear(),
                    q_layernorm=_qk_norm(shape, shape.num_attention_heads),
                    k_layernorm=_qk_norm(shape, shape.num_query_groups),
                ),
            ),
            self_attn_bda=_add(config, "attention_post_norm" in norms),
            pre_mlp_layernorm=RMSNorm if "mlp_norm" in norms else IdentityOp,
            mlp=mlp,
            mlp_bda=_add(config, "mlp_post_norm" in norms),
            sharded_state_dict_keys_map=NORM_KEYS,
        ),
    )


def _qk_norm(shape: ModelShape, num_heads: int) -> Any:
    """The norm of queries or keys, which have `num_heads` heads over all ranks."""
    if shape.qk_norm == "projection":
        return ModuleSpec(module=ProjectionNorm, params={"num_heads": num_heads})
    return RMSNorm if shape.qk_norm == "head" else None


def _add(config: TransformerConfig, normed: bool) -> Any:
    """How a layer adds what attention or MLP returns."""
    if not normed:
        return get_bias_dropout_add
    return ModuleSpec(module=NormThenAdd, params={"config": config})
