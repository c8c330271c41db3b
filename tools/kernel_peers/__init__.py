"""Parts of `tools/bench_kernels.py`: contenders, the memory table, the checks that need a GPU."""
