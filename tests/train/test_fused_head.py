"""A loss formed in the head equals the same loss on differentiable log-probs within 2e-6, in loss,
gradient norm and every metric: all presets, packed, at TP1 and TP2 with sequence parallelism, in
one block of logits and in many.

First updates: later ones go through Adam, which divides by tiny second moments and amplifies
rounding.
"""

import json

import pytest
from distributed import run_ranks
from tiny_models import build_bare_qwen3
from train.run_cases import numbers

from megaladder.config.sections.grpo import presets

OBJECTIVES = (*presets(), "cispo-kl", "k1", "k2-weighted")
SFT = ("vanilla", "teacher-weighted", "dft", "adv-only", "ppo-ori", "ppo", "clip", "cispo", "gspo")
ROW = 80 * 4  # bytes of a row of 67 float32 logits, padded
LAYOUTS = {1: {}, 2: {"tp": 2, "sp": True}}
VARIANTS = {"one": {}, "blocks": {"scratch": 7 * ROW}, "two-phase": {"fused": False}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    build_bare_qwen3(folder / "model", vocab_size=67, hidden=32, num_layers=2)
    return folder


def run(folder, worker, world_size, cases):
    out = folder / f"{worker}-{world_size}.json"
    run_ranks(f"train/{worker}.py", world_size, str(folder / "model"), json.dumps(cases), str(out))
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.mark.parametrize(
    ("worker", "kinds", "extra"),
    [("grpo_layout_worker", OBJECTIVES, {"num_updates": 1}), ("layout_worker", SFT, {"steps": 1})],
    ids=["grpo", "sft"],
)
@pytest.mark.parametrize(
    "world_size", [pytest.param(n, marks=pytest.mark.slow) if n > 1 else n for n in LAYOUTS]
)
def test_the_head_that_forms_the_loss_equals_the_one_that_gives_logprobs(
    model, worker, kinds, extra, world_size
):
    key = "objective" if worker == "grpo_layout_worker" else "loss"
    cases = [
        {"name": f"{kind} {variant}", key: kind, **extra, **LAYOUTS[world_size], **changes}
        for kind in kinds
        for variant, changes in VARIANTS.items()
    ]
    found = run(model, worker, world_size, cases)
    worst = 0.0
    for kind in kinds:
        expected = numbers(found[f"{kind} two-phase"])
        assert len(expected) >= 3
        for variant in ("one", "blocks"):
            for got, wanted in zip(numbers(found[f"{kind} {variant}"]), expected, strict=True):
                assert got == pytest.approx(wanted, rel=2e-6, abs=1e-7), (kind, variant)
                worst = max(worst, abs(got - wanted) / max(abs(wanted), 1e-3))
    print(f"{worker}, {world_size} ranks: largest relative difference {worst:.1e}")
