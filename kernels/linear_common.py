"""What the two linear heads share: active rows, aligned products, blocks of logits, d weight.

T = tokens, n = active rows, H = hidden size, V = stored local columns, n_valid = those that count,
C = rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megaladder.kernels import ops
from megaladder.kernels.reference import RowSpec, accumulator
from megaladder.kernels.shard import PendingGrad, TensorParallel, gather_tokens, is_split
from megaladder.kernels.vocab_logprob import ENTROPY_MODES

# Elements. Triton uses 128-bit loads only where the row stride is a known multiple of it, and
# cuBLAS falls to kernels five times slower where a product's dimension is no multiple of 8.
ALIGNED = 16
_ROW_TILE = 128  # rows of a block come in multiples of a matrix-product tile
# Rows from which a longer block gains nothing: d weight in blocks of 4,096 rows costs what one
# product over all rows does (measured), and a block twice as long halves the passes over main_grad.
MOST_ROWS = 8192
LEAST_SCRATCH = 1200 << 20  # bytes, where the ranks of a split vocabulary have agreed on nothing
_CPU_SCRATCH = 8 << 20  # bytes; a block that stays near the caches


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """Keyword options of `linear_logprob` and `linear_loss`.

    entropy: "none", "value" or "grad". scratch_bytes: memory for logits; None: on CUDA half of
    what is free (1200 MiB where the vocabulary is split: all ranks must cut their rows alike, so a
    caller that knows more says so), 8 MiB on the CPU. sequence_parallel: `hidden` is this rank's
    [T/R, H]; it is gathered inside and d hidden is reduce-scattered. bf16_logits: logits are
    rounded once to the weight's 16-bit type, which costs 0.003 nats of log-prob in the mean (0.044
    at most, measured at logits of standard deviation 3) and saves half of their memory and 40 % of
    their traffic; default: the float32 sums of the product as they are.
    """

    ignore_index: int = -100
    entropy: str = "none"
    scratch_bytes: int | None = None
    sequence_parallel: bool = False
    bf16_logits: bool = False

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
    spec: RowSpec  # for the n active rows
    rows: torch.Tensor | None  # int64 [n], which of the T tokens they are; None: all
    num_tokens: int  # T
    tp: TensorParallel | None
    options: LinearOptions

    @property
    def sequence_parallel(self) -> bool:
        return self.options.sequence_parallel and is_split(self.tp)

    def active(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, H] in the weight's type, gathered over the ranks under sequence parallelism."""
        full = gather_tokens(hidden, self.tp) if self.sequence_parallel else hidden
        full = full.to(self.weight.dtype)
        return full if self.rows is None else full.index_select(0, self.rows)

    def everywhere(self, values: torch.Tensor) -> torch.Tensor:
        """[n, …] laid back on all T tokens; zeros elsewhere."""
        if self.rows is None:
            return values
        return values.new_zeros((self.num_tokens, *values.shape[1:])).index_copy_(
            0, self.rows, values
        )

    def reduce(self, d_rows: torch.Tensor) -> PendingGrad:
        """Starts the reduction of d hidden [n, H] over the ranks."""
        return PendingGrad(
            self.everywhere(d_rows), self.tp, sequence_parallel=self.sequence_parallel
        )


def padded(columns: int) -> int:
    return math.ceil(max(1, columns) / ALIGNED) * ALIGNED


class Columns:
    """The weight as the products take it.

    Every dimension of the three products must be a multiple of 16: the columns up to the last such
    multiple are taken as they lie, the up to 15 others as a block of 16 with rows of zeros. Columns
    from n_valid on are never read, whatever they hold.
    """

    def __init__(self, weight: torch.Tensor, n_valid: int) -> None:
        self.whole, self.n_valid, self.width = (
            n_valid // ALIGNED * ALIGNED,
            n_valid,
            padded(n_valid),
        )
        self.main = weight[: self.whole]
        self.tail: torch.Tensor | None = None
        if self.whole < n_valid:
            self.tail = weight.new_zeros((ALIGNED, weight.shape[1]))
            self.tail[: n_valid - self.whole] = weight[self.whole : n_valid]

    def logits(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x [C, H] · weightᵀ into out [C, width], summed in the type of `out` where it is wider."""
        ops.wide_mm(x, self.main.t(), out[:, : self.whole])
        if self.tail is not None:
            ops.wide_mm(x, self.tail.t(), out[:, self.whole :])
        return out

    def d_hidden(self, d_logits: torch.Tensor, out: torch.Tensor) -> None:
        """d_logits [C, width] · weight into out [C, H]; the sum of both parts is rounded once."""
        if self.tail is None:
            torch.mm(d_logits[:, : self.whole], self.main, out=out)
        else:
            torch.mm(d_logits[:, self.whole :], self.tail, out=out)
            out.addmm_(d_logits[:, : self.whole], self.main)


class Blocks:
    """Walks over the active rows; makes their logits and knows where their gradient goes.

    The gradient is written over the logits: in their own type, or in 16 bits over float32 ones,
    where a row of gradient is the first half of the row's bytes.
    """

    def __init__(self, head: Head, x: torch.Tensor) -> None:
        self.columns = Columns(head.weight, head.spec.n_valid)
        narrow = head.options.bf16_logits and x.dtype in (torch.bfloat16, torch.float16)
        self.logits_dtype = x.dtype if narrow else accumulator(x.dtype)
        self._x = x
        self._buffer: torch.Tensor | None = None
        # equal on all ranks: they exchange statistics block by block
        widest = (0 if head.tp is None else head.tp.widest) or head.weight.shape[0]
        self.row_bytes = padded(widest) * self.logits_dtype.itemsize
        self.budget = scratch_bytes(head, x.device)
        self.step = block_rows(x.shape[0], self.budget // self.row_bytes)

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, self._x.shape[0], self.step):
            yield slice(start, min(self._x.shape[0], start + self.step))

    def room(self) -> int:
        """How many blocks' logits the scratch holds beside the one that is overwritten."""
        fit = self.budget // (self.step * self.row_bytes)
        return fit if fit * self.step >= self._x.shape[0] else max(0, fit - 1)

    def new_buffer(self) -> torch.Tensor:
        """[step, width], for logits that outlive the next block."""
        return self._x.new_empty((self.step, self.columns.width), dtype=self.logits_dtype)

    def logits(self, block: slice, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """[C, width]; without `buffer` valid until the next call.

        Columns from n_valid on hold anything."""
        if buffer is None:
            if self._buffer is None:
                self._buffer = self.new_buffer()
            buffer = self._buffer
        return self.columns.logits(self._x[block], buffer[: block.stop - block.start])

    def gradient_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Where d logits of a block go: [C, width] in the weight's type, over the logits."""
        if logits.dtype == self._x.dtype:
            return logits
        return logits.view(self._x.dtype)[:, : self.columns.width]


def scratch_bytes(head: Head, device: torch.device) -> int:
    """Bytes that a call may spend on logits; see `LinearOptions`."""
    if head.options.scratch_bytes is not None:
        return head.options.scratch_bytes
    if device.type != "cuda":
        return _CPU_SCRATCH
    return LEAST_SCRATCH if is_split(head.tp) else max(LEAST_SCRATCH, free_bytes(device) // 2)


def free_bytes(device: torch.device) -> int:
    """What the device has left, blocks that the allocator holds unused included; no waiting.

    0 while a CUDA graph is captured, which allows no such question. A compiled graph keeps what it
    found when it was made.
    """
    if torch.cuda.is_current_stream_capturing():
        return 0
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


if torch.cuda.is_available():  # asks torch's compiler, whose import takes seconds
    free_bytes = torch.compiler.assume_constant_result(free_bytes)


def block_rows(num_rows: int, fit: int) -> int:
    """Rows of a block: as few blocks as `fit` rows at once allow, all but the last equally long."""
    most = min(max(1, fit), MOST_ROWS)
    if num_rows <= most:
        return max(1, num_rows)
    tile = _ROW_TILE if most >= _ROW_TILE else 1
    blocks = math.ceil(num_rows / (most // tile * tile))
    even = math.ceil(num_rows / blocks)
    return math.ceil(even / tile) * tile


class WeightGrad:
    """d weight in float32 (float64 for float64 weights), one pass over it for each block of rows.

    Where the weight carries a float32 `main_grad` (megatron's DistributedDataParallel), products
    are added there and the autograd gradient is the placeholder that megatron-core's own layers
    return, with `grad_added_to_main_grad` set (`LinearWithGradAccumulationAndAsyncCommunication` in
    megatron-core's tensor_parallel/layers.py). Elsewhere they wait in a buffer.
    """

    def __init__(self, weight: torch.Tensor, columns: Columns) -> None:
        self._weight, self._columns = weight, columns
        self.main = main_grad_of(weight)
        self._sum = (
            self.main
            if self.main is not None
            else torch.zeros_like(weight, dtype=accumulator(weight.dtype))
        )

    def add(self, d_logits: torch.Tensor, x: torch.Tensor) -> None:
        """Adds d_logits [C, width]ᵀ · x [C, H]."""
        whole, n_valid = self._columns.whole, self._columns.n_valid
        ops.add_product(self._sum[:whole], d_logits[:, :whole], x)
        if whole < n_valid:
            tail = self._sum.new_zeros((ALIGNED, x.shape[1]))
            ops.add_product(tail, d_logits[:, whole:], x)
            self._sum[whole:n_valid].add_(tail[: n_valid - whole])

    def result(self, factor: torch.Tensor | None = None) -> torch.Tensor | None:
        """The gradient to hand to autograd, times `factor` (0-d).

        With `main_grad` the placeholder."""
        if self.main is not None:
            return gradient_placeholder(self._weight)
        full = self._sum if factor is None else self._sum.mul_(factor.to(self._sum.dtype))
        return full.to(self._weight.dtype)


def gradient_placeholder(weight: torch.Tensor) -> torch.Tensor | None:
    """What autograd gets for a weight whose gradient is in `main_grad` already."""
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    make = torch.zeros if getattr(weight, "zero_out_wgrad", False) else torch.empty
    return make(weight.shape, dtype=weight.dtype, device=weight.device)


def main_grad_of(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight's float32 gradient buffer, if sums may go straight into it."""
    main = getattr(weight, "main_grad", None)
    usable = (
        main is not None
        and main.dtype == torch.float32
        and main.shape == weight.shape
        and not hasattr(weight, "__fsdp_param__")
    )
    return main if usable else None


def make_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    spec: RowSpec,
    rows: torch.Tensor | None,
    tp: TensorParallel | None,
    options: LinearOptions,
) -> Head:
    """Checks shapes against each other; `spec` is that of all T tokens.

    Raises:
        ValueError: shapes that do not fit, with the values.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden [T, H] and weight [V, H], found {tuple(hidden.shape)} and"
            f" {tuple(weight.shape)}"
        )
    shards = tp.size if tp is not None and options.sequence_parallel else 1
    num_tokens = spec.targets.shape[0]
    if hidden.shape[0] * shards != num_tokens:
        raise ValueError(
            f"{hidden.shape[0]} hidden rows on {shards} sequence-parallel ranks do not make"
            f" {num_tokens} targets; fix: pass all T targets on every rank, hidden [T/{shards}, H]"
        )
    if not 0 <= spec.n_valid <= weight.shape[0]:
        raise ValueError(
            f"n_valid={spec.n_valid} is outside 0 … {weight.shape[0]}, the local columns"
        )
    active = spec if rows is None else spec.rows(rows)
    return Head(weight, active, rows, num_tokens, tp, options)
