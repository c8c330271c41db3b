"""Launch configurations, chosen offline: no autotuner touches kernels that write over their input.

`tools/kernel_report.py` compiles exactly these for sm_90a; a test holds them to no spills, 128-bit
loads and an instruction budget.
"""

import contextlib
from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class RowConfig:
    """A one-program-per-row kernel: `lanes` lanes, on a GPU one per thread, each with four 128-bit
    loads per iteration."""

    num_warps: int
    lanes: int


@dataclass(frozen=True, slots=True)
class MatmulConfig:
    """Tiles of `linear_stats`; `tiles_per_split` column tiles make one split: fixed, so that a
    row's result never depends on the batch."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int
    tiles_per_split: int
    group: int  # row tiles that walk over the same columns together and share them in L2


STATS = RowConfig(num_warps=8, lanes=256)
BACKWARD = RowConfig(num_warps=8, lanes=256)
POLICY = RowConfig(num_warps=8, lanes=256)
COUNT = RowConfig(num_warps=8, lanes=256)
MERGE_BLOCK = 256
LINEAR = MatmulConfig(
    rows=128, columns=256, inner=64, num_warps=8, num_stages=3, tiles_per_split=8, group=16
)
# small blocks make the interpreter's tests cross many block edges
INTERPRETED = RowConfig(num_warps=1, lanes=8)
INTERPRETED_LINEAR = MatmulConfig(
    rows=16, columns=32, inner=16, num_warps=1, num_stages=1, tiles_per_split=2, group=2
)


def interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def row_config(shipped: RowConfig) -> RowConfig:
    return INTERPRETED if interpreted() else shipped


def vector(dtype: torch.dtype) -> int:
    """Elements of a 128-bit load."""
    return 16 // dtype.itemsize


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]


def device_guard(tensor: torch.Tensor):
    """Launches go to the tensor's device whatever the current one is; nothing to do on a CPU."""
    return (
        torch.cuda.device(tensor.device)
        if tensor.device.type == "cuda"
        else contextlib.nullcontext()
    )


def check_rows(*tensors: torch.Tensor) -> None:
    """Rows must be contiguous: the kernels step over columns one by one."""
    for tensor in tensors:
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"logits with column stride {tensor.stride(-1)}: expected 1; fix: .contiguous(), or a layout [T, V] with V last"
            )
