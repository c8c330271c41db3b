"""What is said of a step's balance, and what is warned about; numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megaladder.model.moe.balance import Balance, CollapseWatch, LayerBalance, _layer


def layer(*load: int, index: int = 0) -> LayerBalance:
    return LayerBalance(index, torch.tensor(load), 1.0, 0.0)


def test_numbers_of_a_load() -> None:
    even, skewed = layer(5, 5, 5, 5), layer(12, 6, 6, 0)
    assert (even.max_load, even.idle_share) == (1.0, 0.0)
    assert even.effective_experts == pytest.approx(4.0)
    assert (skewed.max_load, skewed.idle_share) == (2.0, 0.25)
    # entropy of (1/2, 1/4, 1/4) is 1.5 bits
    assert skewed.effective_experts == pytest.approx(2**1.5)


def test_losses_are_those_of_the_sums() -> None:
    """Three tokens with two experts each: loads (3, 2, 1), scores that sum to 1 a token."""
    row = torch.tensor([3.0, 2.0, 1.0, 1.5, 0.9, 0.6, 6.0, 4.0, 1.0], dtype=torch.float64)
    found = _layer(7, row)
    assert found.layer == 7 and found.load.tolist() == [3, 2, 1]
    # E · Σ f·p with f = (1/2, 1/3, 1/6), p = (0.5, 0.3, 0.2)
    assert found.aux_loss == pytest.approx(3 * (0.25 + 0.1 + 0.2 / 6))
    assert found.z_loss == pytest.approx(2.0)
    assert (found.compared, found.differing) == (4, 1)
    other = replace(found, layer=8, compared=12, differing=3)
    assert Balance((found, other), 2).choices() == {
        "moe_differing_choices": 4,
        "moe_differing_share": 0.25,
        "moe_differing_choices_by_layer": [1, 3],
    }
    assert Balance((layer(5, 5),), 1).choices() == {}


def test_a_collapsed_layer_is_told_once_until_it_recovers() -> None:
    watch = CollapseWatch()
    good, bad = layer(5, 5, 5, 5, 5, 5, 5, 5), layer(20, 20, 0, 0, 0, 0, 0, 0, index=3)
    assert watch.warning(1, Balance((good,), 2)) is None
    told = watch.warning(2, Balance((good, bad), 2))
    assert told is not None and "step 2" in told and "layer 3 (as if 2.0 of 8, busiest 4.0" in told
    assert watch.warning(3, Balance((good, bad), 2)) is None
    assert watch.warning(4, Balance((good,), 2)) is None
    assert watch.warning(5, Balance((bad,), 2)) is not None


def test_metrics_have_a_number_a_layer() -> None:
    metrics = Balance((layer(2, 2), layer(4, 0, index=2)), 1).metrics()
    assert metrics["moe_max_load"] == 2.0
    assert metrics["moe_max_load_by_layer"] == [1.0, 2.0]
    assert metrics["moe_idle_share_by_layer"] == [0.0, 0.5]
    assert Balance((), 1).metrics() == {}
