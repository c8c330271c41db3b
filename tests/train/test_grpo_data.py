"""Problems, prompts, tables of samples, token weights and stored rounds of GRPO: the pure half,
against numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import build_tiny_model, build_tokenizer

from megaladder.config.grpo import GrpoConfig
from megaladder.data.chat.prompts import render_prompts
from megaladder.data.chat.stops import stop_token_ids
from megaladder.errors import DataError
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.sample import Prompt, group_seed, sample_groups
from megaladder.train.rl.problems import ProblemStream, prepare_problems
from megaladder.train.rl.records import Round, read_round, remove_after, write_round
from megaladder.train.rl.samples import split_round, table_of
from megaladder.types import (
    Completion,
    FinishReason,
    Graded,
    GradeReason,
    Message,
    Problem,
    RolloutGroup,
)

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def group(
    name: str, completions: list[Completion], rewards: list[float], advantages: list[float]
) -> RolloutGroup:
    problem = Problem(name, (Message("user", f"question {name} ∑"),), "1", "math")
    graded = tuple(Graded(reward > 0, "1", GradeReason.NUMERIC) for reward in rewards)
    terms = tuple({"correctness": reward} for reward in rewards)
    return RolloutGroup(
        problem, (5, 6), tuple(completions), tuple(rewards), terms, graded, tuple(advantages)
    )


@pytest.fixture
def round_() -> Round:
    a = group(
        "a",
        [
            Completion((7, 2), "x", STOP, (-0.5, -0.25), 3),
            Completion((8,), "y\n", LENGTH, (-1.0,), 3),
        ],
        [1.0, 0.0],
        [0.5, -0.5],
    )
    empty, third = (
        Completion((), "", STOP, (), 3),
        Completion((9, 9, 2), "z", STOP, (-0.1, -0.2, -0.3), 3),
    )
    b = group("b", [empty, third], [0.0, 0.1 + 0.2], [-0.1, 0.1])
    return Round(4, 3, (a, b), 17, {"missing_groups": 0}, {"generation": 1.5})


def test_table_lays_out_what_is_trained_and_counts_what_is_not(round_):
    table = table_of(round_, filter_truncated=False)
    assert table.names == ("a/sample 0", "a/sample 1", "b/sample 1")
    assert table.ids.tolist() == [5, 6, 7, 2, 5, 6, 8, 5, 6, 9, 9, 2]
    assert table.rollout_logprobs.tolist() == pytest.approx([-0.5, -0.25, -1.0, -0.1, -0.2, -0.3])
    assert (
        table.metrics["empty_left_out"],
        table.metrics["truncated_left_out"],
        table.metrics["num_groups"],
    ) == (1, 0, 2)
    last = table.sample(2, 0.25)
    assert last.input_ids.tolist() == [5, 6, 9, 9, 2] and last.loss_mask.tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert last.rollout_logprobs_n.tolist() == pytest.approx([0, 0, -0.1, -0.2, -0.3])
    assert (last.advantage, last.loss_weight, last.policy_version, last.group) == (0.1, 0.25, 3, 1)
    assert (
        last.old_logprobs_n is None
        and table.sample(2, 1.0, with_rollout_as_old=True).old_logprobs_n is not None
    )
    cut = table_of(round_, filter_truncated=True)
    assert cut.names == ("a/sample 0", "b/sample 1") and cut.metrics["truncated_left_out"] == 1
    partly = replace(
        round_,
        groups=(
            replace(
                round_.groups[0],
                completions=(Completion((7,), "", STOP), round_.groups[0].completions[1]),
            ),
        ),
    )
    # known for all or for none
    assert table_of(partly, filter_truncated=False).rollout_logprobs is None


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1, 1, 1]),
        ("sequence_mean_token_mean", [6 / (3 * 2), 6 / 3, 6 / (3 * 3)]),
        ("sequence_mean_token_sum", [2, 2, 2]),
        ("sequence_mean_token_sum_norm", [0.2, 0.2, 0.2]),
    ],
)
def test_weights_carry_the_token_count_that_gradients_are_divided_by(round_, aggregation, expected):
    """6 tokens in 3 samples of 2, 1 and 3; Σ weight·loss / 6 is the aggregate."""
    (whole,) = split_round(table_of(round_, False), 1, aggregation, max_tokens=10)
    assert whole.num_loss_tokens == 6 and whole.weights_b.tolist() == pytest.approx(expected)


def test_mini_batches_cover_the_round_in_order(round_):
    table = table_of(round_, False)
    parts = split_round(table, 2, "token_mean", 10)
    assert [part.indices.tolist() for part in parts] == [[0, 1], [2]]
    assert [part.num_loss_tokens for part in parts] == [3, 3]
    assert len(split_round(table, 5, "token_mean", 10)) == 3  # no empty updates
    assert split_round(table_of(replace(round_, groups=()), False), 2, "token_mean", 10) == []


def test_a_stored_round_comes_back_as_it_was(round_, tmp_path):
    write_round(tmp_path, round_, key="k")
    assert read_round(tmp_path, 4, "k") == round_
    assert read_round(tmp_path, 4).digest() == round_.digest()
    assert (
        read_round(tmp_path, 4, "other settings") is None and read_round(tmp_path, 5, "k") is None
    )
    lines = (tmp_path / "step_4.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[3])["reward"] == 0.1 + 0.2
    assert {
        "prompt",
        "completion",
        "reward_terms",
        "advantage",
        "version",
        "finish_reason",
    } <= json.loads(lines[0]).keys()
    changed = (tmp_path / "step_4.jsonl").read_text().replace("0.5", "0.6", 1)
    (tmp_path / "step_4.jsonl").write_text(changed)
    assert read_round(tmp_path, 4, "k") is None  # so it is made again
    with pytest.raises(DataError, match=r"step_4.jsonl: is not what step_4.summary.json says"):
        read_round(tmp_path, 4)
    (tmp_path / "step_4.summary.json").unlink()
    (tmp_path / "step_4.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(
        DataError, match=r"step_4.jsonl:1: expected a completion of a GRPO run, found KeyError"
    ):
        read_round(tmp_path, 4)
    write_round(tmp_path, replace(round_, step=6))
    remove_after(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_4.jsonl"]


def test_the_stream_is_a_function_of_seed_and_position():
    problems = tuple(Problem(f"p{i}", (), "1") for i in range(7))
    stream = ProblemStream(problems, tuple((i + 1,) for i in range(7)), seed=3)
    whole = stream.take(0, 21)
    assert [p.problem.id for p in stream.take(5, 4)] == [p.problem.id for p in whole[5:9]]
    epochs = [[p.problem.id for p in whole[start : start + 7]] for start in (0, 7, 14)]
    assert (
        all(sorted(epoch) == [f"p{i}" for i in range(7)] for epoch in epochs)
        and epochs[0] != epochs[1] != epochs[2]
    )
    assert [
        p.problem.id for p in ProblemStream(problems, stream.prompt_ids, seed=4).take(0, 7)
    ] != epochs[0]
    assert [p.position for p in whole] == list(range(21))
    as_in_the_file = ProblemStream(problems, stream.prompt_ids, seed=3, shuffled=False)
    in_order = [f"p{i}" for i in range(7)]
    assert [p.problem.id for p in as_in_the_file.take(0, 14)] == in_order * 2


def test_samples_of_a_group_depend_on_its_position_only():
    prompts = [
        Prompt(Problem("a", (), "1"), (1, 2), 4),
        Prompt(Problem("b", (), "1"), (3,), 5),
        Prompt(Problem("a", (), "1"), (1, 2), 11),
    ]
    params = SamplingParams(n=3, seed=42)
    together = sample_groups(FakeEngine(), prompts, params).groups
    assert together[1] == sample_groups(FakeEngine(), prompts[1:2], params).groups[0]
    # the same problem, later in the stream
    assert together[0].completions != together[2].completions
    # stored runs depend on it: the value never changes
    assert group_seed(42, 4) == 0x441EBD8CA8FF74F1


def test_prompts_end_where_the_answer_starts_and_answers_end_at_the_turn(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_tokenizer(tmp_path))
    problem = Problem("a", (Message("system", "Be brief."), Message("user", "1+1?")), "2")
    (ids,) = render_prompts([problem], tokenizer)
    assert (
        tokenizer.decode(ids) == "<|im_start|>system\nBe"
        " brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert stop_token_ids(tokenizer) == (2,)
    tokenizer.eos_token = "<|endoftext|>"  # a base model's: the turn still ends with <|im_end|>
    assert stop_token_ids(tokenizer) == (2, 0)
    (raw,) = render_prompts([replace(problem, prompt_text="Q: 1+1?\nA:")], tokenizer)
    assert tokenizer.decode(raw) == "Q: 1+1?\nA:"


def prepare(folder, rows, **sections):
    from megaladder.model.hf_config import model_shape, read_config_json

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "model"
    if not model.exists():
        build_tiny_model(model)
    rollout = {"max_tokens": 40, **sections.pop("rollout", {})}
    config = GrpoConfig(
        model={"path": str(model)},
        data={"path": str(path), "seq_length": 100},
        rollout=rollout,
        **sections,
    )
    return prepare_problems(config, model_shape(read_config_json(model)), model)


def test_every_kind_of_row_becomes_a_problem_and_long_prompts_are_counted(tmp_path):
    rows = [
        {"data_source": "openai/gsm8k", "question": "2+2?", "answer": "4"},
        {"question": "Janet has 3 eggs.", "answer": "She sells. #### 18"},
        {"question": "Find x.", "answer": 204, "id": "2024-II-4"},
        {"question": "long " * 200, "answer": "1"},
    ]
    data = prepare(
        tmp_path,
        rows,
        rollout={"prompt_suffix": "\\nBox it."},
        grpo={"prompts_per_step": 2},
        train={"epochs": 4},
    )
    assert (data.facts.num_problems, data.facts.total_steps) == (3, 6)
    assert [problem.kind for problem in data.stream.problems] == ["gsm8k", "gsm8k", "math"]
    assert [problem.gold for problem in data.stream.problems] == ["4", "18", "204"]
    assert data.facts.lines[0].startswith(f"problems {tmp_path / 'rows.jsonl'}: 3 of 4;")
    assert data.facts.lines[1] == "  1 left out: prompt longer than 60 tokens"
    assert "Find x.\nBox it.<|im_end|>" in data.tokenizer.decode(data.stream.prompt_ids[2])
    prompt = [{"role": "user", "content": "2+2?"}]
    verl = [{"data_source": "x", "prompt": prompt, "reward_model": {"ground_truth": "4"}}] * 2
    complete = prepare(
        tmp_path, verl, rollout={"prompt_suffix": "\\nBox it."}, grpo={"prompts_per_step": 1}
    )
    assert "Box it." not in complete.tokenizer.decode(complete.stream.prompt_ids[0])
    assert complete.facts.lines[1] == (
        "  1 rows that repeat an earlier one: left out (data.duplicates drop)"
    )
    assert prepare(tmp_path, rows, reward={"kind": "math"}).stream.problems[1].kind == "math"
    fewer = prepare(tmp_path, rows, rollout={"max_prompt_tokens": 21})
    assert fewer.facts.num_problems < 3 and fewer.facts.identity != data.facts.identity
    with pytest.raises(
        DataError, match="expected prompts of at most 5 tokens, found 4 longer ones"
    ):
        prepare(tmp_path, rows, rollout={"max_prompt_tokens": 5})


def test_advantages_of_rewards_by_hand():
    from megaladder.train.rl.rounds import with_advantages

    a = group("a", [Completion((7,), "", STOP)] * 4, [1.0, 0.0, 0.0, 1.0], [])
    config = GrpoConfig(model={"path": "m"}, data={"path": "d"}, grpo={"preset": "dr_grpo"})
    assert with_advantages([a], config)[0].advantages == (0.5, -0.5, -0.5, 0.5)
    assert with_advantages([], config) == ()
    normalised = with_advantages(
        [a], config.model_copy(update={"grpo": config.grpo.model_copy(update={"std": True})})
    )
    assert np.array(normalised[0].advantages) == pytest.approx(
        np.array([1, -1, -1, 1]) * 0.5 / np.std([1, 0, 0, 1], ddof=1), rel=1e-5
    )
