"""HF → Megatron → HF at TP × PP (× VPP), on real gloo ranks, for every family: bit-exact, both in
process and through checkpoint files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints_conv.conv_models import CASES, differences, make_hf_folder
from checkpoints_conv.conv_worker import GRID, SAVED_LAYOUTS, goes_through_files
from distributed import run_ranks
from model_cases import read_all

from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf
from megaladder.checkpoints_conv.reader import auxiliary_files

FILES = [point for point in GRID if goes_through_files(*point)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of one launch of four ranks that went through every case and layout."""
    folder = tmp_path_factory.mktemp("conversion")
    for case in CASES:
        make_hf_folder(case, folder / case)
        convert_to_megatron(folder / case, folder / f"offline-{case}")
    shutil.copytree(folder / "qwen3", folder / "truncated")
    shard = sorted((folder / "truncated").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    run_ranks("checkpoints_conv/conv_worker.py", 4, str(folder))
    return folder


@pytest.fixture(scope="module")
def results(work: Path) -> dict:
    return json.loads((work / "results.json").read_text())


@pytest.mark.parametrize(("case", "layout"), GRID, ids=str)
def test_in_process_round_trip_is_bit_exact(results: dict, case: str, layout) -> None:
    assert results[f"{case} {layout}"]["streamed"] == []  # iter_hf_tensors, on every rank


@pytest.mark.parametrize(("case", "layout"), FILES, ids=str)
def test_exported_folders_are_bit_exact(work: Path, case: str, layout) -> None:
    exported = work / f"export-{case}-{layout}"
    assert differences(read_all(exported), read_all(work / case)) == []
    for path in auxiliary_files(work / case):
        assert (exported / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("case", "layout"), FILES, ids=str)
def test_offline_conversion_loads_as_the_in_process_load(results: dict, case: str, layout) -> None:
    assert results[f"{case} {layout}"]["offline"] == []


@pytest.mark.parametrize(
    ("case", "layout"), [point for point in FILES if point[1] in SAVED_LAYOUTS], ids=str
)
def test_saved_by_megatron_core_and_converted_offline(work: Path, case: str, layout) -> None:
    out = work / f"back-{case}-{layout}"
    convert_to_hf(work / f"saved-{case}-{layout}", out)
    assert differences(read_all(out), read_all(work / case)) == []


@pytest.mark.parametrize(("case", "layout"), GRID, ids=str)
def test_a_rank_reads_only_what_it_holds(results: dict, case: str, layout) -> None:
    found = results[f"{case} {layout}"]
    assert found["unread"] == []  # no rank read more bytes than its parameters have
    if (layout.tp, layout.pp) == (2, 2):
        assert found["read_share"] < 0.45  # a quarter, plus an embedding that only two ranks share


def test_a_fault_on_one_rank_is_raised_on_all(results: dict, work: Path) -> None:
    faults = results["faults"]
    truncated = faults["one truncated copy"]
    assert "truncated or corrupt" in truncated[3] and ".safetensors" in truncated[3]
    assert all("another rank could not load" in message for message in truncated[:3])
    assert all(
        "not empty (notes.txt" in message and "--force" in message
        for message in faults["export into a full folder"]
    )
    assert all(
        message.startswith(("ModelError", "ConversionError"))
        for message in faults["export of a missing source"]
    )
    unknown = faults["a parameter without a name"]
    assert "decoder.layers.0.adapter.weight" in unknown[2] and "does not know" in unknown[2]
    assert all(message.startswith("ConversionError") for message in unknown)


def test_forced_export_keeps_foreign_files_and_casts(work: Path, results: dict) -> None:
    folder = work / "not-empty"
    assert (folder / "notes.txt").read_text() == "keep me"
    want = {name: tensor.float() for name, tensor in read_all(work / "qwen3").items()}
    assert differences(read_all(folder), want) == []
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert all(tensor.dtype == torch.float32 for tensor in read_all(folder).values())
