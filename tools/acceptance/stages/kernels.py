"""Correctness of the loss kernels, then their table.

Against float64, with the special checks and the table of tools/bench_kernels.py."""

from __future__ import annotations

import csv
import sys
from typing import Any

import torch

from megaladder import platform
from megaladder.tools.acceptance.context import ROOT, Context

_BENCH = [sys.executable, str(ROOT / "tools" / "bench_kernels.py")]


def run(context: Context) -> dict[str, Any]:
    return _checks(context) if context.stage == "kernel_checks" else _table(context)


def _checks(context: Context) -> dict[str, Any]:
    tokens, hidden, vocab = (64, 32, 503) if context.tiny else (1024, 5120, 151_936)
    dtype = torch.bfloat16 if context.on_cuda else torch.float32
    figures: dict[str, Any] = {
        "against_fp64": _against_fp64(tokens, hidden, vocab, dtype),
        "tokens": tokens,
        "hidden": hidden,
        "vocab": vocab,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if context.on_cuda:
        log = context.run("kernel_checks", [*_BENCH, "--checks"])
        figures["checks"] = log.read_text(encoding="utf-8").splitlines()
    return figures


def _against_fp64(tokens: int, hidden: int, vocab: int, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of log-prob, d hidden and d weight against float64.

    Of the kernel that this device runs, on the same rounded inputs."""
    from megaladder.kernels.linear_logprob import linear_logprob

    device = platform.device()
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.randn(tokens, hidden, device=device, generator=generator).to(dtype).requires_grad_()
    weight = (
        (torch.randn(vocab, hidden, device=device, generator=generator) / hidden**0.5)
        .to(dtype)
        .requires_grad_()
    )
    labels = torch.randint(vocab, (tokens,), device=device, generator=generator)
    upstream = torch.randn(tokens, device=device, generator=generator)
    out = linear_logprob(x, weight, labels)
    (out.logp * upstream).sum().backward()
    rows = min(tokens, 128)  # float64 logits of a few rows at a time
    found: dict[str, float] = {}
    d_weight = torch.zeros_like(weight, dtype=torch.float64)
    logp_error = hidden_error = 0.0
    for begin in range(0, tokens, rows):
        x64 = x[begin : begin + rows].detach().double().requires_grad_()
        w64 = weight.detach().double().requires_grad_()
        truth = (
            torch.log_softmax(x64 @ w64.t(), -1)
            .gather(1, labels[begin : begin + rows, None])
            .squeeze(1)
        )
        (truth * upstream[begin : begin + rows].double()).sum().backward()
        logp_error = max(
            logp_error,
            float(
                (out.logp[begin : begin + rows].double() - truth).abs().max() / truth.abs().max()
            ),
        )
        hidden_error = max(hidden_error, _relative(x.grad[begin : begin + rows], x64.grad))
        d_weight += w64.grad
    found |= {
        "logprob": logp_error,
        "d_hidden": hidden_error,
        "d_weight": _relative(weight.grad, d_weight),
    }
    return found


def _relative(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def _table(context: Context) -> dict[str, Any]:
    path, page = context.work / "bench_kernels.csv", context.work / "bench_kernels.md"
    sizes = [
        "--head",
        "--rounds",
        "7",
        "--budget-s",
        str(int(min(context.seconds_left() - 30, 400))),
    ]
    if context.tiny:
        sizes = [
            "--tokens",
            "64",
            "--hidden",
            "64",
            "--vocab",
            "1000",
            "--rounds",
            "2",
            "--shards",
            "1",
            "--budget-s",
            "60",
        ]
    context.run(
        "kernel_table",
        [*_BENCH, "--device", context.device, "--csv", str(path), "--markdown", str(page), *sizes],
    )
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {"rows": rows, **goal_figures(rows)}


def goal_figures(rows: list[dict[str, str]]) -> dict[str, float]:
    """The head's goals from the table's rows.

    Steps over the bare products of their own loop, an odd vocabulary over the aligned one, row
    kernels as a share of the copy. What a run had no time for is absent."""
    widest = max((int(row["vocab"]) for row in rows), default=0)
    ours = {_cell(row, widest): row for row in rows if row["contender"] == "ours" and row["ratio"]}
    wanted = {name: ours[cell] for name, cell in _CELLS.items() if cell in ours}
    figures = {name: float(row["ratio"]) for name, row in wanted.items()}
    dense, inactive, odd = (
        float(wanted[name]["median_ms"]) if name in wanted else None
        for name in ("grpo_ratio", "grpo_inactive_ratio", "sft_odd_vocabulary_ratio")
    )
    if dense and inactive:
        figures["grpo_inactive_over_dense"] = inactive / dense
    if odd and "sft_ratio" in wanted:
        figures["odd_over_aligned_vocabulary"] = odd / float(wanted["sft_ratio"]["median_ms"])
    if "row_kernels_tp8" in figures:
        figures["row_kernels_tp8"] = 1 / figures["row_kernels_tp8"]
    return figures


def _cell(row: dict[str, str], widest: int) -> tuple[str, bool, str]:
    """Case, the full number of tokens or fewer, and which vocabulary."""
    vocab, stored = int(row["vocab"]), int(row["stored"])
    width = "odd" if stored > vocab else "whole" if vocab == widest else "shard"
    return row["case"], int(row["tokens"]) >= 8192, width


_CELLS = {
    "sft_ratio": ("sft step", True, "whole"),
    "grpo_ratio": ("grpo step", True, "whole"),
    "grpo_inactive_ratio": ("grpo step 50% inactive, 20% prompt", True, "whole"),
    "sft_tp8_ratio": ("sft step", False, "shard"),
    "sft_odd_vocabulary_ratio": ("sft step", True, "odd"),
    "row_kernels_tp8": ("logp", True, "shard"),
}
