"""GRPO of experts with a real vLLM on this machine's CPU, in fp32: its choices of experts travel, and
trainer and engine agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from clean_fork import run_in_fork
from grpo_runs import STEPS, GrpoRuns

pytestmark = pytest.mark.slow
REWARD = "def odd(completion, gold, **row):\n    return float(len(completion) % 2)\n"


@pytest.fixture(scope="module", params=["qwen3_moe", "glm4_moe"])
def runs(request, tmp_path_factory) -> GrpoRuns:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    made = GrpoRuns(tmp_path_factory.mktemp(request.param), family=request.param)
    (made.folder / "reward.py").write_text(REWARD)
    return made


def flags(runs: GrpoRuns, mode: str) -> list[str]:
    """All tokens are compared, also those of groups that teach nothing."""
    reward = f"{runs.folder / 'reward.py'}:odd"
    return [
        *("--rollout.engine", "vllm", "--reward.terms", reward, "--optim.lr", "3e-3"),
        *("--grpo.skip-zero-advantage", "false", "--grpo.router-replay", mode),
    ]


def test_trainer_and_engine_agree_with_its_experts(
    runs: GrpoRuns, tmp_path: Path, engine_server: str
) -> None:
    done = runs.run("replay", *flags(runs, "replay"), engine_server=engine_server)
    assert done.status == 0 and len(done.rows) == STEPS, done.error
    for row in done.rows:
        assert row["mismatch_mean"] <= 2e-6, row
        assert row["moe_differing_choices"] == 0, row
        assert row["grad_norm"] > 1e-3  # the weights move, and the next round is of new ones

    def again() -> int:
        from megaladder.cli import main

        return main(["replay", str(done.folder), "--step", str(STEPS)])

    said = tmp_path / "said"
    assert run_in_fork(again, stdout=said, stderr=tmp_path / "err") == 0, said.read_text()


def test_choices_are_counted_or_not_asked_for(runs: GrpoRuns, engine_server: str) -> None:
    counted = runs.run("count", *flags(runs, "count"), engine_server=engine_server)
    silent = runs.run("none", *flags(runs, "none"), engine_server=engine_server)
    assert counted.status == 0 == silent.status, counted.error + silent.error
    assert all("moe_differing_share" in row for row in counted.rows)
    assert not any("moe_differing_share" in row for row in silent.rows)
    first = (silent.folder / "rollouts/step_1.jsonl").read_text()
    assert "routed_experts" not in first
    assert "routed_experts" in (counted.folder / "rollouts/step_1.jsonl").read_text()
