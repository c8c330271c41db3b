"""Rotary frequencies with the same bits as those of transformers.

Computed with the same torch operations."""

from __future__ import annotations

import math

import torch

from megaladder.model.families.rope import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """The rotary frequencies in radians per position, float32 [rotary_dim / 2] on the CPU.

    For a sequence no longer than `rope.longest_sequence()`."""
    dim = rope.rotary_dim(head_dim)
    inv_freq = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    return {"linear": _linear, "llama3": _llama3, "yarn": _yarn}.get(rope.kind, _plain)(
        inv_freq, rope
    )


def _plain(inv_freq: torch.Tensor, _rope: RopeConfig) -> torch.Tensor:
    return inv_freq


def _linear(inv_freq: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    return inv_freq / rope.factor


def _yarn(inv_freq: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """YaRN's frequencies (arXiv 2309.00071 §3.2).

    Low ones divided by `factor`, high ones kept, a linear ramp between."""
    dim = 2 * len(inv_freq)
    low, high = (_yarn_dimension(rope, dim, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    pos_freqs = rope.theta ** (torch.arange(0, dim, 2).float() / dim)
    kept = 1 - ramp
    return 1.0 / (rope.factor * pos_freqs) * (1 - kept) + 1.0 / pos_freqs * kept


def _yarn_dimension(rope: RopeConfig, dim: int, turns: float) -> float:
    """The dimension whose wave turns `turns` times over the positions of pre-training."""
    waves = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return dim * math.log(waves) / (2 * math.log(rope.theta))


def _llama3(inv_freq: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1's scaling.

    Long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    low_wavelength = rope.original_max_position_embeddings / rope.low_freq_factor
    high_wavelength = rope.original_max_position_embeddings / rope.high_freq_factor
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > low_wavelength, inv_freq / rope.factor, inv_freq)
    smooth = (rope.original_max_position_embeddings / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = ~(wavelength < high_wavelength) & ~(wavelength > low_wavelength)
    return torch.where(between, blended, scaled)
