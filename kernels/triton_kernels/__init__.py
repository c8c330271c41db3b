"""The Triton kernels behind `ops`.

Same functions and arguments as `reference`, on CUDA tensors (or any, under TRITON_INTERPRET=1).

Loaded at the first launch only. Kernel sources: one per file; shipped launch configurations:
`configs.py`.
"""

from megaladder.kernels.triton_kernels.ce_backward import ce_backward
from megaladder.kernels.triton_kernels.ce_stats import ce_stats
from megaladder.kernels.triton_kernels.merge_stats import merge_stats

__all__ = ["ce_backward", "ce_stats", "merge_stats"]
