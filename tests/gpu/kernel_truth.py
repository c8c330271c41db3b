"""float64 truth for the loss head at real sizes, in blocks of rows; losses written from the papers'
formulas, not from the product's code.

MEGALADDER_GPU_TESTS_TINY=1 runs the same code at toy sizes on a CPU, to check the checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megaladder.kernels.linear_loss import TokenTerms

TINY = os.environ.get("MEGALADDER_GPU_TESTS_TINY") == "1"
DEVICE = torch.device("cpu" if TINY else "cuda")
TYPE = torch.float32 if TINY else torch.bfloat16
VOCAB = 503 if TINY else 151_936
HIDDEN = 64 if TINY else 5120
TOKENS = 48 if TINY else 8192
FEW = 32 if TINY else 1024

Terms = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(log-probs, entropies, which tokens) → each token's loss."""


def normal(*size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    return torch.randn(*size, device=DEVICE, generator=generator)


@dataclass
class Inputs:
    """hidden [T, H], weight [V, H] with logits of standard deviation 3, targets [T], which tokens
    take part, per-token constants."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    constants: dict[str, torch.Tensor]

    @classmethod
    def make(cls, tokens: int, *, seed: int = 1, dtype: torch.dtype = TYPE, hidden: int = HIDDEN):
        x = normal(tokens, hidden, seed=seed).to(dtype).requires_grad_()
        weight = torch.empty(VOCAB, hidden, device=DEVICE, dtype=dtype)
        for number, part in enumerate(weight.split(16_384)):
            part.copy_(normal(*part.shape, seed=seed + 1000 + number) * (3.0 / hidden**0.5))
        generator = torch.Generator(device=DEVICE).manual_seed(seed + 7)
        targets = torch.randint(0, VOCAB, (tokens,), device=DEVICE, generator=generator)
        index = torch.arange(tokens, device=DEVICE)
        noise = [normal(tokens, seed=seed + 50 + number) for number in range(5)]
        constants = {
            "advantages": noise[0],
            "weights": noise[1].abs() + 0.1,
            "drift": 0.2 * noise[2],
            "importance": (0.3 * noise[3]).exp().clamp(max=2.0),
            "gap": 0.3 * noise[4],
        }
        return cls(x, weight.requires_grad_(), targets, index[index % 5 != 0], constants)

    def with_main_grad(self) -> torch.Tensor:
        """As under Megatron's DistributedDataParallel."""
        self.weight.main_grad = torch.zeros_like(self.weight, dtype=torch.float32)
        self.weight.grad_added_to_main_grad = False
        return self.weight


def loss_terms(kind: str, inputs: Inputs, old: torch.Tensor) -> Terms:
    """Per-token losses around the true log-probs `old` [T]."""
    c = {name: values.double() for name, values in inputs.constants.items()}

    def terms(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if kind == "sft":
            return -logp
        a, w, u = (c[n][rows].to(logp.dtype) for n in ("advantages", "weights", "importance"))
        before = (old + c["drift"])[rows].to(logp.dtype)
        ratio = (logp - before).exp()
        if kind == "reinforce":
            return -u * a * logp * w
        if kind == "cispo":
            return -u * a * ratio.clamp(0.8, 1.28).detach() * logp * w
        loss = -u * torch.minimum(a * ratio, a * ratio.clamp(0.8, 1.28))
        if kind == "everything":
            reference = (old + c["gap"])[rows].to(logp.dtype)
            loss = torch.where(a < 0, torch.minimum(loss, -3.0 * u * a), loss)
            loss = loss + 0.05 * ((reference - logp).exp() - (reference - logp) - 1.0)
            loss = loss - 0.01 * entropy
        return loss * w

    return terms


def token_loss(terms: Terms, rows: torch.Tensor):
    """The same loss for the head."""

    def call(logp: torch.Tensor, entropy: torch.Tensor | None, block: slice) -> TokenTerms:
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            bend = torch.zeros_like(logp) if entropy is None else entropy.detach()
            bend.requires_grad_()
            loss = terms(leaf, bend, rows[block]).sum()
            grads = torch.autograd.grad(loss, (leaf, bend), allow_unused=True)
        return TokenTerms(loss.detach(), grads[0], None if entropy is None else grads[1])

    return call


@dataclass
class Truth:
    """float64: logp, entropy of the rows; the loss; its gradients. plain_error: largest log-prob
    error of a float32-summed product with a float64 softmax."""

    logp: torch.Tensor
    entropy: torch.Tensor
    loss: float
    d_hidden: torch.Tensor
    d_weight: torch.Tensor
    plain_error: float


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float32 sums of 16-bit products."""
    if x.dtype == torch.float32 or x.device.type == "cpu":
        return x.float() @ weight.float().t()
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def truth_of(inputs: Inputs, make_terms: Callable[[torch.Tensor], Terms], n_valid=None) -> Truth:
    """Value by log_softmax, gradient by the chain rule, 256 rows at a time."""
    n = VOCAB if n_valid is None else n_valid
    x, w = inputs.hidden.detach(), inputs.weight.detach()[:n]
    wide = w.double()
    logp = torch.zeros(len(x), dtype=torch.float64, device=DEVICE)
    entropy, worst = torch.zeros_like(logp), 0.0
    for rows in inputs.rows.split(256):
        at = inputs.targets[rows].unsqueeze(1)
        logs = torch.log_softmax(x[rows].double() @ wide.t(), -1)
        plain = torch.log_softmax(product(x[rows], w).double(), -1).gather(1, at).squeeze(1)
        logp[rows] = logs.gather(1, at).squeeze(1)
        entropy[rows] = -(logs.exp() * logs).sum(1)
        worst = max(worst, float((plain - logp[rows]).abs().max()))
    terms = make_terms(logp)
    found = Truth(
        logp[inputs.rows],
        entropy[inputs.rows],
        0.0,
        torch.zeros(x.shape, dtype=torch.float64, device=DEVICE),
        torch.zeros(inputs.weight.shape, dtype=torch.float64, device=DEVICE),
        worst,
    )
    for rows in inputs.rows.split(256):
        leaves = [values[rows].detach().requires_grad_() for values in (logp, entropy)]
        loss = terms(*leaves, rows).sum()
        g, h = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.loss += float(loss.detach())
        logs = torch.log_softmax(x[rows].double() @ wide.t(), -1)
        d = -g.unsqueeze(1) * logs.exp()
        if h is not None:
            d -= (h.unsqueeze(1) * logs.exp()) * (logs + entropy[rows].unsqueeze(1))
        d.scatter_add_(1, inputs.targets[rows].unsqueeze(1), g.unsqueeze(1))
        found.d_hidden[rows] = d @ wide
        found.d_weight[:n] += d.t() @ x[rows].double()
    return found


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float((found.double() - truth).norm() / truth.norm())


def bias(found: torch.Tensor, truth: torch.Tensor) -> float:
    """<found, truth>/<truth, truth> − 1: a systematic factor, which rounding does not make."""
    return float((found.double() * truth).sum() / truth.square().sum() - 1.0)
