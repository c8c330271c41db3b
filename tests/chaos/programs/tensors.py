"""Small programs as in `small` that write tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from chaos.programs.base import Mark, Workload

from megaladder import run_dir
from megaladder.checkpoint import store
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader, DistCheckpointWriter
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions, is_exported
from megaladder.errors import MegaladderError
from megaladder.files.sums import refuse_damaged


class Export(Workload):
    """A Hugging Face folder of two shards; one that is whole is not written again, as the verbs do."""

    name = "export"

    def __init__(self) -> None:
        self._tensors = {f"w{n}": torch.full((8, 8), float(n)) for n in range(3)}

    def run(self, folder: Path, mark: Mark) -> None:
        source, hf = folder / "model", folder / "hf"
        if is_exported(hf):
            return
        run_dir.atomic_write(source / "config.json", '{"model_type": "qwen3"}')
        run_dir.atomic_write(source / "tokenizer.json", "{}")
        specs = [TensorSpec(name, (8, 8), torch.float32) for name in self._tensors]
        options = WriteOptions(max_shard_bytes=512, force=True)
        with HFWriter(hf, specs, options) as writer:
            for name, tensor in self._tensors.items():
                writer.write(name, tensor)
            writer.commit(source)
        mark("exported")

    def result(self, folder: Path) -> Any:
        return {path.name: path.read_bytes() for path in (folder / "hf").iterdir()}

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        hf = folder / "hf"
        if not is_exported(hf):
            return "it was exported, and is not whole" if "exported" in marks else None
        try:
            refuse_damaged(hf)
            with HFReader(hf) as reader:
                wrong = [
                    name
                    for name, tensor in self._tensors.items()
                    if not torch.equal(reader.read(name), tensor)
                ]
        except (MegaladderError, KeyError) as error:
            return f"looks whole to other programs: {error}"
        return f"other values in {wrong}" if wrong else None


class Conversion(Workload):
    """A Megatron folder of three tensors."""

    name = "conversion"

    def run(self, folder: Path, mark: Mark) -> None:
        out = folder / "megatron"
        if (out / store.MARKER).exists():
            store.verify(out)
            return
        store.prepare_folder(out, 1000)
        writer = DistCheckpointWriter(out, max_file_bytes=600)
        for n in range(3):
            writer.add_tensor(f"w{n}", torch.full((8, 8), float(n)))
        writer.commit({"made": "by a test"})
        mark("converted")

    def result(self, folder: Path) -> Any:
        out = folder / "megatron"
        store.verify(out)
        reader = DistCheckpointReader(out)
        values = [reader.read(f"w{n}", (8, 8))[0, 0].item() for n in range(3)]
        return sorted(path.name for path in out.iterdir()), values

    def broken_promise(self, folder: Path, marks: Sequence[str]) -> str | None:
        out = folder / "megatron"
        if not (out / store.MARKER).exists():
            return "it was converted, and is not committed" if "converted" in marks else None
        try:
            store.verify(out)
        except MegaladderError as error:
            return str(error)
        return None


WORKLOADS: dict[str, Workload] = {one.name: one for one in (Export(), Conversion())}
