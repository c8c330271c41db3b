"""Tokens and model FLOPs of one phase: closed formulas over the lengths of its sequences.

Model FLOPs are what the mathematics asks for, whatever a machine does for it: 2 per weight of a
matrix product and token forward, twice that backward (Kaplan et al., arXiv 2001.08361, section 2.1;
PaLM, arXiv 2204.02311, appendix B). Packed sequences do not see each other, so attention counts by
sequence. Logits count where a token is predicted. Not in them: padding, what is computed again
(activations, attention scores, an engine's evicted caches), norms and other element-wise work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from megaladder.model.hf_config import ModelShape


@dataclass(frozen=True, slots=True)
class Work:
    """What a phase cost; costs of several are added with `+`.

    tokens: that went through the model, padding left out. prompt_tokens: of these, those of prompts,
    once for completions that share one (0 where nothing is generated). flops: model FLOPs. cpu_s:
    CPU seconds of grading.
    """

    tokens: int = 0
    prompt_tokens: int = 0
    flops: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def with_backward(self) -> Work:
        """A forward pass's work, with backward: three times its FLOPs."""
        return replace(self, flops=3 * self.flops)


def total_work(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


def forward_work(shape: ModelShape, lengths: np.ndarray, head_tokens: int) -> Work:
    """A forward pass over whole sequences.

    lengths: int [S], tokens of each sequence; head_tokens: how many of them have their logits
    computed (those with loss).
    """
    tokens = int(lengths.sum())
    return Work(tokens, flops=shape.forward_flops(tokens, seen_tokens(shape, lengths), head_tokens))


def update_work(forward: Work, shape: ModelShape, head_tokens: int, *, frozen: bool) -> Work:
    """Forward and backward of an update.

    frozen: weights have no gradient, so one product of each is not formed; adapters beside them,
    whose products are a hundredth of theirs, are not counted. head_tokens: as `forward_work`.
    """
    if not frozen:
        return forward.with_backward
    left_out = shape.forward_flops(forward.tokens, 0, head_tokens)
    return replace(forward, flops=3 * forward.flops - left_out)


def generation_work(shape: ModelShape, prompt_tokens: int, responses: Sequence[int]) -> Work:
    """Completions of one prompt, which is computed once for all of them (prefix caching).

    responses: tokens of each completion. The last token of a completion is sampled, not fed back,
    so `P + R` tokens cost P + R − 1 positions and R rows of logits.
    """
    answers = np.array([length for length in responses if length > 0], dtype=np.int64)
    prompt = np.array([prompt_tokens])
    seen = seen_tokens(shape, prompt_tokens + answers - 1)
    seen -= (len(answers) - 1) * seen_tokens(shape, prompt)
    generated = int(answers.sum())
    positions = prompt_tokens + generated - len(answers)
    return Work(
        prompt_tokens + generated, prompt_tokens, shape.forward_flops(positions, seen, generated)
    )


def seen_tokens(shape: ModelShape, lengths: np.ndarray) -> float:
    """Pairs of a token and one that its attention sees, over sequences and layers.

    A token sees itself and those before it in its sequence: n(n + 1)/2 pairs of n tokens; in a
    sliding layer of window w at most w a token.
    """
    lengths, sliding = lengths.astype(np.int64), sum(shape.sliding_layers)
    pairs = (shape.num_layers - sliding) * _triangle(lengths)
    if shape.sliding_window is not None and sliding:
        inside = np.minimum(lengths, shape.sliding_window)
        pairs += sliding * (_triangle(inside) + float(((lengths - inside) * inside).sum()))
    return pairs


def _triangle(lengths: np.ndarray) -> float:
    return float((lengths * (lengths + 1) // 2).sum())
