"""PEFT's adapter folders: adapter_config.json and adapter_model.safetensors, read and written.

Names and fields are those of the library `peft` (tests compare with it). A tensor that is missing,
unknown or of another shape is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from megaladder.checkpoints_conv.adapters.stacked import stacked_parts
from megaladder.checkpoints_conv.adapters.tensors import AdapterTable
from megaladder.checkpoints_conv.families import listed
from megaladder.checkpoints_conv.reader import INCOMPLETE_NAME
from megaladder.checkpoints_conv.writer import room_needed
from megaladder.errors import ModelError
from megaladder.files.sums import write_sums
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.peft_config import CONFIG, WEIGHTS, read_spec
from megaladder.model.lora.spec import PREFIX
from megaladder.process.storage import fsync_folder, make_folder
from megaladder.run_dir import atomic_write, to_json


class PeftReader:
    """The tensors of a folder by PEFT's names; a `families.TensorSource`.

    Raises:
        ModelError: no or damaged weights, or other tensors than `table` names.
    """

    def __init__(self, folder: Path, table: AdapterTable) -> None:
        self.folder = folder
        try:
            self._file = safe_open(folder / WEIGHTS, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder / WEIGHTS}: missing or damaged ({error}); fix: copy the folder again"
            ) from None
        # an adapter that was saved under a name of its own has it between: lora_A.default.weight
        self._stored = {_plain_name(name): name for name in self._file.keys()}  # noqa: SIM118
        self.shapes = {
            name: tuple(self._file.get_slice(stored).get_shape())
            for name, stored in self._stored.items()
        }
        self._take_apart(table)
        self._check(table)

    def _take_apart(self, table: AdapterTable) -> None:
        """Shows each expert's tensors in the place of those that hold all of a layer."""
        self._parts = stacked_parts(self.shapes, table.shape, table.spec)
        self._at_hand: dict[str, torch.Tensor] = {}
        whole = {part.stored: self.shapes[part.stored] for part in self._parts.values()}
        for name, part in self._parts.items():
            size = whole[part.stored]
            share = (size[0] // part.num_experts, size[1])
            if part.matrix == "B":
                share = (part.rows.stop - part.rows.start, size[1] // part.num_experts)
            self.shapes[name] = share
        for name in whole:
            del self.shapes[name]

    def _check(self, table: AdapterTable) -> None:
        want = table.shapes
        missing = [name for name in want if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in want]
        wrong = [
            f"{name}: {self.shapes[name]}, expected {size}"
            for name, size in want.items()
            if name in self.shapes and self.shapes[name] != size
        ]
        if missing or unknown or wrong:
            raise ModelError(
                f"{self.folder} does not hold the adapters that its {CONFIG} says, for this"
                f" {table.family.title} model"
                + listed("missing", missing)
                + listed("unknown", unknown)
                + listed("wrong shape", wrong)
            )

    def read(
        self, name: str, dim: int = 0, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `start:stop`."""
        stop = self.shapes[name][dim] if stop is None else stop
        part = self._parts.get(name)
        if part is not None:
            return part.of(self._whole(part.stored)).narrow(dim, start, stop - start)
        window = self._file.get_slice(self._stored[name])
        return window[start:stop] if dim == 0 else window[:, start:stop]

    def _whole(self, name: str) -> torch.Tensor:
        """A stacked tensor; A and B of the experts at hand are kept, which are read one by one."""
        if name not in self._at_hand:
            if len(self._at_hand) > 1:
                self._at_hand.clear()
            self._at_hand[name] = self._file.get_tensor(self._stored[name])
        return self._at_hand[name]


def _plain_name(name: str) -> str:
    """PEFT's name of a tensor without the adapter's own: …lora_A.default.weight → …lora_A.weight."""
    front, _, rest = name.rpartition(".lora_")
    return f"{front}.lora_{rest[:1]}.weight" if name.startswith(PREFIX) and front else name


def open_peft(folder: Path, shape: ModelShape) -> tuple[AdapterTable, PeftReader]:
    """A folder's adapters for a model of this shape."""
    table = AdapterTable(shape, read_spec(folder))
    return table, PeftReader(folder, table)


def write_peft(
    out: Path, tensors: dict[str, torch.Tensor], config: Mapping[str, Any], *, digests: bool = True
) -> None:
    """Writes a folder.

    adapter_config.json, which makes it look complete to others, comes last, then the digests; a
    file `.incomplete` lies there until the end."""
    marker = out / INCOMPLETE_NAME
    with room_needed(out):
        make_folder(out)
        marker.touch()
        (out / CONFIG).unlink(missing_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        atomic_write(out / WEIGHTS, save(plain, metadata={"format": "pt"}))
        atomic_write(out / CONFIG, to_json(dict(config), indent=2) + "\n")
        if digests:
            write_sums(out, (WEIGHTS, CONFIG))
    marker.unlink()
    fsync_folder(out)
