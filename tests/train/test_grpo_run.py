"""Whole GRPO runs with the fake engine: what the first step promises, modes, degenerate rounds,
broken rewards, lost engines."""

from __future__ import annotations

import json
import math

import pytest
from grpo_runs import STEPS, GrpoRuns

from megaladder.rollout.fake_engine import Faults
from megaladder.types import Completion, FinishReason


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> GrpoRuns:
    return GrpoRuns(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def plain(runs):
    """The run that others are compared with."""
    return runs.run("plain")


def test_on_policy_ratio_is_one_and_nothing_is_clipped(plain):
    assert plain.status == 0, plain.error
    assert len(plain.rows) == STEPS
    for row in plain.rows:
        assert (
            row["ratio_mean"],
            row["ratio_max"],
            row["clip_low_share"],
            row["clip_high_share"],
            row["old_kl"],
        ) == (1, 1, 0, 0, 0)
        assert row["grad_norm"] > 0 and math.isfinite(row["loss"])
        assert row["version"] == row["step"] - 1
    assert len({row["groups_sha256"] for row in plain.rows}) == STEPS


def test_old_logprobs_of_their_own_pass_change_nothing(runs, plain):
    """The same packing in both passes: the ratio is exactly 1, so the step is bit for bit the one
    without the pass."""
    again = runs.run("always", "--grpo.recompute-old-logprobs", "always")
    assert again.record() == plain.record()
    assert {row["ratio_max"] for row in again.rows} == {1.0}


def test_later_mini_batches_are_off_policy(runs, plain):
    done = runs.run(
        "minis",
        "--grpo.mini-batches",
        "3",
        "--optim.lr",
        "3e-2",
        "--optim.schedule",
        "constant",
        "--optim.warmup-ratio",
        "0",
    )
    assert done.status == 0, done.error
    assert [row["updates"] for row in done.rows] == [3] * STEPS
    assert (
        all(row["old_kl"] > 0 for row in done.rows)
        and max(row["ratio_max"] for row in done.rows) > 1.01
    )
    assert any(row["clip_low_share"] + row["clip_high_share"] > 0 for row in done.rows)


def test_lag_one_trains_on_the_same_groups_from_older_weights(runs, plain):
    done = runs.run("lag", "--grpo.lag", "1")
    assert [row["groups_sha256"] for row in done.rows] == [
        row["groups_sha256"] for row in plain.rows
    ]
    assert [row["version"] for row in done.rows] == [0, 0, 1, 2]


def test_stored_rollouts_are_readable_and_train_the_same(runs, plain):
    lines = [
        json.loads(line)
        for line in (plain.folder / "rollouts" / "step_1.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12
    first = lines[0]
    assert (
        first["prompt"].startswith("What is")
        and first["completion"]
        and first["gold"]
        and first["version"] == 0
    )
    assert first["reward"] == sum(first["reward_terms"].values()) and isinstance(
        first["advantage"], float
    )
    for start in (0, 4, 8):
        assert sum(line["advantage"] for line in lines[start : start + 4]) == pytest.approx(
            0, abs=1e-12
        )
    replayed = runs.run(
        "replayed",
        "--rollout.engine",
        "replay",
        "--rollout.replay-dir",
        str(plain.folder),
        "--grpo.correction",
        "none",
    )
    assert replayed.status == 0, replayed.error
    assert replayed.record() == plain.record()
    short = runs.run(
        "short",
        "--rollout.engine",
        "replay",
        "--rollout.replay-dir",
        str(plain.folder),
        "--train.max-steps",
        "5",
        "--grpo.correction",
        "none",
    )
    assert short.status == 2 and "no rollouts of step 5; fix: train.max_steps 4" in short.error


def test_rollout_only_stores_and_reuses(runs, plain):
    done = runs.run("only", "--grpo.mode", "rollout_only")
    assert done.status == 0, done.error
    assert [row["groups_sha256"] for row in done.rows] == [
        row["groups_sha256"] for row in plain.rows
    ]
    assert not (done.folder / "checkpoints").exists()
    before = {
        path.name: path.stat().st_mtime_ns for path in (done.folder / "rollouts").glob("*.jsonl")
    }
    # would fail if it sampled anything
    again = runs.run("only", "--grpo.mode", "rollout_only", respond=lambda *_: 1 / 0)
    assert again.status == 0 and again.record() == done.record()
    assert {
        path.name: path.stat().st_mtime_ns for path in (done.folder / "rollouts").glob("*.jsonl")
    } == before


def always_right(request, gold, tokenizer):
    return [*tokenizer.encode(f"\\boxed{{{gold}}}"), *request.params.stop_token_ids[:1]]


def endless(request, gold, tokenizer):
    return tokenizer.encode("wait " * 100)


def nothing(request, gold, tokenizer):
    return Completion((), "", FinishReason.STOP)


def half_aborted(request, gold, tokenizer):
    if int(gold) % 4 == 0:
        return Completion((5,), "", FinishReason.ABORT)
    return (
        always_right(request, gold, tokenizer)
        if request.params.seed % 2
        else endless(request, gold, tokenizer)
    )


@pytest.mark.parametrize(
    ("name", "respond", "flags", "expected"),
    [
        (
            "zero-variance",
            always_right,
            [],
            {"zero_variance_groups": 3, "updates": 1, "grad_norm": 0.0},
        ),
        (
            "all-truncated",
            endless,
            ["--grpo.filter-truncated", "true"],
            {"truncated_left_out": 12, "updates": 0, "loss": None},
        ),
        ("truncated", endless, [], {"truncated_completions": 12, "updates": 1, "grad_norm": 0.0}),
        ("empty", nothing, [], {"empty_left_out": 12, "updates": 0, "reward": 0.0}),
        ("aborted", half_aborted, [], {"updates": 1}),
        (
            "dynamic",
            always_right,
            ["--grpo.dynamic-sampling", "accuracy", "--grpo.max-resamples", "2"],
            {
                "zero_variance_groups": 9,
                "sampled_groups": 9,
                "resample_rounds": 2,
                "missing_groups": 3,
                "num_groups": 0,
                "updates": 0,
            },
        ),
    ],
)
def test_degenerate_rounds_are_finite_and_counted(runs, name, respond, flags, expected):
    done = runs.run(name, *flags, "--train.max-steps", "2", respond=respond)
    assert done.status == 0, done.error
    assert len(done.rows) == 2
    for row in done.rows:
        assert {key: row[key] for key in expected} == expected
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    if name == "aborted":
        assert sum(row["aborted_groups"] for row in done.rows) > 0
        assert all(row["num_groups"] == 3 - row["aborted_groups"] for row in done.rows)


def test_dynamic_sampling_fills_the_round_from_the_stream(runs):
    """Gold answers above 50 are always right, so those groups go; the stream moves on to behind the
    last group that is used."""

    def respond(request, gold, tokenizer):
        right = int(gold) > 50 or request.params.seed % 2
        return always_right(request, gold if right else "-1", tokenizer)

    done = runs.run("dapo", "--grpo.preset", "dapo", "--grpo.max-resamples", "10", respond=respond)
    assert done.status == 0, done.error
    assert all(row["num_groups"] == 3 and row["missing_groups"] == 0 for row in done.rows)
    assert sum(row["zero_variance_groups"] for row in done.rows) > 0
    summaries = [
        json.loads((done.folder / "rollouts" / f"step_{step}.summary.json").read_text())
        for step in range(1, STEPS + 1)
    ]
    assert all(
        row["num_groups"] + row["zero_variance_groups"] + row["surplus_groups"]
        == row["sampled_groups"]
        for row in done.rows
    )
    cursors = [0, *(summary["cursor"] for summary in summaries)]
    for row, begin, end in zip(done.rows, cursors, cursors[1:], strict=False):
        assert 3 <= end - begin <= row["sampled_groups"]
        assert row["surplus_groups"] > 0 or end - begin == row["sampled_groups"]


def write_reward(runs, name: str, body: str) -> str:
    path = runs.folder / f"{name}.py"
    path.write_text(f"import os, time\n\ndef reward(completion, gold):\n    {body}\n")
    return f"{path}:reward"


def test_broken_reward_functions_do_what_is_promised(runs):
    hang = write_reward(
        runs, "hang", "time.sleep(60 if gold == '2' else 0); return float(len(completion) % 2)"
    )
    term = f"{{function: {hang}, timeout_s: 0.5}}"
    done = runs.run("hang", "--reward.terms", term, "--train.max-steps", "14")
    assert done.status == 0, done.error
    # the problem 1 + 1 came once, with four samples: counted, and not trained on
    assert sum(row["undecided_answers"] for row in done.rows) == 4
    assert sum(row["undecided_left_out"] for row in done.rows) == 4
    crash = write_reward(runs, "crash", "os._exit(9) if gold == '2' else 0; return 1.0")
    done = runs.run("crash", "--reward.terms", crash, "--train.max-steps", "14")
    assert done.status == 0 and sum(row["undecided_answers"] for row in done.rows) == 4
    for name, body in (
        ("nan", "return float('nan')"),
        ("none", "return None"),
        ("raises", "return 1 / 0"),
    ):
        done = runs.run(name, "--reward.terms", write_reward(runs, name, body))
        assert done.status == 2, done.error
        assert "RewardError: sample p" in done.error and "/sample 0" in done.error
        assert done.rows == [] and not (done.folder / "checkpoints").exists()


def test_one_engine_failure_is_healed_two_stop_the_run_and_it_resumes(runs, plain):
    healed = runs.run("healed", faults=Faults(fail_at=(7,)))
    assert healed.status == 0, healed.error
    assert healed.record() == plain.record()
    assert [row["engine_restarts"] for row in healed.rows] == [1, 0, 0, 0]
    dead = runs.run("dead", faults=Faults(die_from=30))
    assert dead.status == 3 and "failed 2 times" in dead.error
    assert [row["step"] for row in dead.rows] == [1, 2]
    again = runs.run("dead")
    assert again.status == 0, again.error
    assert again.record() == plain.record()


def test_a_stop_signal_during_sampling_ends_the_run_at_once(runs, plain):
    def respond(request, gold, tokenizer):
        """Asks for the stop and never answers: only a stop that does not wait ends the run."""
        import os
        import signal
        import threading

        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    stopped = runs.run("stopped", respond=respond)
    assert stopped.status == 3 and "stopped by a signal after step 0" in stopped.error
    assert stopped.rows == []
    resumed = runs.run("stopped")
    assert resumed.status == 0 and resumed.record() == plain.record()


def test_trainer_and_engine_too_far_apart_stop_the_run(runs, plain):
    """Stored log-probs that are 1 nat off: the watch says so and the run ends with status 3,
    unsaved."""
    folder = runs.folder / "shifted"
    folder.mkdir()
    for step in range(1, 3):
        lines = [
            json.loads(line)
            for line in (plain.folder / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()
        ]
        for line in lines:
            line["logprobs"] = [-20.0] * line["num_tokens"]
        (folder / f"step_{step}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    flags = [
        "--rollout.engine",
        "replay",
        "--rollout.replay-dir",
        str(folder),
        "--train.max-steps",
        "2",
        "--grpo.correction",
        "icepop",
    ]
    done = runs.run("apart", *flags)
    assert done.status == 3, done.error
    assert (
        "mean |Δ log-prob| between trainer and engine is 1" in done.error
        and "above grpo.mismatch_limit 0.5" in done.error
    )
    (row,) = done.rows
    assert (
        row["mismatch_mean"] == pytest.approx(13.9, abs=0.3)
        and row["mismatch_outside_share"] == 1.0
    )
    assert row["correction_changed_share"] == 1.0 and row["policy_loss"] == 0.0
    assert not list((done.folder / "checkpoints").glob("step_*"))


def test_reference_model_and_entropy_bonus_enter_the_loss(runs):
    done = runs.run(
        "kl",
        "--grpo.preset",
        "grpo",
        "--grpo.kl-coef",
        "0.5",
        "--grpo.entropy-coef",
        "0.01",
        "--optim.lr",
        "1e-2",
    )
    assert done.status == 0, done.error
    assert done.rows[0].get("reference_kl", 0.0) == 0.0 and done.rows[-1]["reference_kl"] > 1e-5
    # other token weights in the mean
    assert done.rows[-1]["kl_loss"] == pytest.approx(0.5 * done.rows[-1]["reference_kl"], rel=0.3)
