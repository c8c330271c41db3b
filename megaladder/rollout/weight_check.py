"""Checks that the engine holds what the trainer sent.

Checksums of every tensor, compared under the engine's own names.

vLLM fuses q, k, v and gate, up, splits them over its tensor-parallel workers, pads the vocabulary
to a multiple of 64, and says sha256 of what each worker holds (`compute_weight_checksums`). Here
the same digests are made from the trainer's tensors; of experts our worker extension says them,
taken while they were loaded. On a CPU vLLM repacks its linear layers and drops the originals: those
tensors are not visible and are counted so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from megaladder.model.hf_config import ModelShape

VOCABULARY_PADDING = 64
EMPTY = hashlib.sha256(b"").hexdigest()  # what is left of a tensor that the engine has repacked
_WORKER = re.compile(r"dp\d+:pp\d+:pcp\d+:tp(\d+):")
_FUSED = (
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("gate_up_proj", ("w1", "w3")),  # InternLM2
)
_ROW_PARALLEL = ("o_proj.weight", "down_proj.weight", ".wo.weight", ".w2.weight")
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "tok_embeddings.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How the engine's tensors compare with the trainer's.

    equal, differing: engine tensors (worker and name); unseen: tensors of the trainer that no
    engine tensor shows.
    """

    equal: tuple[str, ...]
    differing: tuple[str, ...]
    unseen: tuple[str, ...]

    def __str__(self) -> str:
        hidden = f", {len(self.unseen)} not visible in the engine" if self.unseen else ""
        return (
            f"{len(self.differing)} of {len(self.equal) + len(self.differing)} tensors"
            f" differ{hidden}"
        )


def compare_checksums(
    tensors: Iterable[tuple[str, torch.Tensor]],
    workers: Sequence[dict[str, str]],
    shape: ModelShape,
    tp: int,
) -> CheckResult:
    """`tensors`: the trainer's, by Hugging Face name; `workers`: what each of the engine's says.

    Holds one fused group at a time."""
    said = [
        (int(found[1]), name, digest)
        for worker in workers
        for name, digest in worker.items()
        if (found := _WORKER.match(name)) is not None
    ]
    by_name: dict[str, list[tuple[int, str, str]]] = {}
    for rank, name, digest in said:
        by_name.setdefault(_WORKER.sub("", name), []).append((rank, name, digest))
    equal: list[str] = []
    differing: list[str] = []
    unseen: list[str] = []
    for engine_name, hf_names, parts in _fused_groups(tensors, shape):
        entries = [entry for entry in by_name.get(engine_name, []) if entry[2] != EMPTY]
        if not entries:
            unseen += hf_names
        for rank, name, digest in entries:
            ours = tensor_digest(_worker_part(engine_name, parts, shape, rank, tp))
            (equal if ours == digest else differing).append(name)
    return CheckResult(tuple(equal), tuple(differing), tuple(unseen))


def _fused_groups(
    tensors: Iterable[tuple[str, torch.Tensor]], shape: ModelShape
) -> Iterable[tuple[str, list[str], list[torch.Tensor]]]:
    """(engine name, Hugging Face names, tensors) of what the engine fuses.

    q, k, v and gate, up together, and apart where the trainer has them in one."""
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors:
        found = next(
            (
                (fused, members, member)
                for fused, members in _FUSED
                for member in members
                if f".{member}." in name
            ),
            None,
        )
        if found is None:
            yield name, [name], _parts(name, tensor, shape)
            continue
        fused, members, member = found
        engine_name = name.replace(f".{member}.", f".{fused}.")
        group = waiting.setdefault(engine_name, {})
        group[member] = tensor.clone()
        if len(group) == len(members):
            del waiting[engine_name]
            yield (
                engine_name,
                [engine_name.replace(f".{fused}.", f".{m}.") for m in members],
                [group[m] for m in members],
            )
    assert not waiting, f"incomplete fused tensors: {sorted(waiting)}"


def _parts(name: str, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """q, k, v or gate, up of a tensor that holds them all; else the tensor alone."""
    groups, size = shape.num_query_groups, shape.head_dim
    keys = groups * size
    if ".qkv_proj." in name:
        return list(tensor.split([tensor.shape[0] - 2 * keys, keys, keys]))
    if ".wqkv." in name:  # group after group: its queries, its key, its value
        per_group = tensor.view(groups, -1, size, tensor.shape[1])
        parts = per_group.split([per_group.shape[1] - 2, 1, 1], dim=1)
        return [part.flatten(0, 2) for part in parts]
    return list(tensor.chunk(2)) if ".gate_up_proj." in name else [tensor]


def _worker_part(
    name: str, parts: list[torch.Tensor], shape: ModelShape, rank: int, tp: int
) -> torch.Tensor:
    """What worker `rank` of `tp` holds of one engine tensor."""
    if len(parts) == 3:
        query, *key_value = parts
        own = [_heads(part, shape.num_query_groups, rank, tp) for part in key_value]
        return torch.cat([_heads(query, shape.num_attention_heads, rank, tp), *own])
    if len(parts) == 2:
        return torch.cat([part.chunk(tp, 0)[rank] for part in parts])
    (tensor,) = parts
    if name.endswith(_VOCABULARY):
        padding = -tensor.shape[0] % VOCABULARY_PADDING
        return torch.cat([tensor, tensor.new_zeros(padding, tensor.shape[1])]).chunk(tp, 0)[rank]
    if name.endswith(_ROW_PARALLEL):
        return tensor.chunk(tp, 1)[rank]
    return tensor


def _heads(tensor: torch.Tensor, num_heads: int, rank: int, tp: int) -> torch.Tensor:
    """A worker's heads; key/value heads are repeated where there are more workers than heads."""
    if num_heads >= tp:
        return tensor.chunk(tp, 0)[rank]
    return tensor.chunk(num_heads, 0)[rank * num_heads // tp]


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes, row after row."""
    return hashlib.sha256(
        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    ).hexdigest()
