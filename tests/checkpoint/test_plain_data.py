"""A checkpoint from a stranger runs nothing: every pickle in it is read with an allow-list."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder import cli
from megaladder.checkpoint import plain_data, store, writers
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader
from megaladder.errors import CheckpointError

VALUES = torch.arange(6, dtype=torch.float32).reshape(2, 3)


class Touch:
    """What runs a command when it is unpickled as it is."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _in_one_rank(function, *args) -> int:
    """In a fork, with process groups for one rank."""

    def run() -> int:
        from megaladder import parallel

        with parallel.session(parallel.Layout()):
            return function(*args) or 0

    return run_in_fork(run)


def _save(folder: Path, attacks: bool) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    folder.mkdir()
    rng = Touch(folder.parent / "ran") if attacks else {"torch": torch.get_rng_state()}
    weight = dist_checkpointing.ShardedTensor.from_rank_offsets("weight", VALUES.clone())
    state = {"weight": weight, "rng": ShardedObject("rng", rng, (1,), (0,)), "plain": {"lr": 0.5}}
    writers.install()
    dist_checkpointing.save(state, str(folder))
    (folder / store.MARKER).touch()


def _wanted() -> dict:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    weight = dist_checkpointing.ShardedTensor.from_rank_offsets("weight", torch.zeros(2, 3))
    return {"weight": weight, "rng": ShardedObject("rng", None, (1,), (0,))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A good checkpoint, and one whose object is an attack on `ran`."""
    folder = tmp_path_factory.mktemp("plain")
    assert _in_one_rank(_save, folder / "good", False) == 0
    assert _in_one_rank(_save, folder / "object", True) == 0
    return folder


def _refused_words(folder: Path) -> str:
    """What `load` says about it; it must say something."""
    said = folder.parent / f"{folder.name}.said"

    def load() -> None:
        try:
            plain_data.stored_keys(folder)
            plain_data.load(_wanted(), folder)
        except CheckpointError as error:
            said.write_text(str(error))

    assert _in_one_rank(load) == 0
    return said.read_text()


def test_a_good_checkpoint_gives_its_values(saved):
    def load() -> None:
        found = plain_data.load(_wanted(), saved / "good")
        assert torch.equal(found["weight"], VALUES) and found["plain"] == {"lr": 0.5}
        assert found["rng"]["torch"].dtype == torch.uint8
        assert plain_data.stored_keys(saved / "good") == {"weight", "rng"}

    assert _in_one_rank(load) == 0
    assert torch.equal(DistCheckpointReader(saved / "good").read("weight", (2, 3)), VALUES)


def test_an_object_among_the_tensors_runs_nothing(saved):
    assert "posix.mkdir" in _refused_words(saved / "object")
    assert not (saved / "ran").exists()


def _metadata(folder: Path) -> object:
    return pickle.loads((folder / ".metadata").read_bytes())


def _all_of_it(folder: Path, attack: Touch) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(attack))


def _a_part_of_it(folder: Path, attack: Touch) -> None:
    metadata = _metadata(folder)
    metadata.planner_data = {"deep": [attack]}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _a_file_elsewhere(folder: Path, attack: Touch) -> None:
    metadata = _metadata(folder)
    for info in metadata.storage_data.values():
        info.relative_path = "../object/__0_0.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _no_pickle(folder: Path, attack: Touch) -> None:
    (folder / ".metadata").write_bytes(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f")  # 2**63 bytes


def _common(folder: Path, attack: Touch) -> None:
    torch.save({"plain": attack}, folder / "common.pt")


def _other_format(folder: Path, attack: Touch) -> None:
    form = json.loads((folder / "metadata.json").read_text()) | {"sharded_backend": "zarr"}
    (folder / "metadata.json").write_text(json.dumps(form))


ATTACKS = (_all_of_it, _a_part_of_it, _a_file_elsewhere, _no_pickle, _common, _other_format)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_a_forged_file_is_refused_and_runs_nothing(saved, tmp_path, attack):
    folder = shutil.copytree(saved / "good", tmp_path / "forged")
    attack(folder, Touch(tmp_path / "ran"))
    assert str(folder) in _refused_words(folder)
    if attack is not _common and attack is not _other_format:  # not read by the converters
        with pytest.raises(CheckpointError):
            DistCheckpointReader(folder)
    assert not (tmp_path / "ran").exists()


def _rehash(checkpoint: Path) -> None:
    """A manifest that fits the files again: who owns the files owns it too."""
    manifest = json.loads((checkpoint / store.INTEGRITY).read_text())
    for name in manifest:
        raw = (checkpoint / name).read_bytes()
        manifest[name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (checkpoint / store.INTEGRITY).write_text(json.dumps(manifest))


def test_a_run_is_not_resumed_from_a_forged_checkpoint(tmp_path):
    model = build_tiny_model(tmp_path / "model", hidden=32)
    row = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}
    rows = [row | {"question": f"What is {n} + 1?"} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["--run-dir", tmp_path / "run", "--model.path", model]
    data = ["--data.path", tmp_path / "data.jsonl", "--data.seq-length", 128]
    flags = [
        "sft",
        *paths,
        *data,
        "--train.global-batch-size",
        4,
        "--checkpoint.export-hf",
        "false",
    ]

    def sft(steps: int) -> int:
        command = [str(flag) for flag in (*flags, "--train.max-steps", steps)]
        return run_in_fork(cli.main, command, stdout=Path(os.devnull), stderr=tmp_path / "said")

    assert sft(1) == 0, (tmp_path / "said").read_text()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_1"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    _rehash(checkpoint)
    assert sft(2) == 2
    said = (tmp_path / "said").read_text()
    assert "posix.mkdir" in said and "Traceback" not in said
    assert not (tmp_path / "ran").exists()
