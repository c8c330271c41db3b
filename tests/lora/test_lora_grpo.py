"""GRPO of adapters: the reference is the model without them, a real vLLM gets them alone."""

from __future__ import annotations

import pytest
from grpo_runs import STEPS, GrpoRuns

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
def test_a_real_engine_is_given_the_adapters_of_each_step(runs, engine_server):
    engine = ("--rollout.engine", "vllm", "--rollout.sync", "adapter")
    exported = ("--checkpoint.export-hf", "true", "--lora.merged-export", "false")
    done = runs.run("vllm_adapter", *ADAPTERS, *engine, *exported, engine_server=engine_server)
    assert done.status == 0, done.error
    assert [row["version"] for row in done.rows] == list(range(STEPS))
    assert (done.folder / f"adapters/step_{STEPS}/adapter_config.json").is_file()


@pytest.mark.slow
def test_a_real_engine_is_given_experts_with_their_adapters_merged(tmp_path, engine_server):
    runs = GrpoRuns(tmp_path, family="qwen3_moe")
    reward = tmp_path / "reward.py"
    reward.write_text("def odd(completion, gold, **row):\n    return float(len(completion) % 2)\n")
    flags = (
        "--rollout.engine",
        "vllm",
        "--reward.terms",
        f"{reward}:odd",
        "--train.max-steps",
        "3",
    )
    all_groups = ("--grpo.skip-zero-advantage", "false")
    done = runs.run("experts", *ADAPTERS, *flags, *all_groups, engine_server=engine_server)
    assert done.status == 0, done.error
    assert [row["version"] for row in done.rows] == [0, 1, 2]
    assert all(row["mismatch_mean"] <= 2e-6 and row["grad_norm"] > 0 for row in done.rows)
    assert all(row["moe_differing_choices"] == 0 for row in done.rows)
    refused = runs.run("alone", *ADAPTERS, *flags, "--rollout.sync", "adapter")
    assert refused.status == 2 and "engines take no adapters beside experts" in refused.error
