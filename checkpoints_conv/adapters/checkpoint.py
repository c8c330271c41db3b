"""A run's checkpoint that holds adapters, outside of the run.

As a PEFT folder, or merged with the model that they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megaladder.checkpoint import store
from megaladder.checkpoints_conv.adapters.merge import merge_into
from megaladder.checkpoints_conv.adapters.peft_folder import write_peft
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader
from megaladder.checkpoints_conv.families import listed
from megaladder.checkpoints_conv.writer import WriteOptions, prepare_folder
from megaladder.errors import ConversionError
from megaladder.model.hf_config import model_shape, read_config_json
from megaladder.model.lora.peft_config import CONFIG, WEIGHTS, spec_from_config
from megaladder.run_dir import model_fingerprint


def holds_adapters(folder: Path) -> bool:
    """Whether a committed checkpoint is one of adapters alone."""
    return (folder / store.TRAINER).is_file() and "adapter" in store.read_trainer(folder)


class AdapterCheckpoint:
    """The adapters of a checkpoint by PEFT's names; a `families.TensorSource`.

    Raises:
        CheckpointError: not committed, or damaged. ConversionError: other tensors than it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = DistCheckpointReader(folder)
        self.saved = store.read_trainer(folder)
        spec = spec_from_config(self.saved["adapter"], folder / store.TRAINER)
        shape = model_shape(read_config_json(folder / "hf"))
        self.table = AdapterTable(shape, spec)
        self.shapes = self.table.shapes
        stored = {name: tuple(found.size) for name, found in self._reader.tensors.items()}
        wrong = [name for name, size in self.shapes.items() if stored.get(name) != size]
        if wrong:
            raise ConversionError(
                f"{folder} does not hold the adapters that its {store.TRAINER} says"
                + listed("missing or of another shape", wrong)
            )

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `start:stop`."""
        shape = self.shapes[name]
        whole = self._reader.read(name, shape)
        return whole.narrow(dim, start, (shape[dim] if stop is None else stop) - start)

    def base_folder(self) -> Path:
        """The model that the adapters belong to, found where the run had it.

        Raises:
            ConversionError: it is not there any more, or holds other weights.
        """
        folder = Path(self.saved["base_folder"])
        found = model_fingerprint(str(folder), None) if folder.is_dir() else "nothing"
        if found != self.saved["base_fingerprint"]:
            raise ConversionError(
                f"{self.folder}: its adapters belong to {folder} with fingerprint"
                f" {self.saved['base_fingerprint']}, found {found}; fix: `megaladder convert"
                f" adapter --megatron {self.folder} --out ADAPTER`, then `megaladder convert merge"
                " --hf MODEL --adapter ADAPTER --out DIR`"
            )
        return folder


def adapter_to_peft(checkpoint: Path, out: Path, *, force: bool = False) -> int:
    """Writes a checkpoint's adapters as a PEFT folder; returns their bytes."""
    adapters = AdapterCheckpoint(checkpoint)
    tensors = {name: adapters.read(name) for name in adapters.shapes}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    prepare_folder(out, num_bytes, force=force, is_model_file=_is_adapter_file)
    write_peft(out, tensors, adapters.saved["adapter"])
    return num_bytes


def _is_adapter_file(path: Path) -> bool:
    return path.name in (CONFIG, WEIGHTS)


def merge_checkpoint(
    checkpoint: Path, out: Path, options: WriteOptions, on_bytes: Callable[[int], None]
) -> int:
    """Writes the model that a checkpoint's adapters belong to, merged; returns its bytes.

    Tokenizer and configuration are those that the run left."""
    adapters = AdapterCheckpoint(checkpoint)
    base = adapters.base_folder()
    return merge_into(base, adapters.table, adapters, out, options, on_bytes, checkpoint / "hf")
