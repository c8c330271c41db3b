"""The nouns of planning.

How a model is laid out, what one step is, and what the software does with it. Frozen, no logic but
arithmetic.

Legend: tokens of a micro-batch on one rank T = micro_batch_size · seq_length / cp.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from megaladder.model.lora.spec import LoraSpec

RECOMPUTE_MODES = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class PlannedLayout:
    """GPUs = tp · pp · cp · dp.

    ep, etp: how many ranks of a stage share a layer's experts, and share each expert; both come out
    of the ranks that tp, cp and dp make. `recompute`: none, selective (the attention core), full
    (each layer again from its input), or, for other systems' runs only, selective_op (torchtitan:
    every second product and all that is element-wise) and elementwise (megatron-core's norms and
    activations).
    """

    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    cp: int = 1
    dp: int = 1
    micro_batch_size: int = 1
    recompute: str = "none"
    sequence_parallel: bool = True
    ep: int = 1
    etp: int = 1

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def chunks(self) -> int:
        """Model chunks over the whole pipeline; must divide the layers."""
        return self.pp * (self.vpp or 1)

    @property
    def expert_copies(self) -> int:
        """Ranks of a stage that hold the same part of the experts; their optimizer is sharded."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)

    @property
    def sequence_split(self) -> int:
        """Into how many parts norms and residuals of a sequence are divided over the tp ranks."""
        return self.tp if self.sequence_parallel else 1

    def __str__(self) -> str:
        names = [
            f"tp {self.tp}",
            f"pp {self.pp}",
            *([f"vpp {self.vpp}"] if self.vpp else []),
            *([f"cp {self.cp}"] if self.cp > 1 else []),
            *([f"ep {self.ep}"] if self.ep > 1 else []),
            *([f"etp {self.etp}"] if self.etp > 1 else []),
        ]
        return " ".join(
            [*names, f"dp {self.dp}", f"mbs {self.micro_batch_size}", f"recompute {self.recompute}"]
        )


# said wherever a time of work with adapters is
ADAPTERS_UNTIMED = "the products of the adapters are not in the predicted time; their memory is"


@dataclass(frozen=True, slots=True)
class Work:
    """One optimizer step.

    `global_batch_size` samples of `sample_length` tokens on average, packed into rows of
    `seq_length`.

    sample_length None: every sample fills its row (and attends over all of it). precision: fp32,
    bf16, or fp8 (linear layers in FP8, the rest bf16). lora: frozen weights, so no weight
    gradients and no gradient traffic. adapters: which are trained then; None: of negligible size.
    imbalance: of a mixture of experts, tokens of the busiest rank over the mean.
    """

    seq_length: int
    global_batch_size: int
    precision: str = "bf16"
    sample_length: float | None = None
    lora: bool = False
    adapters: LoraSpec | None = None
    imbalance: float = 1.0

    @property
    def context(self) -> float:
        """Mean length of the sequence that a token belongs to."""
        return min(self.sample_length or self.seq_length, self.seq_length)

    @property
    def tokens(self) -> float:
        """Tokens of one step over all ranks."""
        return self.global_batch_size * self.context

    def micro_batches(self, layout: PlannedLayout) -> int:
        """Micro-batches of one data-parallel rank.

        As many full rows as the samples make, rounded up to what the pipeline takes."""
        rows = self.tokens / self.seq_length / layout.dp
        count = max(1, ceil(rows / layout.micro_batch_size - 1e-9))
        return ceil(count / layout.pp) * layout.pp if layout.vpp else count


@dataclass(frozen=True, slots=True)
class Software:
    """What a training system does that costs or saves time.

    The defaults are this program on CUDA with Transformer Engine.

    grad_bytes: of a gradient on the wire. tp_overlap: tensor-parallel traffic runs under the matrix
    products. fused_head: logits are formed chunk by chunk and never kept (kernels.linear_loss).
    fsdp: parameters are gathered for every micro-batch. compiled: element-wise operations are
    fused. optimizer_bytes: on the GPU per parameter before sharding, in bf16 runs (fp32 master copy
    and two moments). fused_dispatch: a token crosses a link once for all its experts behind it
    (DeepEP, HybridEP); else once for each (NCCL's all-to-all). ep_overlap: experts' traffic runs
    under the products of another micro-batch. fp8_params: FP8 weights replace the bf16 ones instead
    of being kept beside them. flash2: attention by FlashAttention-2, which Hopper and later run at
    half the speed of what came after it.
    """

    grad_bytes: int = 4
    tp_overlap: bool = False
    fused_head: bool = True
    fsdp: bool = False
    compiled: bool = True
    optimizer_bytes: float = 12.0
    fp8_params: bool = False
    flash2: bool = False
    fused_dispatch: bool = False
    ep_overlap: bool = False


OURS = Software()
SOFTWARE = {
    "megaladder": OURS,
    "megatron": Software(grad_bytes=2, tp_overlap=True, fused_head=False),
    "megatron-plain": Software(fused_head=False),
    "megatron-fsdp": Software(grad_bytes=2, fused_head=False, fsdp=True),
    "fsdp-eager": Software(fused_head=False, fsdp=True, flash2=True, compiled=False),
    "fsdp-compiled": Software(fused_head=False, fsdp=True, flash2=True),
    "fsdp-compiled-async-tp": Software(fused_head=False, fsdp=True, flash2=True, tp_overlap=True),
}
