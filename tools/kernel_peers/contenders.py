"""What `bench_kernels` compares: our loss head, its peers as installed packages, a copy and the
bare matrix products.

A contender takes `Inputs` and returns a call; a peer that is missing or cannot do a case raises,
which becomes its row's note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """What one table block measures. vocab: columns of one shard."""

    case: str
    tokens: int
    hidden: int
    vocab: int


class Inputs:
    """Tensors of a shape; weights and hidden states scaled so that logits look like a trained
    model's (standard deviation about 3)."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device=device).manual_seed(1)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, device=device, generator=generator, dtype=torch.float32)

        self.shape, self.device = shape, device
        self.hidden = normal(shape.tokens, shape.hidden).to(dtype).requires_grad_()
        self.weight = (
            (normal(shape.vocab, shape.hidden) * (3.0 / shape.hidden**0.5))
            .to(dtype)
            .requires_grad_()
        )
        self.targets = torch.randint(
            0, shape.vocab, (shape.tokens,), device=device, generator=generator
        )
        self.advantages = normal(shape.tokens)
        if "50%" in shape.case:
            self.advantages[: shape.tokens // 2] = 0.0
        self.logits = None
        if shape.case.startswith("logp"):
            self.logits = (self.hidden @ self.weight.t()).detach()
        self.old_logp = (
            self._old_logp(normal(shape.tokens) * 0.1) if shape.case.startswith("grpo") else None
        )

    def _old_logp(self, noise: torch.Tensor) -> torch.Tensor:
        """The current log-probs plus noise, as after a few off-policy steps; in blocks, so that it
        needs no full logits."""
        found = []
        with torch.no_grad():
            for x, y in zip(self.hidden.split(1024), self.targets.split(1024), strict=True):
                found.append(
                    torch.log_softmax((x @ self.weight.t()).float(), -1)
                    .gather(1, y.unsqueeze(1))
                    .squeeze(1)
                )
        return torch.cat(found) + noise

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def _torch_logp(inputs: Inputs, entropy: bool) -> torch.Tensor:
    logs = torch.log_softmax(inputs.logits.float(), -1)
    logp = logs.gather(1, inputs.targets.unsqueeze(1)).squeeze(1)
    return torch.stack([logp, -(logs.exp() * logs).sum(1)]) if entropy else logp


def step_loss(logp: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The loss of the step cases in plain PyTorch."""
    if inputs.shape.case.startswith("sft"):
        return -logp.sum()
    ratio = (logp - inputs.old_logp).clamp(-20, 20).exp()
    return -torch.minimum(
        ratio * inputs.advantages, ratio.clamp(0.8, 1.28) * inputs.advantages
    ).sum()


def _backward(loss: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    loss.backward()
    grad = inputs.hidden.grad
    inputs.clear()
    return grad


def eager(inputs: Inputs) -> Call:
    """Plain PyTorch, log_softmax in float32."""
    if inputs.logits is not None:
        return lambda: _torch_logp(inputs, "entropy" in inputs.shape.case)

    def step() -> torch.Tensor:
        logs = torch.log_softmax((inputs.hidden @ inputs.weight.t()).float(), -1)
        return _backward(
            step_loss(logs.gather(1, inputs.targets.unsqueeze(1)).squeeze(1), inputs), inputs
        )

    return step


def compiled(inputs: Inputs) -> Call:
    """The same under torch.compile."""
    if inputs.logits is not None:
        function = torch.compile(lambda: _torch_logp(inputs, "entropy" in inputs.shape.case))
        return function

    @torch.compile
    def loss() -> torch.Tensor:
        logs = torch.log_softmax((inputs.hidden @ inputs.weight.t()).float(), -1)
        return step_loss(logs.gather(1, inputs.targets.unsqueeze(1)).squeeze(1), inputs)

    return lambda: _backward(loss(), inputs)


def ours(inputs: Inputs) -> Call:
    """vocab_logprob on logits, linear_policy_loss on hidden states."""
    from megaladder.kernels.linear_policy_loss import linear_policy_loss
    from megaladder.kernels.policy_terms import PolicyInputs, PolicyLoss
    from megaladder.kernels.vocab_logprob import vocab_logprob

    if inputs.logits is not None:
        if "entropy" in inputs.shape.case:
            return lambda: torch.stack(
                vocab_logprob(inputs.logits, inputs.targets, entropy="value")[:2]
            )
        return lambda: vocab_logprob(inputs.logits, inputs.targets).logp
    sft = inputs.shape.case.startswith("sft")
    loss = PolicyLoss("sft") if sft else PolicyLoss("ppo", 0.2, 0.28)
    constants = (
        PolicyInputs()
        if sft
        else PolicyInputs(advantages=inputs.advantages, old_logp=inputs.old_logp)
    )

    def step() -> torch.Tensor:
        return _backward(
            linear_policy_loss(inputs.hidden, inputs.weight, inputs.targets, loss, constants).loss,
            inputs,
        )

    return step


def ours_two_phase(inputs: Inputs) -> Call:
    """linear_logprob and a loss in plain PyTorch; forward only, never materialised, for the
    log-prob cases."""
    from megaladder.kernels.linear_logprob import linear_logprob

    if inputs.logits is not None:
        mode = "value" if "entropy" in inputs.shape.case else "none"
        hidden, weight = inputs.hidden.detach(), inputs.weight.detach()

        def forward() -> torch.Tensor:
            out = linear_logprob(
                hidden, weight, inputs.targets, entropy=mode, never_materialise=True
            )
            return out.logp if out.entropy is None else torch.stack([out.logp, out.entropy])

        return forward
    return lambda: _backward(
        step_loss(linear_logprob(inputs.hidden, inputs.weight, inputs.targets).logp, inputs), inputs
    )


def liger(inputs: Inputs) -> Call:
    """Liger's Triton cross-entropy (forward and gradient in one) or fused linear cross-entropy."""
    from liger_kernel.transformers.functional import (
        liger_cross_entropy,
        liger_fused_linear_cross_entropy,
    )

    if inputs.logits is not None:
        raise NotImplementedError("no log-prob without gradient")
    if not inputs.shape.case.startswith("sft"):
        return lambda: _backward(
            step_loss(
                -liger_cross_entropy(
                    inputs.hidden @ inputs.weight.t(), inputs.targets, reduction="none"
                ),
                inputs,
            ),
            inputs,
        )
    return lambda: _backward(
        liger_fused_linear_cross_entropy(
            inputs.hidden, inputs.weight, inputs.targets, reduction="sum"
        ),
        inputs,
    )


def cut_cross_entropy(inputs: Inputs) -> Call:
    """cut-cross-entropy with its default filter (skips small gradients: not exact)."""
    from cut_cross_entropy import linear_cross_entropy

    if inputs.logits is not None:
        hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
        return lambda: -linear_cross_entropy(hidden, weight, inputs.targets, reduction="none")
    return lambda: _backward(
        step_loss(
            -linear_cross_entropy(inputs.hidden, inputs.weight, inputs.targets, reduction="none"),
            inputs,
        ),
        inputs,
    )


def transformer_engine(inputs: Inputs) -> Call:
    """Transformer Engine's parallel_cross_entropy on materialised logits."""
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    if inputs.logits is not None:
        raise NotImplementedError("forward computes the gradient too")

    def step() -> torch.Tensor:
        logits = (inputs.hidden @ inputs.weight.t()).unsqueeze(1)
        loss = parallel_cross_entropy(logits, inputs.targets.unsqueeze(1), 0.0, False, None)
        return _backward(step_loss(-loss.flatten(), inputs), inputs)

    return step


def megatron(inputs: Inputs) -> Call:
    """megatron-core's fused vocabulary-parallel cross-entropy on materialised logits."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    if not torch.distributed.is_initialized():
        backend = "nccl" if inputs.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(
            backend, store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    group = torch.distributed.group.WORLD
    if inputs.logits is not None:
        return lambda: (
            -fused_vocab_parallel_cross_entropy(inputs.logits.clone(), inputs.targets, group)
        )

    def step() -> torch.Tensor:
        logits = (inputs.hidden @ inputs.weight.t()).unsqueeze(1)
        loss = fused_vocab_parallel_cross_entropy(logits, inputs.targets.unsqueeze(1), group)
        return _backward(step_loss(-loss.flatten(), inputs), inputs)

    return step


def quack(inputs: Inputs) -> Call:
    """QuACK's chunked linear cross-entropy."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    if not inputs.shape.case.startswith("sft"):
        raise NotImplementedError("mean and sum only")
    return lambda: _backward(
        chunked_linear_cross_entropy(inputs.hidden, inputs.weight, inputs.targets, reduction="sum"),
        inputs,
    )


def copy_bandwidth(inputs: Inputs) -> Call:
    """Reads and writes half of the logits' bytes each: the time of one pass over bfloat16 logits at
    copy bandwidth."""
    half = inputs.shape.tokens * inputs.shape.vocab // 2
    source = torch.empty(half, dtype=torch.bfloat16, device=inputs.device)
    goal = torch.empty_like(source)
    return lambda: goal.copy_(source)


def three_products(inputs: Inputs) -> Call:
    """hidden·Wᵀ, d·W, dᵀ·hidden, nothing else."""
    x, w = inputs.hidden.detach(), inputs.weight.detach()

    def products() -> None:
        logits = x @ w.t()
        torch.mm(logits, w)
        torch.mm(logits.t(), x)

    return products


CONTENDERS: dict[str, Callable[[Inputs], Call]] = {
    "ours": ours,
    "ours, two-phase or never materialised": ours_two_phase,
    "torch eager": eager,
    "torch.compile": compiled,
    "Liger": liger,
    "cut-cross-entropy": cut_cross_entropy,
    "Transformer Engine": transformer_engine,
    "Megatron native": megatron,
    "quack": quack,
    "copy": copy_bandwidth,
    "three products": three_products,
}

STEP_BASELINE, LOGP_BASELINE = "three products", "copy"
