"""Peak memory of one float32 SFT head step on the CPU, measured in a fresh process per cell.

Resident bytes above its inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from megaladder.tools.kernel_peers.contenders import Inputs, Shape
from megaladder.tools.kernel_peers.gpu_checks import cross_entropy

VARIANTS = ("logits + log_softmax", "vocab_logprob", "linear_logprob", "linear_loss")


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}: the memory table needs Linux")


def _inputs(tokens: int, hidden: int, vocab: int) -> Inputs:
    """The inputs of a head step with a float32 main_grad.

    As under megatron-core's DistributedDataParallel, so that d weight is no part of the comparison.
    """
    inputs = Inputs(Shape("sft step", tokens, hidden, vocab), torch.device("cpu"))
    inputs.weight.main_grad, inputs.weight.grad_added_to_main_grad = (
        torch.zeros_like(inputs.weight).fill_(0.0),
        False,
    )
    return inputs


def _step(variant: str, inputs: Inputs) -> None:
    from megaladder.kernels.linear_logprob import linear_logprob
    from megaladder.kernels.linear_loss import linear_loss
    from megaladder.kernels.vocab_logprob import vocab_logprob

    x, w, y = inputs.hidden, inputs.weight, inputs.targets
    if variant == "logits + log_softmax":
        (-torch.log_softmax(x @ w.detach().t(), -1).gather(1, y.unsqueeze(1)).sum()).backward()
    elif variant == "vocab_logprob":
        (-vocab_logprob(x @ w.detach().t(), y).logp.sum()).backward()
    elif variant == "linear_logprob":
        (-linear_logprob(x, w, y).logp.sum()).backward()
    else:
        linear_loss(x, w, y, cross_entropy).backward()


def peak_bytes_per_token(variant: str, tokens: int, hidden: int, vocab: int) -> float:
    """In this process: call it in a fresh one."""
    _step(variant, _inputs(4, hidden, 64))  # libraries allocate their own buffers at the first call
    inputs = _inputs(tokens, hidden, vocab)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _status_kib("VmRSS:")
    _step(variant, inputs)
    return (_status_kib("VmHWM:") - before) * 1024 / tokens


def memory_table(token_counts: list[int], hidden: int, vocab: int) -> str:
    """Markdown."""
    columns = " | ".join(f"T={tokens}" for tokens in token_counts)
    lines = [
        f"| bytes per token, V={vocab}, H={hidden}, float32 | {columns} |",
        "|---|" + "---|" * len(token_counts),
    ]
    for variant in VARIANTS:
        cells = []
        for tokens in token_counts:
            child = ["--memory-child", variant, str(tokens), str(hidden), str(vocab)]
            run = [sys.executable, "-m", "megaladder.tools.bench_kernels", *child]
            done = subprocess.run(run, check=True, capture_output=True, text=True)
            cells.append(f"{float(done.stdout.strip().splitlines()[-1]):,.0f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
