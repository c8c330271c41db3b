"""Hidden states → per-token log-probs, or a whole loss.

Over a vocabulary that is split across tensor-parallel ranks.

The last stage's output layer with another forward. Rows that can carry no gradient (no label,
weight 0, advantage 0 where only it counts) are known on the host and never computed. A loss that is
a sum over tokens (`HeadOptions.loss`) forms its gradient in the forward, block by block of logits
(`kernels.linear_loss`: three matrix products of the head's size); a loss that couples tokens gets
differentiable log-probs (`kernels.linear_logprob`), whose logits are kept for the backward as far
as memory allows. One collective of 16 bytes a row. Padded vocabulary columns take no part in the
softmax. The weight gradient goes straight to DDP's fp32 `main_grad`, once for each block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from megatron.core import tensor_parallel

from megaladder import platform
from megaladder.kernels.linear_common import gradient_placeholder, main_grad_of
from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_loss import TokenTerms, linear_loss
from megaladder.kernels.shard import TensorParallel, is_split, valid_columns
from megaladder.model.batch import DeviceBatch
from megaladder.types import IGNORE_INDEX, required


class HeadOutput(NamedTuple):
    """logprobs: float32 [T], natural log, 0 where the token is not active.

    Entropy: float32 [T] or None."""

    logprobs: torch.Tensor
    entropy: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LossSums:
    """What a loss function returns for some tokens.

    `loss`, a scalar with gradient, summed over them; `metrics`, further sums (no gradient) that are
    added up over micro-batches and ranks; `maxima`, of which the largest counts. The same keys
    every time.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)


LossFunction = Callable[[HeadOutput, DeviceBatch], LossSums]


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Temperature divides the logits before the softmax (1.0 in SFT).

    entropy of each active position, in nats: none, value (without gradient) or grad. loss: a sum
    over tokens, formed in the head with its gradient; None = log-probs that carry a gradient.
    skip_zero_advantage: tokens of advantage 0 have no gradient. bf16_logits: round logits to the
    weight's 16-bit type.
    """

    temperature: float = 1.0
    entropy: str = "none"
    loss: LossFunction | None = None
    skip_zero_advantage: bool = False
    bf16_logits: bool = False


class ScratchBudget:
    """Bytes that the head may spend on logits, equal on all ranks.

    A split vocabulary must cut its rows alike.

    During a step the head notes what its device has free, activations included; at its end the
    ranks agree on the least (in a reduction that the step makes anyway) and the next step uses half
    of it.
    """

    def __init__(self) -> None:
        self._agreed: int | None = None
        self._seen: int | None = None

    def bytes(self) -> int | None:
        """None: nothing known yet, or no accelerator; the kernels' defaults hold."""
        if self._seen is None:
            self._seen = platform.memory_free_bytes()
        return self._agreed

    def take_least(self) -> float:
        """The least free memory of the step that ends, bytes; inf where this rank saw none."""
        seen, self._seen = self._seen, None
        return float("inf") if seen is None else float(seen)

    def agree(self, least: float) -> None:
        """`least`: the minimum of `take_least` over all ranks."""
        self._agreed = None if least == float("inf") else max(_LEAST_BYTES, int(least) // 2)


_LEAST_BYTES = 256 << 20
SCRATCH = ScratchBudget()


class VocabularyHead(tensor_parallel.ColumnParallelLinear):
    """megatron-core's output layer with log-probs, or a loss, as its forward.

    Its parameter and its checkpoint entry are megatron-core's."""

    @classmethod
    def take_over(cls, layer: tensor_parallel.ColumnParallelLinear) -> None:
        """Turns the GPTModel's output layer into this class.

        Same parameters, same hooks, another forward."""
        layer.__class__ = cls
        # for `logits`: megatron-core's product would need apex's kernel and a gradient buffer
        layer.gradient_accumulation_fusion = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        batch: DeviceBatch,
        options: HeadOptions,
        *,
        weight: torch.Tensor,
        vocab_size: int,
    ) -> HeadOutput | LossSums:
        """hidden_states: [T (T/tp under sequence parallelism), 1, H]; weight: [V_padded/tp, H].

        Vocab_size: true V. Returns sums with `options.loss`, log-probs without."""
        tp = TensorParallel.even(self.tp_group, weight.shape[0])
        common = {
            "tp": tp if is_split(tp) else None,
            "n_valid": valid_columns(vocab_size, weight.shape[0], tp),
            "inv_temperature": 1.0 / options.temperature,
            "ignore_index": IGNORE_INDEX,
            "entropy": options.entropy,
            "sequence_parallel": self.sequence_parallel,
            "rows": batch.active_rows,
            "bf16_logits": options.bf16_logits,
            "scratch_bytes": SCRATCH.bytes(),
        }
        hidden, labels = hidden_states.squeeze(1), batch.local_labels
        if options.loss is None:
            out = linear_logprob(hidden, weight, labels, **common)
            return HeadOutput(out.logp, out.entropy)
        parts = _Parts(options, batch)
        factor = batch.gradient_factor
        loss = linear_loss(hidden, weight, labels, parts.terms, factor=factor, **common)
        return parts.sums(loss)


class _Parts:
    """A loss function applied to one block of active tokens after the other."""

    def __init__(self, options: HeadOptions, batch: DeviceBatch) -> None:
        assert options.loss is not None
        self._loss, self._entropy_grad = options.loss, options.entropy == "grad"
        chosen = batch.active_tokens
        self._active = batch if chosen is None else batch.tokens(chosen)
        self._found: list[LossSums] = []

    def terms(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, block: slice
    ) -> TokenTerms:
        """The block's loss and its derivatives, by autograd on tensors of the block's length."""
        with torch.enable_grad():
            leaves = [logprobs.detach().requires_grad_()]
            if entropy is not None:
                leaves.append(entropy.detach().requires_grad_(self._entropy_grad))
            found = self._loss(
                HeadOutput(leaves[0], leaves[1] if len(leaves) > 1 else None),
                self._active.tokens(block),
            )
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = torch.autograd.grad(found.loss, wanted, allow_unused=True)
        self._found.append(found)
        return TokenTerms(found.loss.detach(), *gradients)

    def sums(self, loss: torch.Tensor) -> LossSums:
        """The blocks' metrics as one, beside the differentiable loss."""
        if not self._found:  # no active token: the same keys all the same
            empty = loss.new_zeros(0)
            self.terms(empty, empty if self._entropy_grad else None, slice(0, 0))
        first, *others = self._found
        metrics, maxima = dict(first.metrics), dict(first.maxima)
        for part in others:
            metrics = {name: value + part.metrics[name] for name, value in metrics.items()}
            maxima = {name: torch.maximum(v, part.maxima[name]) for name, v in maxima.items()}
        return LossSums(loss, metrics, maxima)


class VocabularyEmbedding(tensor_parallel.VocabParallelEmbedding):
    """megatron-core's embedding whose gradient adds a micro-batch's rows to DDP's fp32 `main_grad`.

    megatron-core makes a dense gradient of the vocabulary's size, which DDP then adds. Its
    parameter and its checkpoint entry stay, and so does its forward where there is no gradient.
    """

    @classmethod
    def take_over(cls, layer: tensor_parallel.VocabParallelEmbedding, *, tied_here: bool) -> None:
        """Turns the GPTModel's embedding into this class.

        tied_here: the output layer of this stage has the same parameter and reports it to DDP."""
        layer.__class__ = cls
        layer.tied_here = tied_here
        if tied_here:  # nothing is left in `grad` for DDP to add
            layer.weight.zero_out_wgrad = False

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """input_: int64 [1, T], global columns."""
        main_grad = main_grad_of(self.weight)
        if main_grad is None or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input_)
        local, outside = input_ - self.vocab_start_index, None
        if self.tp_group.size() > 1:
            count = self.num_embeddings_per_partition
            outside = (local < 0) | (local >= count)
            # other ranks' tokens add zeros, spread out: all to one row would wait for each other
            spread = torch.arange(local.numel(), device=local.device).remainder_(count)
            local = torch.where(outside, spread.view_as(local), local)
        rows = _Lookup.apply(self.weight, local, outside, self.tied_here)
        if self.reduce_scatter_embeddings:
            return tensor_parallel.reduce_scatter_to_sequence_parallel_region(
                rows.transpose(0, 1).contiguous(), group=self.tp_group
            )
        return tensor_parallel.reduce_from_tensor_model_parallel_region(rows, group=self.tp_group)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, index, outside, tied_here: bool):
        ctx.save_for_backward(index, outside)
        ctx.weight, ctx.tied_here = weight, tied_here
        rows = torch.nn.functional.embedding(index, weight)
        return rows if outside is None else rows.masked_fill_(outside.unsqueeze(-1), 0.0)

    @staticmethod
    def backward(ctx, gradient):
        index, outside = ctx.saved_tensors
        main_grad = required(main_grad_of(ctx.weight), "main_grad")
        rows = gradient.to(main_grad.dtype)
        if outside is not None:
            rows = rows.masked_fill(outside.unsqueeze(-1), 0.0)
        # in the order of the tokens, whatever the device; without the check of bounds, for which
        # the host would wait
        torch.ops.aten._index_put_impl_(
            main_grad, [index.reshape(-1)], rows.reshape(-1, rows.shape[-1]), True, True
        )
        return None if ctx.tied_here else gradient_placeholder(ctx.weight), None, None, None
