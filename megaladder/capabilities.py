"""What a machine can do, and what FP8 and parallel layouts ask of token counts.

Facts that configuration, platform, model and data share. No torch, no configuration.

`Machine` is what `platform.machine()` found out; `fp8_problem` says why a recipe cannot run there,
for the start of a run, `check` and `doctor` alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

# Tokens (and features) that a quantised operand's dimensions are multiples of. Transformer Engine
# 2.12: `assert_dim_for_fp8_exec`,
# `Float8BlockQuantizer.is_quantizable` (blocks of 128), `MXFP8Quantizer.is_quantizable` (blocks of
# 32).
FP8_BLOCK = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}
# megatron-core 0.16.1, fp8_utils.get_fp8_recipe
_MIN_TE = {"delayed": (1, 0), "mxfp8": (2, 1), "tensorwise": (2, 2), "blockwise": (2, 3)}


class ExpertSizes(Protocol):
    """The sizes of a mixture of experts that a layout has to divide."""

    @property
    def num_experts(self) -> int: ...

    @property
    def ffn_hidden_size(self) -> int: ...

    @property
    def bias(self) -> bool: ...

    @property
    def sparse_layers(self) -> tuple[bool, ...]: ...


class LayerSizes(Protocol):
    """The sizes of a model that a layout has to divide."""

    @property
    def num_layers(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def feed_forward_sizes(self) -> dict[str, int]: ...

    @property
    def num_attention_heads(self) -> int: ...

    @property
    def num_query_groups(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def portable_only(self) -> str | None: ...

    @property
    def sliding_window(self) -> int | None: ...

    @property
    def longest_sequence(self) -> int | None: ...

    @property
    def moe(self) -> ExpertSizes | None: ...


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process computes on.

    Versions are (major, minor); `te_problem`: why Transformer Engine cannot be used, None if it
    can."""

    has_cuda: bool = False
    device: str = "CPU"
    capability: tuple[int, int] | None = None
    cuda: tuple[int, int] | None = None
    te: tuple[int, int] | None = None
    te_problem: str | None = "Transformer Engine is not installed"


def fp8_format(recipe: str, chosen: str) -> str:
    """What `gpu.fp8_format` means for a recipe, in megatron-core's words."""
    if chosen != "auto":
        return chosen
    return "e4m3" if recipe in ("blockwise", "mxfp8") else "hybrid"


def token_alignment(*, tp: int, cp: int, sequence_parallel: bool, fp8: str | None) -> int:
    """What the tokens of a micro-batch must be a multiple of.

    Every rank computes on T/cp tokens; under sequence parallelism it holds T/(cp·tp) of them, and
    Transformer Engine quantises that part before it gathers it. So blocks multiply with cp·tp: a
    common multiple of 128 and tp would leave parts that cannot be quantised.
    """
    shards = cp * (tp if sequence_parallel else 1)
    block = FP8_BLOCK[fp8] if fp8 else 1
    return math.lcm(shards * block, sequence_alignment(cp))


def sequence_alignment(cp: int) -> int:
    """What the tokens of each sequence must be a multiple of.

    Under context parallelism a rank gets chunk r and chunk 2·cp − 1 − r."""
    return 2 * cp if cp > 1 else 1


def fp8_problem(recipe: str, machine: Machine) -> str | None:
    """Why Transformer Engine's FP8 recipe cannot run there; None if it can."""
    if not machine.has_cuda:
        return (
            "it needs Transformer Engine on a CUDA device with FP8 units (H100, H200 or later);"
            " this machine has no CUDA"
        )
    if machine.te_problem is not None:
        return f"it needs Transformer Engine: {machine.te_problem}"
    capability = machine.capability or (0, 0)
    where = f"{machine.device} has compute capability {capability[0]}.{capability[1]}"
    if capability < (8, 9):
        return f"{where}; FP8 units start at 8.9 (Ada, Hopper)"
    if recipe == "mxfp8" and capability < (10, 0):
        return (
            f"{where}; MXFP8's blocks of 32 with shared exponents are scaled inside Blackwell's"
            " tensor cores (10.0), Hopper has none"
        )
    if recipe == "mxfp8" and capability >= (12, 0):
        return f"{where}; Transformer Engine has no MXFP8 products for all layouts on 12.x yet"
    if recipe == "blockwise" and capability < (9, 0):
        return f"{where}; block-scaled products start at 9.0 (Hopper)"
    if recipe == "blockwise" and machine.cuda is not None and machine.cuda < (12, 9):
        return (
            f"torch's CUDA is {machine.cuda[0]}.{machine.cuda[1]}; cuBLAS has block-scaled products"
            " from 12.9 on"
        )
    if machine.te is not None and machine.te < _MIN_TE[recipe]:
        return (
            f"Transformer Engine is {version_text(machine.te)}; this recipe needs"
            f" {version_text(_MIN_TE[recipe])}"
        )
    return None


def fp8_fix(recipe: str, machine: Machine) -> str:
    """The way out for a recipe that cannot run there."""
    runs = [
        other
        for other in ("tensorwise", "blockwise", "delayed")
        if other != recipe and fp8_problem(other, machine) is None
    ]
    return f"train.fp8 {' or '.join(runs)}" if runs else "train.fp8 null, or run it there"


def version_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def long_sequence_problem(kind: str, limit: int, length: int) -> str:
    """What to tell of a sequence for which `kind` would change the angles."""
    return (
        f"rope_scaling.type {kind}: the angles of sequences longer than max_position_embeddings"
        f" {limit} depend on their length, which is not supported, and a sequence may have {length}"
        f" tokens; fix: data.seq_length {limit} or less, or another rope_scaling (yarn)"
    )
