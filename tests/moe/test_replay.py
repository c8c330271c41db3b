"""The experts that an engine chose: from a completion through record and packing to the router, by
hand; and a GRPO run that follows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clean_fork import run_in_fork
from grpo_runs import GrpoRuns

from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules import engine as engine_rules
from megaladder.config.rules.grpo import asks_experts
from megaladder.config.rules.layout import validate_layout
from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
from megaladder.errors import ConfigError, DataError
from megaladder.model.hf_config import model_shape
from megaladder.model.moe.choices import from_text, to_text
from megaladder.model.moe.router import EngineChoice, with_choices
from megaladder.plan.hardware import find_model
from megaladder.rollout.vllm_engine import VllmOptions, vllm_children
from megaladder.train.rl.policy import require_experts
from megaladder.train.rl.records import Round, read_round, write_round
from megaladder.train.rl.samples import table_of
from megaladder.types import Completion, FinishReason, Message, Problem, RolloutGroup

LAYERS, TOP_K = 3, 2
EXPERTS = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_experts": 8,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "vocab_size": 512,
}


def chosen(num_tokens: int, first: int = 0) -> np.ndarray:
    """Different experts for every token, layer and place."""
    count = num_tokens * LAYERS * TOP_K
    return ((first + np.arange(count)) % 7).astype(np.uint8).reshape(num_tokens, LAYERS, TOP_K)


def a_round(*texts: str) -> Round:
    """Prompt [5, 6], responses [7, 2] and [8]."""
    completions = tuple(
        Completion(ids, "", FinishReason.STOP, (-0.1,) * len(ids), 0, text)
        for ids, text in zip(((7, 2), (8,)), texts, strict=True)
    )
    problem = Problem("p", (Message("user", "?"),), "1")
    group = RolloutGroup(problem, (5, 6), completions, (1.0, 0.0), ({}, {}), (), (1.0, -1.0))
    return Round(1, 0, (group,), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_text_and_array(dtype: type) -> None:
    array = chosen(4).astype(dtype)
    found = from_text(to_text(array))
    assert found.dtype == dtype and np.array_equal(found, array)


@pytest.mark.parametrize(
    "text", ["x", "AAAA", to_text(np.zeros((2, 3), np.uint8)), to_text(np.zeros((1, 1, 1)))]
)
def test_what_is_no_choice_is_told(text: str) -> None:
    with pytest.raises(DataError, match=r"^p/sample 0: its routed_experts are .*; fix: "):
        table_of(a_round(text, to_text(chosen(2))), filter_truncated=False)


def test_experts_of_another_length_are_told() -> None:
    found = a_round(to_text(chosen(4)), to_text(chosen(2)))
    with pytest.raises(DataError, match=r"^p/sample 0: routed_experts of \[4, 3, 2\] for 3 tokens"):
        table_of(found, filter_truncated=False)


def test_experts_lie_with_their_tokens(tmp_path: Path) -> None:
    """Stored, read, packed: the last token of an answer, and padding, have none."""
    first, second = chosen(3), chosen(2, first=4)
    write_round(tmp_path, a_round(to_text(first), to_text(second)), key="k")
    found = read_round(tmp_path, 1, "k")
    assert found is not None and found.digest() != a_round("", "").digest()
    table = table_of(found, filter_truncated=False)
    plan = plan_global_batch([4, 3], [0, 1], PackSpec(16, align=8), 1)
    (batch,) = build_micro_batches(plan, 0, lambda i: table.sample(i, 1.0, with_experts=True))
    assert batch.input_ids_t.tolist() == [5, 6, 7, 2, 5, 6, 8, 0]
    expected = np.full((8, LAYERS, TOP_K), -1, np.int16)
    expected[0:3], expected[4:6] = first, second
    assert np.array_equal(batch.routed_experts_t, expected)
    (plain,) = build_micro_batches(plan, 0, lambda i: table.sample(i, 1.0))
    assert plain.routed_experts_t is None


def test_stored_experts_that_are_no_text_are_told_with_their_line(tmp_path: Path) -> None:
    write_round(tmp_path, a_round(to_text(chosen(3)), to_text(chosen(2))))
    path = tmp_path / "step_1.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["routed_experts"] = [1, 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "step_1.summary.json").unlink()
    with pytest.raises(
        DataError, match=r"step_1\.jsonl:1: .*routed_experts is no text but \[1, 2\]"
    ):
        read_round(tmp_path, 1)


def test_a_rank_with_padding_only_has_an_array_too() -> None:
    table = table_of(a_round(to_text(chosen(3)), to_text(chosen(2))), filter_truncated=False)
    plan = plan_global_batch([4], [0], PackSpec(16), 2)
    for rank in range(2):
        (batch,) = build_micro_batches(
            plan, rank, lambda i: table.sample(i, 1.0, with_experts=True)
        )
        assert batch.routed_experts_t is not None
        assert batch.routed_experts_t.shape == (len(batch.input_ids_t), LAYERS, TOP_K)


def best(scores, topk, num_groups=None, group_topk=None):
    return torch.topk(scores, topk, dim=1)


@pytest.mark.parametrize("replays", [True, False])
def test_the_router_takes_the_engines_experts_and_counts_its_own(replays: bool) -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    choice = EngineChoice(torch.tensor([[1, 0], [0, 3], [-1, -1]]), replays=replays)
    values, experts = choice.get_replay_topk(scores, 2, None, None, best)
    # six places, four of them known; the second token goes to 3 where its router prefers 1
    assert choice.counts is not None and choice.counts.tolist() == [4, 1]
    if replays:
        assert experts.tolist() == [[1, 0], [0, 3], [3, 2]]
        assert values.tolist() == [[2.0, 3.0], [3.0, 0.0], [3.0, 2.0]]
    else:
        assert experts.tolist() == [[0, 1], [0, 1], [3, 2]]


def test_what_routers_are_told_is_one_tensor() -> None:
    groups = torch.tensor([[True, True, False]])
    assert with_choices(groups, None) is groups
    choices = torch.arange(12, dtype=torch.int16).view(3, 2, 2)
    told = with_choices(groups, choices)
    assert told.dtype == torch.int16
    assert told.tolist() == [[1, 1, 0], [0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def config(**sections: dict) -> GrpoConfig:
    base = {"model": {"path": "m"}, "data": {"path": "d", "seq_length": 2048}}
    return GrpoConfig(**{**base, **sections})


def test_who_is_asked_for_experts() -> None:
    shape, dense = model_shape(EXPERTS), find_model("Qwen3-0.6B")
    assert asks_experts(config(), shape) and not asks_experts(config(), dense)
    assert asks_experts(config(grpo={"router_replay": "count"}), shape)
    assert not asks_experts(config(grpo={"router_replay": "none"}), shape)
    assert not asks_experts(config(rollout={"engine": "fake"}), shape)
    assert not asks_experts(config(grpo={"mode": "rollout_only"}), shape)
    with pytest.raises(ConfigError, match=r"grpo\.router_replay none is read for a mixture of exp"):
        validate_layout(config(grpo={"router_replay": "none"}), dense)


def test_processes_that_do_not_tell_are_refused_before_they_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine_rules, "vllm_is_for_cpu", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps({**EXPERTS, "head_dim": 32}))
    options = VllmOptions(str(tmp_path), tp=2, routed_experts=True)
    with pytest.raises(ConfigError, match=r"rollout\.tp 2: vLLM on several CPU .*; fix: rollout"):
        vllm_children(options)
    assert len(vllm_children(replace(options, tp=1))) == 1


def test_rollouts_of_another_model_are_refused() -> None:
    shape = model_shape(EXPERTS)
    table = table_of(a_round(to_text(chosen(3)), to_text(chosen(2))), filter_truncated=False)
    require_experts(table, shape, "vllm")
    with pytest.raises(ConfigError, match=r"2 experts up to 6 in 3 layers, the model takes 2 of 4"):
        require_experts(table, model_shape({**EXPERTS, "num_experts": 4}), "replay")
    silent = table_of(a_round("", ""), filter_truncated=False)
    require_experts(silent, shape, "fake")
    with pytest.raises(ConfigError, match=r"did not tell which experts it chose; fix: vLLM's serv"):
        require_experts(silent, shape, "vllm")


def sampled_round(num_groups: int = 3, n: int = 4) -> Round:
    """A round as if an engine of two layers and eight experts had chosen and sampled at random."""
    random = np.random.default_rng(0)

    def answer() -> Completion:
        ids = tuple(random.integers(5, 400, int(random.integers(4, 20))).tolist())
        experts = random.random((3 + len(ids) - 1, 2, 8)).argsort(-1)[..., :2].astype(np.uint8)
        logprobs = (-6.0,) * len(ids)
        return Completion(ids, "", FinishReason.STOP, logprobs, 0, to_text(experts))

    rewards = (1.0, 0.0) * (n // 2)
    groups = tuple(
        RolloutGroup(
            Problem(f"p{group}", (Message("user", "?"),), "1"),
            (5, 6, 7),
            tuple(answer() for _ in range(n)),
            rewards,
            ({},) * n,
            advantages=(0.0,) * n,
        )
        for group in range(num_groups)
    )
    return Round(1, 0, groups, num_groups)


def test_a_run_follows_stored_experts_and_its_step_comes_out_again(tmp_path: Path) -> None:
    """Old log-probs are computed with the same experts: ratios stay at 1."""
    runs, stored = GrpoRuns(tmp_path, family="qwen3_moe"), tmp_path / "stored"
    stored.mkdir()
    write_round(stored, sampled_round())
    flags = ["--rollout.engine", "replay", "--rollout.replay-dir", str(stored)]
    flags += ["--train.max-steps", "1", "--grpo.correction", "none", "--checkpoint.every", "0"]
    flags += ["--grpo.recompute-old-logprobs", "always", "--grpo.mismatch-limit", "100"]
    done = runs.run("run", *flags)
    assert done.status == 0, done.error
    (row,) = done.rows
    # of two random experts of eight the router prefers each with probability 1/4
    assert 0.6 < row["moe_differing_share"] < 0.9
    assert row["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert len(row["moe_max_load_by_layer"]) == len(row["moe_differing_choices_by_layer"]) == 2

    def again() -> int:
        from megaladder.cli import main

        return main(["replay", str(done.folder), "--step", "1"])

    said = tmp_path / "said"
    assert run_in_fork(again, stdout=said, stderr=tmp_path / "err") == 0, said.read_text()
