"""What eight bits would do to the loss head's two gradient products, emulated on a CPU.

d logits are formed in float64 and rounded as each recipe would, weights and hidden states too; the
products themselves are float64. So these are errors of the formats alone, the least that a kernel
could have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

TOKENS, HIDDEN, VOCAB = 256, 64, 151_936
_BLOCK = 128

Rounding = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """Relative errors (Frobenius) and biases <found, truth>/<truth, truth> − 1 of both products.

    lost: share of the probability mass besides the target's that is rounded to 0."""

    logits: str
    recipe: str
    d_hidden: float
    d_hidden_bias: float
    d_weight: float
    d_weight_bias: float
    lost: float


def _scaled(values: torch.Tensor, dtype: torch.dtype, top: torch.Tensor) -> torch.Tensor:
    """Rounded to `dtype` after scaling `top`, the largest, to the largest of the type."""
    scale = torch.finfo(dtype).max / top.clamp(min=1e-300)
    return (values * scale).float().to(dtype).double() / scale


def _tensorwise(dtype: torch.dtype) -> Rounding:
    return lambda values: _scaled(values, dtype, values.abs().max())


def _blockwise(dtype: torch.dtype, dim: int) -> Rounding:
    """A scale for each 128 values along the product's inner dimension."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        lines = values.movedim(dim, -1)
        blocks = lines.unflatten(-1, (-1, _BLOCK))
        found = _scaled(blocks, dtype, blocks.abs().amax(-1, keepdim=True))
        return found.flatten(-2).movedim(-1, dim)

    return rounded


def _bf16(values: torch.Tensor) -> torch.Tensor:
    return values.float().bfloat16().double()


_RECIPES: dict[str, tuple[Rounding, Rounding, Rounding]] = {
    # of d logits in d hidden (inner: columns), of d logits in d weight (inner: rows), of the others
    "bf16, as built": (_bf16, _bf16, _bf16),
    "tensorwise, e5m2 gradients": (
        *[_tensorwise(torch.float8_e5m2)] * 2,
        _tensorwise(torch.float8_e4m3fn),
    ),
    "tensorwise, e4m3 gradients": (
        *[_tensorwise(torch.float8_e4m3fn)] * 2,
        _tensorwise(torch.float8_e4m3fn),
    ),
    "blocks of 128, e4m3": (
        _blockwise(torch.float8_e4m3fn, 1),
        _blockwise(torch.float8_e4m3fn, 0),
        _tensorwise(torch.float8_e4m3fn),
    ),
}


def _case(trained: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden, weight, d logits of Σ −logp / tokens, whether a column is a row's target; float64.

    Logits of standard deviation 3; trained: targets have a probability of 0.5 to 0.9."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=random, dtype=torch.float64)
    weight = torch.randn(VOCAB, HIDDEN, generator=random, dtype=torch.float64) * 3 / HIDDEN**0.5
    logits = hidden @ weight.t()
    targets = torch.randint(0, VOCAB, (TOKENS, 1), generator=random)
    if trained:
        wanted = 0.5 + 0.4 * torch.rand(TOKENS, 1, generator=random, dtype=torch.float64)
        others = logits.scatter(1, targets, -torch.inf).logsumexp(1, keepdim=True)
        logits.scatter_(1, targets, others + (wanted / (1 - wanted)).log())
    gradient = logits.softmax(1)
    at_target = torch.zeros_like(gradient, dtype=torch.bool).scatter_(1, targets, True)
    gradient[at_target] -= 1.0
    return hidden, weight, gradient / TOKENS, at_target


def rows() -> list[Row]:
    """Every recipe on random and on trained-like logits."""
    found = []
    for trained in (False, True):
        hidden, weight, gradient, at_target = _case(trained)
        true_hidden, true_weight = gradient @ weight, gradient.t() @ hidden
        for recipe, (inner, outer, other) in _RECIPES.items():
            rounded = inner(gradient)
            pairs = (
                (rounded @ other(weight), true_hidden),
                (outer(gradient).t() @ other(hidden), true_weight),
            )
            errors = [value for pair in pairs for value in _compared(*pair)]
            gone = gradient[(rounded == 0) & ~at_target].sum() / gradient[~at_target].sum()
            name = "trained-like" if trained else "random"
            found.append(Row(name, recipe, *errors, float(gone)))
    return found


def _compared(found: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    error = (found - truth).norm() / truth.norm()
    return float(error), float((found * truth).sum() / truth.square().sum() - 1.0)


def table() -> str:
    """Markdown."""
    lines = [
        "| logits | recipe | d hidden: error, bias | d weight: error, bias | mass rounded to 0 |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        hidden = f"{row.d_hidden:.2%}, {row.d_hidden_bias:+.2%}"
        weight = f"{row.d_weight:.2%}, {row.d_weight_bias:+.2%}"
        lines.append(f"| {row.logits} | {row.recipe} | {hidden} | {weight} | {row.lost:.1%} |")
    return "\n".join(lines)
