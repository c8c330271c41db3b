"""What the two linear heads share: chunks of logits under a scratch budget, row compaction, d
weight, d hidden.

T = tokens, H = hidden size, V = stored local columns, n_valid = those that count (products are only
formed for these), C = rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megaladder.kernels import ops
from megaladder.kernels.reference import RowSpec, accumulator
from megaladder.kernels.shard import TensorParallel, gather_tokens, is_split
from megaladder.kernels.vocab_logprob import ENTROPY_MODES

# elements; Triton uses 128-bit loads only when the row stride is a known multiple of it
_STRIDE = 16
_ROW_GROUP = 128  # chunk rows come in multiples of a matrix-product tile
# bytes; on a CPU the chunk should stay near its caches
_DEFAULT_SCRATCH = {"cuda": 1200 << 20, "cpu": 8 << 20}


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """Keyword options of `linear_logprob` and `linear_policy_loss`.

    entropy: "none", "value" or "grad"; `linear_policy_loss` knows itself whether its loss needs a
    gradient. scratch_bytes: memory for a chunk of logits (and their gradient where its type
    differs); None: 1200 MiB on CUDA, 8 MiB on the CPU. sequence_parallel: `hidden` is this rank's
    [T/R, H]; it is gathered inside and d hidden is reduce-scattered. compact_rows: leave out
    ignored rows in the forward and zero-gradient rows in the backward; exact, but counting them
    makes a GPU wait
        for the host once or twice per call. False: no waiting, fit for CUDA graphs.
    bf16_logits: round the logits to the weight's 16-bit type (to mirror an engine that does);
    default are float32 sums as they are. never_materialise: the forward of `linear_logprob` runs in
    the `linear_stats` kernel: no logits at all, same result for any batch.
    """

    ignore_index: int = -100
    entropy: str = "none"
    scratch_bytes: int | None = None
    sequence_parallel: bool = False
    compact_rows: bool = True
    bf16_logits: bool = False
    never_materialise: bool = False

    def __post_init__(self) -> None:
        if self.entropy not in ENTROPY_MODES:
            raise ValueError(
                f"entropy={self.entropy!r}: expected one of {', '.join(ENTROPY_MODES)}"
            )
        if self.scratch_bytes is not None and self.scratch_bytes <= 0:
            raise ValueError(
                f"scratch_bytes={self.scratch_bytes}: expected a positive number of bytes"
            )


@dataclass(frozen=True, slots=True)
class Head:
    """One call's fixed surroundings."""

    weight: torch.Tensor  # [V, H]
    spec: RowSpec  # for all T tokens
    tp: TensorParallel | None
    options: LinearOptions

    @property
    def sequence_parallel(self) -> bool:
        return self.options.sequence_parallel and is_split(self.tp)

    def all_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, H] in the weight's type, gathered under sequence parallelism."""
        full = gather_tokens(hidden, self.tp) if self.sequence_parallel else hidden
        return full.to(self.weight.dtype)

    def kept_rows(self) -> torch.Tensor | None:
        """Indices of tokens with a target; None means all."""
        return self._compact(self.spec.targets != self.spec.ignore_index)

    def _compact(self, keep: torch.Tensor) -> torch.Tensor | None:
        if not self.options.compact_rows:
            return None
        index = keep.nonzero().squeeze(1)
        return None if index.numel() == keep.numel() else index

    def active_rows(
        self, d_logp: torch.Tensor, d_entropy: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Indices of rows through which a gradient flows; None means all."""
        return self._compact(d_logp != 0 if d_entropy is None else (d_logp != 0) | (d_entropy != 0))


def _padded(columns: int) -> int:
    return -(-max(1, columns) // _STRIDE) * _STRIDE


class Chunks:
    """Walks over selected tokens; owns the logits buffer, whose row stride is padded to 16
    elements."""

    def __init__(self, head: Head, full: torch.Tensor, rows: torch.Tensor | None) -> None:
        self._full, self._rows, self._columns = full, rows, head.weight[: head.spec.n_valid]
        self.num_rows = full.shape[0] if rows is None else rows.numel()
        narrow = head.options.bf16_logits and full.dtype in (torch.bfloat16, torch.float16)
        self.logits_dtype = full.dtype if narrow else accumulator(full.dtype)
        self.grad_dtype = full.dtype
        self._width = _padded(head.spec.n_valid)
        # equal on all ranks: they gather chunk by chunk
        widest = (0 if head.tp is None else head.tp.widest) or head.weight.shape[0]
        row_bytes = _padded(widest) * (
            self.logits_dtype.itemsize
            + (0 if self.grad_dtype == self.logits_dtype else self.grad_dtype.itemsize)
        )
        budget = head.options.scratch_bytes or _DEFAULT_SCRATCH.get(
            full.device.type, _DEFAULT_SCRATCH["cuda"]
        )
        fit = max(1, budget // row_bytes)
        self.step = min(
            max(1, self.num_rows), fit if fit < _ROW_GROUP else fit // _ROW_GROUP * _ROW_GROUP
        )
        self._logits_buffer: torch.Tensor | None = None
        self._grad_buffer: torch.Tensor | None = None
        self._wide_columns: torch.Tensor | None = None

    def __iter__(self):
        """Yields (position slice among the selected, token index slice or tensor)."""
        for start in range(0, self.num_rows, self.step):
            block = slice(start, min(self.num_rows, start + self.step))
            yield block, block if self._rows is None else self._rows[block]

    def hidden(self, tokens: torch.Tensor | slice) -> torch.Tensor:
        """[C, H]."""
        return self._full[tokens]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[C, n_valid], valid until the next call."""
        if self._logits_buffer is None:
            self._logits_buffer = hidden.new_empty(
                (self.step, self._width), dtype=self.logits_dtype
            )
        out = self._logits_buffer[: hidden.shape[0], : self._columns.shape[0]]
        if hidden.dtype != out.dtype and hidden.device.type != "cuda":
            if self._wide_columns is None:  # 16-bit weights on a CPU: widened once per call
                self._wide_columns = self._columns.to(out.dtype)
            return ops.wide_mm(hidden.to(out.dtype), self._wide_columns.t(), out)
        return ops.wide_mm(hidden, self._columns.t(), out)

    def gradient_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Where d logits of a chunk go: over the logits, or into a buffer of the weight's type."""
        if self.grad_dtype == self.logits_dtype:
            return logits
        if self._grad_buffer is None:
            self._grad_buffer = logits.new_empty((self.step, self._width), dtype=self.grad_dtype)
        return self._grad_buffer[: logits.shape[0], : logits.shape[1]]


class WeightGrad:
    """d weight in float32 (float64 for float64 weights).

    Where the weight carries a float32 `main_grad` (megatron's DistributedDataParallel), sums go
    there and the autograd gradient is the placeholder that megatron-core's own layers return, with
    `grad_added_to_main_grad` set: see `LinearWithGradAccumulationAndAsyncCommunication` in
    megatron-core's tensor_parallel/layers.py.
    """

    def __init__(self, weight: torch.Tensor, n_valid: int, *, direct: bool) -> None:
        self._weight, self._n_valid = weight, n_valid
        self._main = self.main_grad_of(weight)
        self._direct = direct and self._main is not None
        if self._direct:
            self._sum = self._main[:n_valid]
        else:
            self._sum = torch.zeros(
                (n_valid, weight.shape[1]), dtype=accumulator(weight.dtype), device=weight.device
            )

    @staticmethod
    def main_grad_of(weight: torch.Tensor) -> torch.Tensor | None:
        main = getattr(weight, "main_grad", None)
        usable = (
            main is not None
            and main.dtype == torch.float32
            and main.shape == weight.shape
            and not hasattr(weight, "__fsdp_param__")
        )
        return main if usable else None

    def add(self, d_logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Adds d_logits [C, n_valid]ᵀ · hidden [C, H]."""
        if d_logits.dtype == self._sum.dtype:
            self._sum.addmm_(d_logits.t(), hidden)
        elif d_logits.device.type == "cuda":
            torch.addmm(self._sum, d_logits.t(), hidden, out_dtype=self._sum.dtype, out=self._sum)
        else:
            self._sum.addmm_(d_logits.t().to(self._sum.dtype), hidden.to(self._sum.dtype))

    def result(self, factor: torch.Tensor | None = None) -> torch.Tensor | None:
        """The gradient to hand to autograd, times `factor` (0-d). With `main_grad`: adds what is
        not there yet; the placeholder."""
        if self._main is None:
            full = self._sum if factor is None else self._sum.mul_(factor)
            if self._n_valid < self._weight.shape[0]:
                full = torch.cat(
                    [full, full.new_zeros(self._weight.shape[0] - self._n_valid, full.shape[1])]
                )
            return full.to(self._weight.dtype)
        if not self._direct:
            one = torch.ones((), dtype=self._sum.dtype, device=self._sum.device)
            self._main[: self._n_valid].addcmul_(
                self._sum, one if factor is None else factor.to(self._sum.dtype)
            )
        return self._placeholder()

    def _placeholder(self) -> torch.Tensor | None:
        weight = self._weight
        if not hasattr(weight, "grad_added_to_main_grad"):
            return None
        weight.grad_added_to_main_grad = True
        make = torch.zeros if getattr(weight, "zero_out_wgrad", False) else torch.empty
        return make(weight.shape, dtype=weight.dtype, device=weight.device)


def token_grad(like: torch.Tensor, some_rows_only: bool) -> torch.Tensor:
    """[T, H] for d hidden: zeros where rows are left out."""
    return torch.zeros_like(like) if some_rows_only else torch.empty_like(like)
