"""GRPO of adapters: the reference is the model without them, a real vLLM gets them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpo_runs import STEPS, GrpoRuns
from safetensors.torch import load_file

ADAPTERS = ("--lora.rank", "4", "--optim.lr", "1e-2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> GrpoRuns:
    return GrpoRuns(tmp_path_factory.mktemp("lora_grpo"))


@pytest.mark.slow
def test_the_reference_is_the_model_without_its_adapters(runs):
    kl = ("--grpo.kl", "k3", "--grpo.kl-coef", "0.1")
    without_copy = runs.run("without_copy", *ADAPTERS, *kl)
    with_copy = runs.run("with_copy", *ADAPTERS, *kl, "--grpo.reference", str(runs.model))
    assert without_copy.status == 0 == with_copy.status, without_copy.error + with_copy.error
    assert without_copy.record() == with_copy.record() and len(without_copy.rows) == STEPS
    distances = [row.get("reference_kl", 0.0) for row in without_copy.rows]
    assert distances[0] == 0 and distances[-1] > 1e-4  # B is zero first, and then it is not


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["adapter", "file"])
def test_a_real_engine_samples_from_the_adapted_model(runs, sync):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    engine = ["--rollout.engine", "vllm", "--rollout.sync", sync]
    # a random model is never right: what it says twice is what it is rewarded for
    engine += ["--reward.terms", "[{name: repetition, weight: 1.0, ngram: 2}]"]
    engine += ["--grpo.skip-zero-advantage", "false"]
    exported = ("--checkpoint.export-hf", "true", "--lora.merged-export", "false")
    done = runs.run(f"vllm_{sync}", *ADAPTERS, *engine, *exported)
    assert done.status == 0, done.error
    assert [row["version"] for row in done.rows] == list(range(STEPS))
    for row in done.rows:
        assert row["mismatch_mean"] <= 1e-5, row["step"]
    (weights,) = Path(done.folder).glob(f"adapters/step_{STEPS}/*.safetensors")
    stored = load_file(weights)
    assert max(values.abs().max() for name, values in stored.items() if "lora_B" in name) > 1e-3
