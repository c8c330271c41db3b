"""The tables are total: they name exactly the tensors that transformers makes, and every other name
is refused and listed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints_conv.conv_models import make_hf_folder
from model_cases import CASES, make_folder, read_all, rewrite_single, transformers_config

from megaladder.checkpoints_conv.families import (
    PORTABLE_NAMES,
    NameTable,
    canonical_name,
    name_table,
)
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.errors import ConversionError
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json


def shape_of(case: str) -> ModelShape:
    return model_shape(transformers_config(case).to_dict())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        case: make_hf_folder(case, root / case, max_shard_size="1GB")
        for case in ("qwen3", "qwen3-tied")
    }


@pytest.fixture
def qwen3(folders: dict[str, Path], tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    return _copy(folders["qwen3"], tmp_path)


@pytest.fixture
def tied(folders: dict[str, Path], tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    return _copy(folders["qwen3-tied"], tmp_path)


def _copy(source: Path, target: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target, read_all(source)


def check(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Strict accounting of a folder that holds exactly `tensors`."""
    rewrite_single(folder, tensors)
    with HFReader(folder) as reader:
        name_table(model_shape(read_config_json(folder))).check_source(reader)


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    folder = make_folder(case, tmp_path)
    shape = model_shape(read_config_json(folder))
    want = {name: tuple(tensor.shape) for name, tensor in read_all(folder).items()}
    assert dict(name_table(shape).hf_shapes) == want
    assert shape.num_parameters == sum(math.prod(size) for size in want.values())


def test_missing_unknown_and_misshapen_names_are_all_listed(
    qwen3: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = qwen3
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    tensors["model.layers.4.input_layernorm.weight"] = torch.zeros(64)
    tensors["model.embed_tokens.weight"] = torch.zeros(520, 64)
    with pytest.raises(ConversionError) as caught:
        check(folder, tensors)
    text = str(caught.value)
    parts = (
        "missing (2)",
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "unknown (2)",
        "self_attn.q_proj.bias",
        "model.layers.4.",
        "wrong shape (1)",
        "(520, 64), expected (517, 64)",
        str(folder),
    )
    for part in parts:
        assert part in text, text


def test_known_harmless_buffers_are_the_only_ones_ignored(
    qwen3: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = qwen3
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    check(folder, tensors)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.zeros(1)
    with pytest.raises(ConversionError, match="masked_bias"):
        check(folder, tensors)


def test_an_output_layer_beside_a_tied_embedding_must_be_equal(
    tied: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = tied
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    check(folder, tensors)
    tensors["lm_head.weight"][3, 5] += 1e-3
    with pytest.raises(
        ConversionError, match=r"tie_word_embeddings=true, but lm_head\.weight differs"
    ):
        check(folder, tensors)


def test_an_untied_model_without_output_layer_is_told_of_the_flag(
    qwen3: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = qwen3
    del tensors["lm_head.weight"]
    with pytest.raises(ConversionError, match="tie_word_embeddings"):
        check(folder, tensors)


def test_more_ranks_than_query_groups_are_refused_with_the_fix() -> None:
    table = name_table(shape_of("qwen3"))
    table.check_layout(2)
    with pytest.raises(
        ConversionError, match=r"num_key_value_heads = 2 can't be split over tp = 4.*fix"
    ):
        table.check_layout(4)


def test_both_specifications_have_the_same_canonical_names() -> None:
    table: NameTable = name_table(shape_of("qwen2-yarn"))
    for name, entry in table.by_name.items():
        assert canonical_name(name) == name
        for fused, portable in PORTABLE_NAMES.items():
            if name.endswith(fused):
                assert canonical_name(name.replace(fused, portable)) == name
        assert entry.checkpoint_key == re.sub(r"layers\.\d+\.", "layers.", name)


def test_every_entry_of_a_layer_is_numbered_once() -> None:
    table = name_table(replace(shape_of("qwen3"), num_layers=12))
    names = [name for entry in table.entries() for name in entry.mapping.hf_names]
    assert len(names) == len(set(names)) == len(table.hf_shapes) == 12 * 11 + 3
    assert json.dumps(sorted(names)).count("*") == 0
