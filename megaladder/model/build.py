"""HF config → megatron-core GPTModel chunks of this rank, ready to be loaded and trained.

The TE specification on CUDA with Transformer Engine, else the portable one. What a chunk computes
is `LadderGPT.forward`: packed tokens in, hidden states out (inner pipeline stages) or per-token
log-probs (last stage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megaladder import parallel, platform
from megaladder.capabilities import long_sequence_problem
from megaladder.config.sections.gpu import GpuSection
from megaladder.config.sections.moe import MoeSection
from megaladder.errors import ModelError
from megaladder.model import te
from megaladder.model.batch import DeviceBatch
from megaladder.model.families.frequencies import inverse_frequencies
from megaladder.model.families.rope import RopeConfig
from megaladder.model.head import (
    HeadOptions,
    HeadOutput,
    LossSums,
    VocabularyEmbedding,
    VocabularyHead,
)
from megaladder.model.hf_config import ModelShape, padded_vocab_size
from megaladder.model.moe.balance import routers
from megaladder.model.moe.layer import moe_fields
from megaladder.model.moe.router import SEQUENCE, with_choices
from megaladder.model.portable import Rotary, packed_layout, portable_block_spec
from megaladder.parallel import Layout


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a run chooses about the computation, not about the model.

    `recompute`: none, selective (`recompute_modules`) or full (layers).

    `layers`: te, portable, or auto = te in bf16 where there is Transformer Engine on CUDA (its
    packed attention takes no fp32). `gpu`: read with te layers only. adapters: the linears will
    have some, so norms stay apart from them: an adapter takes the normed input. adapts_experts: the
    experts' linears too, which are then modules of their own, not grouped products.
    """

    precision: str = "fp32"
    recompute: str = "none"
    recompute_modules: tuple[str, ...] = ("core_attn",)
    fp8: str | None = None
    gpu: GpuSection = field(default_factory=GpuSection)
    moe: MoeSection = field(default_factory=MoeSection)
    layers: str = "auto"
    seed: int = 42
    adapters: bool = False
    adapts_experts: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]

    @property
    def uses_te(self) -> bool:
        if self.layers == "auto":
            return self.precision == "bf16" and platform.has_transformer_engine()
        return self.layers == "te"


def transformer_config(
    shape: ModelShape, layout: Layout, options: BuildOptions
) -> TransformerConfig:
    """megatron-core's configuration for this model, layout and precision."""
    fields: dict[str, Any] = {
        "gradient_accumulation_fusion": platform.has_apex_accumulation(),
        "apply_rope_fusion": False,
        "bias_activation_fusion": False,
    }
    if uses_te(shape, options):
        fields = te.transformer_fields(options.fp8, options.gpu, layout.cp)
    if options.adapters:  # of what is trained nothing is a linear's own weight
        fields["gradient_accumulation_fusion"] = False
    if options.recompute == "selective":
        fields |= {
            "recompute_granularity": "selective",
            "recompute_modules": list(options.recompute_modules),
        }
    elif options.recompute == "full":
        fields |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    on_cuda = platform.has_cuda()
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.head_dim,
        softmax_scale=_softmax_scale(shape, options),
        **_window_fields(shape),
        normalization="RMSNorm",
        layernorm_zero_centered_gamma=shape.family.norm_offset,
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=_GATES[shape.family.gate],
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        # megatron-core sums gradients of such norms over TP: right where every rank has them whole
        qk_layernorm=shape.qk_norm == "head",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=options.precision == "bf16",
        params_dtype=options.dtype,
        pipeline_dtype=options.dtype,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.num_chunks > 1 else None,
        context_parallel_size=layout.cp,
        sequence_parallel=layout.uses_sequence_parallel,
        use_cpu_initialization=not on_cuda,
        perform_initialization=False,
        calculate_per_token_loss=True,
        batch_p2p_comm=platform.overlaps(),
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        **moe_fields(shape, layout, options.moe, grouped=groups_experts(shape, options)),
        **fields,
    )


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU (Gemma)."""
    return F.gelu(x, approximate="tanh")


_GATES = {"silu": F.silu, "gelu_pytorch_tanh": _gelu_tanh}


def groups_experts(shape: ModelShape, options: BuildOptions) -> bool:
    """Whether the products of a rank's experts are grouped."""
    return uses_te(shape, options) and not options.adapts_experts


def uses_te(shape: ModelShape, options: BuildOptions) -> bool:
    """Whether the layers are Transformer Engine's.

    Raises where they are asked for and cannot compute this model."""
    if options.layers == "te" and shape.portable_only is not None:
        raise ModelError(
            f"{shape.family.title} has {shape.portable_only}, which Transformer Engine's layers do"
            " not compute; fix: the portable layers"
        )
    return options.uses_te and shape.portable_only is None


def _softmax_scale(shape: ModelShape, options: BuildOptions) -> float:
    """YaRN's factor of the scores where the kernel cannot take it.

    Transformer Engine's rotary kernel takes angles, so the factor of cosines and sines goes into
    the scores: queries and keys have it both."""
    if uses_te(shape, options):
        return shape.softmax_scale * shape.rope.attention_factor**2
    return shape.softmax_scale


def _window_fields(shape: ModelShape) -> dict[str, Any]:
    """megatron-core counts the tokens before a token, transformers the token too."""
    if shape.sliding_window is None:
        return {}
    return {
        "window_size": (shape.sliding_window - 1, 0),
        "window_attn_skip_freq": [int(sliding) for sliding in shape.sliding_layers],
    }


class LadderGPT(GPTModel):
    """One model chunk (a pipeline stage or a virtual stage of it) over packed micro-batches."""

    def __init__(
        self,
        shape: ModelShape,
        config: TransformerConfig,
        *,
        vp_stage: int | None,
        use_te: bool,
        adapters: bool = False,
    ) -> None:
        super().__init__(
            config,
            (
                te.block_spec(shape, config, _layers(config, vp_stage), separate_norms=adapters)
                if use_te
                else portable_block_spec(shape, config, _layers(config, vp_stage))
            ),
            vocab_size=padded_vocab_size(shape.vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel.is_first_chunk(vp_stage),
            post_process=parallel.is_last_chunk(vp_stage),
            share_embeddings_and_output_weights=shape.tied,
            # ours: both layer specifications get HF's frequencies, scaled ones included
            position_embedding_type="none",
            vp_stage=vp_stage,
        )
        self.shape = shape
        # plain attributes: in no state dict
        self._inv_freq = _frequencies(shape, shape.rope)
        self._local_inv_freq = (
            None if shape.local_rope is None else _frequencies(shape, shape.local_rope)
        )
        self._rotary_table = te.RotaryTable(self._inv_freq) if use_te else None

    def setup_embeddings_and_output_layer(self) -> None:
        if self.post_process:
            VocabularyHead.take_over(self.output_layer)
        super().setup_embeddings_and_output_layer()
        if self.pre_process:
            tied_here = self.post_process and self.share_embeddings_and_output_weights
            VocabularyEmbedding.take_over(self.embedding.word_embeddings, tied_here=tied_here)

    def _rotary(self, batch: DeviceBatch) -> tuple[torch.Tensor | None, PackedSeqParams]:
        """The rotary tensor that megatron-core's TE layers take, and the packing description."""
        if self._rotary_table is not None:
            return self._rotary_table.angles(batch.max_seqlen), te.packing(batch)
        rotary = local = self._rotary_of(batch, self.shape.rope, self._inv_freq)
        if self.shape.local_rope is not None and self._local_inv_freq is not None:
            local = self._rotary_of(batch, self.shape.local_rope, self._local_inv_freq)
        return None, packed_layout(batch.cu_seqlens, batch.max_seqlen, rotary, local)

    def _rotary_of(self, batch: DeviceBatch, rope: RopeConfig, inv_freq: torch.Tensor) -> Rotary:
        """Cosines and sines of this rank's tokens."""
        positions = batch.local_position_ids.reshape(-1).float()
        angles = torch.outer(positions, inv_freq).unsqueeze(1)
        interleaved = self.shape.family.rotary_interleaved
        angles = (
            angles.repeat_interleave(2, dim=-1)
            if interleaved
            else torch.cat((angles, angles), dim=-1)
        )
        dtype, scale = self.config.params_dtype, rope.attention_factor
        return Rotary(
            (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype), interleaved
        )

    def hidden_states(self, batch: DeviceBatch) -> torch.Tensor:
        """[T/cp, 1, H] (1/tp of it under sequence parallelism).

        After the final norm on the last stage."""
        self._refuse_too_long(batch)
        rotary, packed = self._rotary(batch)
        return self.decoder(
            hidden_states=self._embedded(batch) if self.pre_process else None,
            attention_mask=None,
            rotary_pos_emb=rotary,
            packed_seq_params=packed,
            **({} if self.shape.moe is None else {"padding_mask": self._for_routers(batch)}),
        )

    def _for_routers(self, batch: DeviceBatch) -> torch.Tensor:
        """What the routers are told of this rank's tokens."""
        by_sequence = self.config.moe_router_load_balancing_type == SEQUENCE
        groups = batch.balance_groups(by_sequence=by_sequence)
        told = with_choices(groups, batch.routed_experts)
        if not self.config.sequence_parallel:
            return told
        return told.chunk(self.config.tensor_model_parallel_size, dim=1)[parallel.tp_rank()]

    def _embedded(self, batch: DeviceBatch) -> torch.Tensor:
        embedded = self.embedding(
            input_ids=batch.local_input_ids, position_ids=batch.local_position_ids
        )
        if not self.shape.family.scaled_embedding:
            return embedded
        # rounded to the weights' dtype first, as Gemma does: √3072 is 55.5 in bf16
        return embedded * embedded.new_tensor(self.shape.hidden_size**0.5)

    def _refuse_too_long(self, batch: DeviceBatch) -> None:
        limit = self.shape.rope.longest_sequence()
        if limit is not None and batch.max_seqlen > limit:
            raise ModelError(long_sequence_problem(self.shape.rope.kind, limit, batch.max_seqlen))

    def forward(
        self, batch: DeviceBatch, options: HeadOptions = HeadOptions()
    ) -> torch.Tensor | HeadOutput | LossSums:
        """Inner stages return hidden states [T/cp, 1, H].

        The last stage per-token log-probs of its labels, or the sums of `options.loss` (see
        `VocabularyHead`)."""
        hidden_states = self.hidden_states(batch)
        if not self.post_process:
            return hidden_states
        return self.output_layer(
            hidden_states,
            batch,
            options,
            weight=self._output_weight(),
            vocab_size=self.shape.vocab_size,
        )

    def _output_weight(self) -> torch.Tensor:
        return (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )

    def logits(self, batch: DeviceBatch) -> torch.Tensor:
        """Full logits [T, V] of the last stage (all TP ranks get them), for parity checks.

        Not for training, nor context parallelism."""
        hidden_states = self.hidden_states(batch)
        if not self.post_process:
            return hidden_states
        logits, _ = tensor_parallel.ColumnParallelLinear.forward(
            self.output_layer,
            hidden_states,
            weight=self._output_weight(),
            runtime_gather_output=True,
        )
        return logits.squeeze(1)[:, : self.shape.vocab_size]


def _layers(config: TransformerConfig, vp_stage: int | None) -> range:
    """Indices, from 0, of a chunk's layers."""
    first = get_transformer_layer_offset(config, vp_stage)
    return range(first, first + get_num_layers_to_build(config, vp_stage))


def _frequencies(shape: ModelShape, rope: RopeConfig) -> torch.Tensor:
    return inverse_frequencies(rope, shape.head_dim).to(platform.device())


_SPLIT_DIM = {
    "VocabularyEmbedding": 0,
    "VocabularyHead": 0,
    "ColumnParallelLinear": 0,
    "LayerNormColumnParallelLinear": 0,
    "ColumnParallelGroupedLinear": 0,
    "RowParallelLinear": 1,
    "RowParallelGroupedLinear": 1,
    "ProjectionNorm": 0,
}


def _mark_sharded(chunk: LadderGPT) -> None:
    """Tells megatron-core which parameters are split over TP ranks, and which are experts'.

    Its global gradient norm counts by the dimension of the split; gradients of experts are summed
    over other ranks.

    Its own initialisers would, but we skip them: weights come from a folder or from
    `RandomTensors`.
    """
    for module in chunk.modules():
        dim = _SPLIT_DIM.get(type(module).__name__.removeprefix("TE"))
        for name, parameter in module.named_parameters(recurse=False):
            if dim is not None and not (name.startswith("bias") and dim == 1):
                marks = {"tensor_model_parallel": True, "partition_dim": dim, "partition_stride": 1}
                for mark, value in marks.items():
                    setattr(parameter, mark, value)
    for name, parameter in chunk.named_parameters():
        # also where one EP rank has them all: optimizer states then have one form at every layout
        if ".mlp.experts." in name:
            parameter.allreduce = False


def build_chunks(shape: ModelShape, layout: Layout, options: BuildOptions) -> list[LadderGPT]:
    """This rank's model chunks (1, or `vpp` of them) on its device, weights not yet loaded."""
    config = transformer_config(shape, layout, options)
    stages: Sequence[int | None] = range(layout.num_chunks) if layout.num_chunks > 1 else [None]
    te_layers = uses_te(shape, options)
    chunks = [
        LadderGPT(shape, config, vp_stage=stage, use_te=te_layers, adapters=options.adapters)
        for stage in stages
    ]
    for chunk in chunks:
        # Transformer Engine makes its parameters where and as they stay; a cast would turn FP8 ones
        # into bf16
        if not te_layers:
            chunk.to(device=platform.device(), dtype=options.dtype)
        for router in routers([chunk]):
            router._maintain_float32_expert_bias()  # before anything is loaded into it
        _mark_sharded(chunk)
    return chunks
