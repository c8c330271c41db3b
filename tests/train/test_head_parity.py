"""SFT and GRPO steps through the whole model: Triton kernels (interpreted), their PyTorch twins,
and a plain log_softmax agree within fp32 rounding, in loss, gradient norm and metrics; TP2 equals
TP1. GRPO steps are compared at their first update: its ratios are exactly 1, and Adam, which
divides by tiny second moments, amplifies the rounding of those that follow (3e-5 was seen).
"""

import json
import os

import pytest
from distributed import run_alone, run_ranks
from tiny_models import build_bare_qwen3
from train.run_cases import numbers

HEADS = {
    "twin": {},
    "plain": {"MEGALADDER_TEST_PLAIN_HEAD": "1"},
    "triton": {"MEGALADDER_KERNELS": "triton", "TRITON_INTERPRET": "1"},
}
SFT_CASES = [
    {"name": "fused", "steps": 2},
    {"name": "log-probs", "fused": False, "steps": 2},
    {"name": "dft", "loss": "dft", "steps": 2},
]
GRPO_CASES = [
    {"name": objective, "objective": objective, "num_updates": 1}
    for objective in ("dapo", "gspo", "cispo-kl")
]
TOLERANCE = 2e-6  # relative, on fp32 numbers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    build_bare_qwen3(folder / "model", vocab_size=67, hidden=32, num_layers=2)
    return folder


def _run(folder, worker, cases, head, world_size=1):
    out = folder / f"{worker}-{head}-{world_size}.json"
    before = dict(os.environ)
    os.environ.update(HEADS[head])
    try:
        arguments = (str(folder / "model"), json.dumps(cases), str(out))
        if world_size == 1:
            run_alone(f"train/{worker}.py", *arguments)
        else:
            run_ranks(f"train/{worker}.py", world_size, *arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "cases"), [("layout_worker", SFT_CASES), ("grpo_layout_worker", GRPO_CASES)]
)
def test_kernel_twin_and_log_softmax_agree_and_tp2_equals_tp1(model, worker, cases):
    twin = _run(model, worker, cases, "twin")
    others = {
        "plain": _run(model, worker, cases, "plain"),
        "triton": _run(model, worker, cases, "triton"),
        "tp2": _run(model, worker, [case | {"tp": 2, "sp": True} for case in cases], "twin", 2),
    }
    for head, results in others.items():
        for name, result in results.items():
            expected, found = numbers(twin[name]), numbers(result)
            assert len(found) == len(expected) >= 4
            tolerance = TOLERANCE if head != "tp2" else 1e-5
            for number, reference in zip(found, expected, strict=True):
                assert number == pytest.approx(reference, rel=tolerance, abs=1e-7), (head, name)
