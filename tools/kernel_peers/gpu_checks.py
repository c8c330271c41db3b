"""What only a GPU can show: rows beyond 2^31 elements, determinism, CUDA graphs, torch.compile.

Each check raises when it fails."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megaladder.kernels.linear_logprob import linear_logprob
from megaladder.kernels.linear_loss import TokenTerms, linear_loss
from megaladder.kernels.vocab_logprob import vocab_logprob

V = 151_936


def _head(tokens: int, hidden: int = 2048) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, device="cuda").bfloat16().requires_grad_()
    w = (torch.randn(V, hidden, device="cuda") * (3.0 / hidden**0.5)).bfloat16().requires_grad_()
    return x, w, torch.randint(0, V, (tokens,), device="cuda")


def cross_entropy(logp: torch.Tensor, entropy: torch.Tensor | None, block: slice) -> TokenTerms:
    return TokenTerms(-logp.sum(), torch.full_like(logp, -1.0))


def beyond_two_gigaelements() -> str:
    """16,384 rows of 151,936 bfloat16 logits.

    The last rows equal the same rows alone, values and gradients, bit for bit."""
    tokens = 16_384
    logits = torch.empty(tokens, V, device="cuda", dtype=torch.bfloat16)
    for block in logits.split(2048):
        block.normal_(std=3.0)
    targets = torch.randint(0, V, (tokens,), device="cuda")
    tail = logits[-64:].clone().requires_grad_()
    logits.requires_grad_()
    vocab_logprob(logits * 1, targets).logp.sum().backward()
    out = vocab_logprob(tail * 1, targets[-64:])
    out.logp.sum().backward()
    assert torch.equal(logits.grad[-64:], tail.grad), (
        "gradients of rows beyond 2^31 elements differ"
    )
    return f"{tokens * V:,} elements, last 64 rows bitwise equal to the same rows alone"


def determinism() -> str:
    """Ten runs, bitwise equal loss and gradients."""
    x, w, y = _head(4096)
    first = None
    for _ in range(10):
        x.grad = w.grad = None
        loss = linear_loss(x, w, y, cross_entropy)
        loss.backward()
        now = (loss.detach().clone(), x.grad.clone(), w.grad.clone())
        assert first is None or all(torch.equal(a, b) for a, b in zip(first, now, strict=True)), (
            "runs differ"
        )
        first = first or now
    return "10 runs bitwise equal"


def cuda_graph() -> str:
    """linear_logprob, forward and backward."""
    x, w, y = _head(2048)

    def step() -> torch.Tensor:
        out = linear_logprob(x, w, y).logp
        return torch.autograd.grad(out.sum(), x)[0]

    expected = step()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected), "replay differs from the eager run"
    return "captured and replayed, bitwise equal"


def compile_fullgraph() -> str:
    """torch.compile(fullgraph=True) of both differentiable heads agrees with eager."""
    x, w, y = _head(1024)
    heads: dict[str, Callable[[], torch.Tensor]] = {
        "vocab_logprob": lambda: vocab_logprob(x @ w.t(), y).logp.sum(),
        "linear_logprob": lambda: linear_logprob(x, w, y).logp.sum(),
    }
    for name, head in heads.items():
        torch.testing.assert_close(
            torch.compile(head, fullgraph=True)(),
            head(),
            rtol=1e-4,
            atol=1e-2,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    return ", ".join(heads)


CHECKS = (beyond_two_gigaelements, determinism, cuda_graph, compile_fullgraph)
