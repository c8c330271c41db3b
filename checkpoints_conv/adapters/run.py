"""The adapters of one training run.

Attached, filled, checked against the model that they belong to, exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megaladder import parallel
from megaladder.checkpoint import store
from megaladder.checkpoints_conv.adapters.peft_folder import PeftReader, write_peft
from megaladder.checkpoints_conv.adapters.tensors import (
    AdapterTable,
    FreshAdapters,
    iter_adapters,
    load_adapters,
)
from megaladder.checkpoints_conv.live_model import in_gathering_replica
from megaladder.config.sections.run import RunConfig
from megaladder.errors import CheckpointError, MegaladderError
from megaladder.model.hf_config import ModelShape
from megaladder.model.lora.adapter import attach
from megaladder.model.lora.peft_config import lora_spec, peft_config
from megaladder.model.lora.spec import num_adapter_parameters
from megaladder.run_dir import RunDir, model_fingerprint


def adapter_folder(run: RunDir, step: int) -> Path:
    """Where a run exports the adapters of a step."""
    return run.path / "adapters" / f"step_{step}"


class RunAdapters:
    """What a run with adapters adds to its trainer. Every method is collective."""

    def __init__(self, config: RunConfig, folder: Path, shape: ModelShape, chunks: Sequence[Any]):
        """Attaches adapters to bare `chunks`, new ones or those of `lora.start`."""
        self.spec = lora_spec(config.lora, shape)
        self.table = AdapterTable(shape, self.spec)
        self._base = {
            "base_model": config.model.path,
            "base_folder": str(folder.resolve()),
            "base_fingerprint": model_fingerprint(str(folder), None),
        }
        attach(chunks, shape, self.spec)
        if config.lora.start is None:
            load_adapters(chunks, self.table, FreshAdapters(self.table, config.train.seed))
        else:
            load_adapters(chunks, self.table, PeftReader(Path(config.lora.start), self.table))

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint says of its adapters: their configuration and the model's identity."""
        return {"adapter": self.config, **self._base}

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        return peft_config(self.spec, str(self._base["base_model"]))

    def check_base(self, checkpoint: Path) -> None:
        """Raises CheckpointError where a checkpoint's adapters belong to other weights."""
        saved = store.read_trainer(checkpoint)
        was, now = saved.get("base_fingerprint"), self._base["base_fingerprint"]
        if was != now:
            raise CheckpointError(
                f"{checkpoint}: its adapters belong to a model with fingerprint {was}, model.path"
                f" {self._base['base_model']} now has {now}: the folder has changed; fix: bring"
                " the weights back that the run started from"
            )

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Of all adapters, in this type."""
        return num_adapter_parameters(self.table.shape, self.spec) * dtype.itemsize

    def export(
        self,
        chunks: Sequence[Any],
        out: Path,
        *,
        writers: Sequence[int] = (0,),
        digests: bool = True,
    ) -> None:
        """Writes a PEFT folder: the ranks in `writers`, each to its own `out`. Every rank calls it.

        A failure of a writer is raised on every rank.
        """
        writes = parallel.rank() in writers
        failure: MegaladderError | None = None
        if in_gathering_replica(writers):
            found = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in iter_adapters(chunks, self.table)
                if writes
            }
            if writes:
                try:
                    write_peft(out, found, self.config, digests=digests)
                except MegaladderError as error:
                    failure = error
        failures = parallel.all_gather(failure)
        if any(failures):
            raise next(found for found in failures if found is not None)
