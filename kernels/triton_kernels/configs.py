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
    """A one-program-per-row kernel.

    `lanes` lanes, on a GPU one per thread, each with four 128-bit loads per iteration."""

    num_warps: int
    lanes: int


# As measured on one H200 over rows of 151,936 columns, in % of copy bandwidth for 4 / 8 / 16 / 32
# warps: statistics of bfloat16 90 / 92 / 90 / 79, of float32 100 / 98 / 101 / 99; gradient of
# bfloat16 88 / 90 / 92 / 81, of float32 into bfloat16 90 / 81 / 93 / 95.
WIDE = {"stats": RowConfig(num_warps=8, lanes=256), "backward": RowConfig(num_warps=16, lanes=512)}
# A shard of the vocabulary is two or three such blocks wide, of which the last is cut: shorter
# blocks waste less of it. Chosen by arithmetic, not measured.
NARROW = RowConfig(num_warps=4, lanes=128)
NARROW_COLUMNS = 32_768
MERGE_BLOCK = 256
# small blocks make the interpreter's tests cross many block edges
INTERPRETED = RowConfig(num_warps=1, lanes=8)


def interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def row_config(kernel: str, logits: torch.Tensor) -> RowConfig:
    """By the kernel (`stats`, `backward`) and the row's width alone.

    A row's result never depends on the batch."""
    if interpreted():
        return INTERPRETED
    return NARROW if logits.shape[1] <= NARROW_COLUMNS else WIDE[kernel]


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
                f"logits with column stride {tensor.stride(-1)}: expected 1; fix: .contiguous(),"
                " or a layout [T, V] with V last"
            )
