"""What `bench_kernels` compares.

Our loss head, its peers as installed packages, a copy and the bare matrix products.

A contender takes `Inputs` and returns a call; a peer that is missing or cannot do a case raises,
which becomes its row's note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megaladder.kernels.linear_loss import TokenLoss, TokenTerms

Call = Callable[[], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """What one table block measures.

    vocab: columns of one shard that belong to the vocabulary; stored: those of the weight, padding
    included (0: the same)."""

    case: str
    tokens: int
    hidden: int
    vocab: int
    stored: int = 0


class Inputs:
    """Tensors of a shape.

    Weights and hidden states scaled so that logits look like a trained model's (standard deviation
    about 3)."""

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
        self._padded: torch.Tensor | None = None
        self.targets = torch.randint(
            0, shape.vocab, (shape.tokens,), device=device, generator=generator
        )
        self.advantages = normal(shape.tokens)
        active = torch.arange(shape.tokens, device=device)
        if "50% inactive" in shape.case:
            active = active[active % 2 == 0]
        if "20% prompt" in shape.case:
            active = active[active % 5 != 0]
        inactive = torch.ones(shape.tokens, dtype=torch.bool, device=device)
        inactive[active] = False
        self.advantages[inactive] = 0.0
        # what training knows on the host before the head runs
        self.rows = None if len(active) == shape.tokens else active
        self.logits = None
        if shape.case.startswith("logp"):
            self.logits = (self.hidden @ self.weight.t()).detach()
        self.old_logp = (
            self._old_logp(normal(shape.tokens) * 0.1) if shape.case.startswith("grpo") else None
        )

    def _old_logp(self, noise: torch.Tensor) -> torch.Tensor:
        """The current log-probs plus noise, as after a few off-policy steps.

        In blocks, so that it needs no full logits."""
        found = []
        with torch.no_grad():
            for x, y in zip(self.hidden.split(1024), self.targets.split(1024), strict=True):
                found.append(
                    torch.log_softmax((x @ self.weight.t()).float(), -1)
                    .gather(1, y.unsqueeze(1))
                    .squeeze(1)
                )
        return torch.cat(found) + noise

    def with_main_grad(self) -> torch.Tensor:
        """The weight as Megatron's DistributedDataParallel has it.

        `stored` rows, the gradient added to a float32 buffer in place."""
        if self._padded is None:
            rows = max(self.shape.stored, self.shape.vocab)
            weight = self.weight.detach().new_zeros((rows, self.shape.hidden))
            weight[: self.shape.vocab] = self.weight.detach()
            self._padded = weight.requires_grad_()
            self._padded.main_grad = torch.zeros_like(weight, dtype=torch.float32)
            self._padded.grad_added_to_main_grad = False
        return self._padded

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


def _training_step(inputs: Inputs, *, bf16_logits: bool, two_phase: bool = False) -> Call:
    """A head step as training runs it.

    Float32 `main_grad`, active rows known, and for GRPO the loss of `megaladder grpo` with its
    metrics."""
    from megaladder.kernels.linear_logprob import linear_logprob
    from megaladder.kernels.linear_loss import linear_loss

    weight, rows = inputs.with_main_grad(), inputs.rows
    terms = _cross_entropy if inputs.shape.case.startswith("sft") else _grpo_terms(inputs)
    options = {"rows": rows, "n_valid": inputs.shape.vocab, "bf16_logits": bf16_logits}

    def step() -> torch.Tensor:
        if two_phase:
            logp = linear_logprob(inputs.hidden, weight, inputs.targets, **options).logp
            loss = step_loss(logp, inputs)
        else:
            loss = linear_loss(inputs.hidden, weight, inputs.targets, terms, **options)
        grad = _backward(loss, inputs)
        weight.grad = None
        return grad

    return step


def _cross_entropy(logp: torch.Tensor, entropy: torch.Tensor | None, block: slice) -> TokenTerms:
    return TokenTerms(-logp.sum(), torch.full_like(logp, -1.0))


def _grpo_terms(inputs: Inputs) -> TokenLoss:
    """The loss of the step cases through the trainer's own function."""
    from megaladder.train.objectives.policy_loss import (
        PolicyLossInputs,
        PolicyLossOptions,
        policy_loss,
    )

    rows = torch.arange(inputs.shape.tokens, device=inputs.device)
    rows = rows if inputs.rows is None else inputs.rows
    old, advantages, ones = inputs.old_logp[rows], inputs.advantages[rows], torch.ones_like(rows)

    def terms(logp: torch.Tensor, entropy: torch.Tensor | None, block: slice) -> TokenTerms:
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            constants = (old[block], None, None, advantages[block], ones[block].to(logp.dtype))
            given = PolicyLossInputs(
                leaf, *constants, ones[block].bool(), rows[block], num_sequences=inputs.shape.tokens
            )
            loss = policy_loss(given, PolicyLossOptions(clip_high=0.28))[0]
            return TokenTerms(loss.detach(), *torch.autograd.grad(loss, leaf))

    return terms


def ours(inputs: Inputs) -> Call:
    """As training runs it by default: logits in bfloat16 for SFT, float32 for GRPO.

    Vocab_logprob on logits."""
    from megaladder.kernels.vocab_logprob import vocab_logprob

    if inputs.logits is None:
        return _training_step(inputs, bf16_logits=inputs.shape.case.startswith("sft"))
    if "entropy" in inputs.shape.case:
        return lambda: torch.stack(
            vocab_logprob(inputs.logits, inputs.targets, entropy="value")[:2]
        )
    return lambda: vocab_logprob(inputs.logits, inputs.targets).logp


def ours_other_logits(inputs: Inputs) -> Call:
    """The same with the other type of logits."""
    if inputs.logits is not None:
        raise NotImplementedError("steps only")
    return _training_step(inputs, bf16_logits=not inputs.shape.case.startswith("sft"))


def ours_two_phase(inputs: Inputs) -> Call:
    """linear_logprob, whose float32 logits are kept for the backward, and a loss in plain PyTorch.

    The path of GSPO."""
    if inputs.logits is not None:
        raise NotImplementedError("steps only")
    return _training_step(inputs, bf16_logits=False, two_phase=True)


def liger_tuned(inputs: Inputs) -> Call:
    """Liger's fused linear cross-entropy with chunks eight times its default."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if not inputs.shape.case.startswith("sft"):
        raise NotImplementedError("SFT only")
    return lambda: _backward(
        liger_fused_linear_cross_entropy(
            inputs.hidden, inputs.weight, inputs.targets, reduction="sum", chunk_mem_const=8
        ),
        inputs,
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
    """Reads and writes half of the logits' bytes each.

    The time of one pass over bfloat16 logits at copy bandwidth."""
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
    "ours, other logits": ours_other_logits,
    "ours, two-phase": ours_two_phase,
    "torch eager": eager,
    "torch.compile": compiled,
    "Liger": liger,
    "Liger chunk_mem_const 8": liger_tuned,
    "cut-cross-entropy": cut_cross_entropy,
    "Transformer Engine": transformer_engine,
    "Megatron native": megatron,
    "quack": quack,
    "copy": copy_bandwidth,
    "three products": three_products,
}

STEP_BASELINE, LOGP_BASELINE = "three products", "copy"
