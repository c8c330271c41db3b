"""Where a model comes from.

A local folder, a hub repository at a pinned revision, or a seed (random initialisation)."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import torch

from megaladder import parallel
from megaladder.config.rules.model import require_model
from megaladder.data.sources.hub import hub_failures, limit_patience
from megaladder.errors import ModelError
from megaladder.model.hf_config import ModelShape


def model_folder(path: str, revision: str | None) -> Path:
    """The local folder of a model.

    A hub id is downloaded by rank 0 (others wait) at exactly `revision`. Collective.

    Raises:
        ModelError: no such folder, no revision given for a hub id, one given for a folder, or the
        hub cannot be reached; says the command that fetches it.
    """
    require_model(path, revision)
    if Path(path).is_dir():
        return Path(path)
    assert revision is not None  # a hub id without one is refused
    with parallel.main_rank_first():
        return Path(_download(path, revision))


def _download(repository: str, revision: str) -> str:
    from huggingface_hub import snapshot_download

    limit_patience()
    try:
        return snapshot_download(
            repository,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"],
        )
    except hub_failures() as error:
        raise ModelError(
            f"{repository}@{revision}: cannot be fetched from the hub ({type(error).__name__});"
            f" fix: on a machine with network run `hf download {repository} --revision {revision}`,"
            " then set model.path to the folder"
        ) from error


class RandomTensors:
    """Stands in for an HF folder when a model starts from scratch.

    Each tensor is drawn from a seed of its own.

    The values depend on (seed, tensor name) only, so every layout starts from the same model.
    Matrices: normal with std sqrt(2 / (5·H)) (arXiv 1910.05895), output projections divided by
    sqrt(2·layers) (GPT-2); norms multiply by one; biases: zeros.
    """

    def __init__(self, shape: ModelShape, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
        self.shapes = shapes
        self.folder = f"random initialisation (seed {seed})"
        self._std = math.sqrt(2 / (5 * shape.hidden_size))
        self._output_std, self._seed = self._std / math.sqrt(2 * shape.num_layers), seed
        names = shape.family.names
        # the end of a layer's name, after its index
        self._outputs = tuple(
            re.split(r"[*@]", names[role][0])[-1]
            for role in ("attention_out", "down", "expert_down")
            if role in names
        )
        self._norm = 0.0 if shape.family.norm_offset else 1.0

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """The slice [start, stop) along `dim`; the whole tensor is drawn, then cut."""
        return self._draw(name).narrow(
            dim, start, (self.shapes[name][dim] if stop is None else stop) - start
        )

    def _draw(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.full(shape, 0.0 if name.endswith("bias") else self._norm)
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        std = self._output_std if name.endswith(self._outputs) else self._std
        return torch.randn(shape, generator=generator) * std
