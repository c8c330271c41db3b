"""GRPO's loss, gradient norm and metrics do not depend on TP, PP, VPP, DP, sequence parallelism,
micro-batch size, packing or order."""

import json
import math

import pytest
from distributed import run_ranks
from tiny_models import build_bare_qwen3

OBJECTIVES = ("dapo", "gspo", "cispo-kl")
LAYOUTS = {
    1: [
        {"name": "reference"},
        {"name": "micro3", "micro": 3},
        {"name": "unpacked", "packing": False, "micro": 2},
        {"name": "reversed", "order": "reversed"},
        {"name": "starved-reference", "starved": True},
    ],
    2: [
        {"name": "tp2-sp", "tp": 2, "sp": True},
        {"name": "pp2", "pp": 2},
        {"name": "pp2-vpp2", "pp": 2, "vpp": 2},
        {"name": "dp2"},
        {"name": "dp2-unpacked", "packing": False},
        {"name": "starved-dp2", "starved": True},
    ],
    4: [
        {"name": "tp2-pp2", "tp": 2, "pp": 2, "sp": True},
        {"name": "starved-pp2-dp2", "pp": 2, "starved": True},
    ],
}
TOLERANCE = 1e-5  # relative


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """(objective, layout) → what each update gave."""
    folder = tmp_path_factory.mktemp("grpo_layouts")
    build_bare_qwen3(folder / "model")
    found = {}
    for world_size, layouts in LAYOUTS.items():
        cases = [
            {**layout, "objective": of, "name": f"{of} {layout['name']}"}
            for of in OBJECTIVES
            for layout in layouts
        ]
        out = folder / f"{world_size}.json"
        run_ranks(
            "train/grpo_layout_worker.py",
            world_size,
            str(folder / "model"),
            json.dumps(cases),
            str(out),
        )
        found |= {
            tuple(result["name"].split()): result["updates"]
            for result in json.loads(out.read_text())
        }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("starved", [False, True])
def test_layouts_agree(updates, objective, starved):
    """starved: a single sample, so that a data-parallel rank has no active token and yet joins
    every collective."""
    mine = {
        name: rows
        for (of, name), rows in updates.items()
        if of == objective and name.startswith("starved") == starved
    }
    reference = mine.pop("starved-reference" if starved else "reference")
    assert len(mine) == (2 if starved else 9)
    worst = 0.0
    for name, rows in mine.items():
        assert len(rows) == len(reference)
        for row, wanted in zip(rows, reference, strict=True):
            assert (row["tokens"], row["updated"]) == (wanted["tokens"], True), name
            for key in ("loss", "grad_norm"):
                assert math.isfinite(row[key]) and row[key] == pytest.approx(
                    wanted[key], rel=TOLERANCE, abs=1e-7
                ), (name, key)
                worst = max(worst, abs(row[key] - wanted[key]) / abs(wanted[key]))
            # sums over ~100 tokens
            assert row["metrics"] == pytest.approx(wanted["metrics"], rel=1e-4, abs=1e-3), name
            assert row["maxima"] == pytest.approx(wanted["maxima"], rel=1e-4), name
            assert row["grad_norm"] > 1e-3, "the case says something"
    print(f"{objective}, starved {starved}: largest relative difference {worst:.1e}")


def test_the_first_update_is_on_policy_and_later_ones_are_not(updates):
    for objective in OBJECTIVES:
        first, *later = updates[objective, "tp2-pp2"]
        assert (
            first["maxima"]["ratio_max"] == 1.0
            and first["metrics"]["clip_high_count"] == first["metrics"]["clip_low_count"] == 0
        )
        assert all(
            row["maxima"]["ratio_max"] != 1.0 and row["metrics"]["old_kl_k3_sum"] > 0
            for row in later
        )


def test_every_objective_does_what_its_name_says(updates):
    """Corrections, masks and penalties are at work in these cases, or invariance would say nothing
    about them."""
    total = {
        objective: [row["metrics"] for row in updates[objective, "reference"]]
        for objective in OBJECTIVES
    }
    assert sum(row["correction_changed_count"] for row in total["cispo-kl"]) > 0
    assert sum(row["correction_dropped_sequences"] for row in total["gspo"]) > 0
    assert all(row["kl_loss_sum"] > 0 and row["entropy_loss_sum"] < 0 for row in total["cispo-kl"])
