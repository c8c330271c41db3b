"""What adapters do not go with is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig

BASE: dict[str, Any] = {"model": {"path": "m"}, "data": {"path": "d", "seq_length": 1024}}
ON = {"rank": 8}


def said(kind: type, **sections: dict[str, Any]) -> str:
    merged = {**BASE}
    for name, values in sections.items():
        merged[name] = {**merged.get(name, {}), **values}
    with pytest.raises(ValidationError) as found:
        kind.model_validate(merged)
    return str(found.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lora": ON, "train": {"fp8": "tensorwise"}}, "train.fp8 tensorwise with lora"),
        ({"lora": ON, "model": {"init": "random"}}, "model.init random with lora"),
        ({"lora": {"alpha": 8.0}}, "lora.alpha 8.0 is read with lora.rank only"),
        ({"lora": {"rank": 8, "start": "a"}}, "lora.rank 8 is read with lora.start null"),
        ({"lora": {"rank": 8, "merged_export": False}}, "lora.merged_export false is read with"),
        ({"evaluate": {"benchmarks": ["aime24"], "sync": "adapter"}}, "evaluate.sync adapter"),
    ],
)
def test_sft_refuses(sections, words):
    assert words in said(SftConfig, **sections)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rollout": {"sync": "adapter"}}, "rollout.sync adapter sends what lora trains"),
        (
            {"lora": ON, "rollout": {"sync": "adapter", "servers": ["http://a:1"]}},
            "rollout.sync adapter reaches engines of the job's own nodes",
        ),
        ({"lora": {"start": "a"}, "grpo": {"kl": "k3"}}, "grpo.kl k3 with lora.start a"),
    ],
)
def test_grpo_refuses(sections, words):
    assert words in said(GrpoConfig, **sections)


def test_adapters_are_on_with_a_rank_or_a_folder():
    for lora in ({}, ON, {"start": "a"}):
        config = GrpoConfig.model_validate({**BASE, "lora": lora})
        assert config.lora.enabled == bool(lora)
